"""Writes docs/settings.md, the reference of all settings, from the schema and ``configs/nfsd.yaml``."""

from pathlib import Path

from nfsd3d.config.reference import reference_markdown

TARGET = Path(__file__).resolve().parents[1] / "docs" / "settings.md"

if __name__ == "__main__":
    TARGET.write_text(reference_markdown(), encoding="utf-8")
    print(TARGET)
