"""Metrics of this source tree's structure: packages, imports, cycles, files of a training step, code lines.

    python scripts/structure.py [FOLDER] [--trace] [--json PATH]

FOLDER is a checkout (default: this one), so that two revisions can be compared. Its code is not imported, except with
``--trace``, which runs six steps of a small NFSD run and lists the files that one of them executes.
"""

import argparse
import ast
import io
import json
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path

TRACER = """
import importlib, io, json, sys, tempfile
from pathlib import Path
root = Path(sys.argv[1]).resolve()
sys.path.insert(0, str(root))
from rich.console import Console

def first(*names):
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise SystemExit(f"none of {names} in {root}")

compose = first("nfsd3d.config.compose", "nfsd3d.config").compose
module = first("nfsd3d.train.run", "nfsd3d.train.session")
run = getattr(module, "train_and_export", None) or module.run
folder = Path(tempfile.mkdtemp()) / "run"
folder.mkdir()
choices = ["machine=cpu", "prior=shapes", "backend=numba", "prompt=a red cube", f"run_dir={folder}"]
quiet = ["export.mesh=false", "export.turntable=false", "export.report=false", "train.tensorboard=false"]
short = ["train.steps=6", "train.batch_size=1", "train.log_every=5"]
rarely = ["train.preview_every=99", "train.checkpoint_every=99"]
config = compose("nfsd", [*choices, *quiet, *short, *rarely])
steps = []

def trace(frame, event, argument):
    name = frame.f_code.co_filename
    if not name.startswith(str(root / "nfsd3d")):
        return None
    if event == "call" and frame.f_code.co_name == "plan_at":  # the first call of every step
        steps.append(set())
    if steps:
        steps[-1].add(str(Path(name).relative_to(root)))
    return trace

sys.settrace(trace)
run(config, console=Console(file=io.StringIO()))
sys.settrace(None)
print(json.dumps(sorted(steps[2])))
"""


def modules_of(folder: Path) -> dict[str, Path]:
    """The package's modules by dotted name, packages' ``__init__`` files by the package's name."""
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((folder / "nfsd3d").rglob("*.py"))
    }


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """The package's own modules that a file imports, in functions too; imports for types only are omitted."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return {name for name in found if name in known}


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def connect(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges[node]:
            if other not in index:
                connect(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in edges:
        if node not in index:
            connect(node)
    return found


def package_of(module: str) -> str:
    """The package directly below ``nfsd3d`` that a module is in; ``nfsd3d`` itself for the modules at the root."""
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 else module if module in PACKAGES else "nfsd3d"


PACKAGES: set[str] = set()


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    lines: set[int] = set()
    ignored = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in ignored:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        # docstrings, those of attributes among them
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def uses_of_any(path: Path) -> int:
    """The number of uses of ``Any`` in annotations and expressions, imports excluded."""
    return sum(
        isinstance(node, ast.Name) and node.id == "Any"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )


def count(folder: Path) -> dict[str, object]:
    """All metrics except the traced ones."""
    modules = modules_of(folder)
    PACKAGES.clear()
    PACKAGES.update(name for name, path in modules.items() if path.name == "__init__.py" and name != "nfsd3d")
    PACKAGES.update(".".join(name.split(".")[:2]) for name in modules if name.count(".") > 1)
    edges = {name: imports_of(path, modules) - {name} for name, path in modules.items()}
    at_root = {name for name in modules if package_of(name) == "nfsd3d"}
    packages: dict[str, set[str]] = {}
    for name, others in edges.items():
        if name not in at_root:
            packages.setdefault(package_of(name), set()).update(package_of(o) for o in others if o not in at_root)
    packages = {name: others - {name} for name, others in packages.items()}
    packages |= {other: set() for others in packages.values() for other in others if other not in packages}
    return {
        "modules at the root": len(at_root - {"nfsd3d"}),
        "imports into the root": sum(len(edges[name] & at_root) for name in edges if name not in at_root),
        "cycles of files": cycles(edges),
        "cycles of packages": cycles(packages),
        "uses of Any": sum(uses_of_any(path) for path in modules.values()),
        "code lines": sum(code_lines(path) for path in modules.values()),
        "lines": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in modules.values()),
        "files": len(modules),
        "YAML files": len(list((folder / "configs").rglob("*.yaml"))),
    }


def traced(folder: Path) -> list[str]:
    """The Python files below ``folder`` that one training step executes."""
    with tempfile.TemporaryDirectory() as elsewhere:
        result = subprocess.run(
            [sys.executable, "-c", TRACER, str(folder.resolve())],
            capture_output=True,
            text=True,
            cwd=elsewhere,
            check=False,
        )
    if result.returncode:
        raise SystemExit(result.stderr)
    return list(json.loads(result.stdout.splitlines()[-1]))


def main() -> None:
    """Prints the metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--trace", action="store_true", help="run a training step and list the files it executes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    options = parser.parse_args()
    figures = count(options.folder)
    if options.trace:
        figures["files of a training step"] = traced(options.folder)
    for name, value in figures.items():
        print(f"{name}: {len(value) if isinstance(value, list) else value}")
        for item in value if isinstance(value, list) else ():
            print(f"    {' '.join(item) if isinstance(item, list) else item}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
