"""Pages of the documentation's site that are not files of docs/: a hook of MkDocs (mkdocs.yml).

The README is the first page. Files that the pages link to outside of docs/ become pages with their text, so that no
link leads out of the site. The Python reference is made from the docstrings.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

REFERENCE = {
    "Runs": ("nfsd3d.api.generate", "nfsd3d.api.load_run", "nfsd3d.api.Run"),
    "Callbacks": (
        *("nfsd3d.callbacks.callback.Callback", "nfsd3d.callbacks.callback.LiveRun"),
        *("nfsd3d.callbacks.events.StepEvent", "nfsd3d.callbacks.events.StepTensors"),
        *("nfsd3d.callbacks.steering.Controls", "nfsd3d.callbacks.steering.Steering"),
    ),
    "Methods": ("nfsd3d.distill.methods.Method", "nfsd3d.distill.types.Predictions", "nfsd3d.distill.types.Noising"),
    "Generators": ("nfsd3d.generators.base.ImageGenerator", "nfsd3d.generators.plugins.GeneratorRow"),
    "Priors": ("nfsd3d.prior.base.Prior", "nfsd3d.prior.priors.PriorRow", "nfsd3d.prior.schedule.NoiseSchedule"),
    "Errors": ("nfsd3d.errors.InputError", "nfsd3d.errors.RunFailed"),
}
"""Objects of the Python reference by section."""

PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
"""Pages at the root of the repository."""

IMAGES = (".png", ".jpg", ".svg")

_LINK = re.compile(r"(?P<before>!?\[[^\]]*\]\()(?P<target>[^)#\s]+)(?P<after>[^)]*\))")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made here."""
    docs = files.get_file_from_path("README.md")  # docs/README.md: the list of pages, which the navigation replaces
    if docs is not None:
        files.remove(docs)
    made: dict[str, str | bytes] = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}
    made["index.md"] = made.pop("README.md")
    made["reference.md"] = _reference()
    made["citing.md"] = f"# Citing\n\n```yaml\n{(ROOT / 'CITATION.cff').read_text(encoding='utf-8')}```\n"
    waiting = [(file.src_uri, file.content_string) for file in files.documentation_pages()]
    waiting += [(name, text) for name, text in made.items() if isinstance(text, str)]
    while waiting:
        for target in _outside(*waiting.pop()):
            name = _page_of(target)
            if name not in made:
                made[name] = shown = _shown(target)
                waiting += [(name, shown)] if isinstance(shown, str) else []
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Leads the links of a page to the pages that were made for their targets."""
    here = page.file.src_uri

    def replaced(link: re.Match[str]) -> str:
        found = _resolved(here, link["target"])
        if found is None:
            return link[0]
        return f"{link['before']}{posixpath.relpath(found, posixpath.dirname(here) or '.')}{link['after']}"

    return "".join(part if index % 2 else _LINK.sub(replaced, part) for index, part in enumerate(_parts(markdown)))


def _parts(markdown: str) -> list[str]:
    """The text, with the blocks of code at the odd places."""
    return re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)


def _source_of(page: str) -> str:
    """The file of the repository that a page shows."""
    if page == "index.md":
        return "README.md"
    if page.startswith("source/"):
        return page.removeprefix("source/").removesuffix(".md")
    return page if page in PAGES else f"docs/{page}"


def _resolved(page: str, target: str) -> str | None:
    """The page or file of the site that a relative link of a page leads to; None for other links."""
    if re.match(r"[a-z]+:", target):
        return None
    place = posixpath.normpath(posixpath.join(posixpath.dirname(_source_of(page)), target))
    if place == "README.md":
        return "index.md"
    if place in PAGES:
        return place
    if place == "docs/README.md":
        return "index.md"
    if place.startswith("docs/"):
        return place.removeprefix("docs/")
    return _page_of(place) if (ROOT / place).exists() else None


def _outside(page: str, text: str) -> list[str]:
    """The files and folders of the repository, outside of docs/, that a page links to and that have no page."""
    found = []
    for part in _parts(text)[::2]:
        for link in _LINK.finditer(part):
            place = posixpath.normpath(posixpath.join(posixpath.dirname(_source_of(page)), link["target"]))
            known = place in PAGES or place.startswith("docs/") or re.match(r"[a-z]+:", link["target"])
            if not known and (ROOT / place).exists():
                found.append(place)
    return found


def _page_of(place: str) -> str:
    return f"source/{place.rstrip('/')}" + ("" if place.endswith(IMAGES) else ".md")


def _shown(place: str) -> str | bytes:
    """A file as a page with its text, a folder as the list of its files, an image as it is."""
    path = ROOT / place
    if place.endswith(IMAGES):
        return path.read_bytes()
    if path.is_dir():
        names = "\n".join(f"- `{item.name}`" for item in sorted(path.iterdir()) if not item.name.startswith(("_", ".")))
        return f"# {place}\n\n{names}\n"
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    return f"# {place}\n\n````{'python' if path.suffix == '.py' else ''}\n{text}\n````\n"


def _reference() -> str:
    sections = [f"## {name}\n\n" + "\n\n".join(f"::: {item}" for item in items) for name, items in REFERENCE.items()]
    return "# Python reference\n\n" + "\n\n".join(sections) + "\n"
