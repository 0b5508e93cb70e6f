"""Hatchling metadata hook: the package description with absolute links, and the project's URLs.

README.md links to files of the repository by relative paths. A package index shows only its text, so that relative
links and images are broken there. With ``NFSD3D_REPOSITORY_URL`` set at build time they become absolute links into the
repository; without it they stay as they are.
"""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

VARIABLE = "NFSD3D_REPOSITORY_URL"
"""Environment variable with the address of the repository, without a trailing slash."""

_RELATIVE = r"(?!https?:|mailto:|#)([^()\s]+)\)"
_IMAGE = re.compile(r"(!\[(?:[^\[\]]|\[[^\[\]]*\])*\]\()" + _RELATIVE)
_LINK = re.compile(r"(\]\()" + _RELATIVE)


def absolute_links(text: str, repository: str, ref: str) -> str:
    """Markdown ``text`` with every relative link as a link into ``repository`` at the git reference ``ref``."""
    text = _IMAGE.sub(rf"\1{repository}/raw/{ref}/\2)", text)
    return _LINK.sub(rf"\1{repository}/blob/{ref}/\2)", text)


def git_ref(version: str) -> str:
    """The tag of a released ``version``; ``HEAD``, the default branch, for a version in development."""
    return "HEAD" if "dev" in version else f"v{version}"


class ReadmeHook(MetadataHookInterface):
    """Fills in the dynamic fields ``readme`` and ``urls``; final."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, object]) -> None:
        """Adds the description, and with ``NFSD3D_REPOSITORY_URL`` the project's URLs, to ``metadata``.

        Raises:
            ValueError: the package has no version.
        """
        root = Path(self.root)
        text = (root / "README.md").read_text(encoding="utf-8")
        version = re.search(r'^__version__ = "(.+)"$', (root / "nfsd3d/__init__.py").read_text("utf-8"), re.MULTILINE)
        if version is None:
            raise ValueError("nfsd3d/__init__.py: has no line __version__ = ...")
        repository = os.environ.get(VARIABLE, "").rstrip("/")
        if repository:
            ref = git_ref(version[1])
            text = absolute_links(text, repository, ref)
            metadata["urls"] = {
                "Source": repository,
                "Documentation": f"{repository}/blob/{ref}/docs/README.md",
                "Changelog": f"{repository}/blob/{ref}/CHANGELOG.md",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
