"""Imports go one way (see docs/architecture.md), and heavy or optional packages are imported only when used."""

import ast
import importlib.util
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import nfsd3d

PACKAGE = Path(nfsd3d.__file__).parent
ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}

# package -> packages and modules below nfsd3d that it may not import
FORBIDDEN = {
    "nfsd3d.plugins": ("config", "distill", "generators", "prior", "shapes", "train", "export", "evaluate"),
    "nfsd3d.distill": ("generators", "prior", "shapes", "train", "export", "evaluate", "config.compose"),
    "nfsd3d.generators": ("prior", "distill", "shapes", "train", "export", "evaluate", "config"),
    "nfsd3d.prior": ("distill", "generators", "shapes", "train", "export", "evaluate", "config.compose"),
    "nfsd3d.shapes": ("generators", "distill", "train", "export", "evaluate", "config.compose"),
    "nfsd3d.train": ("shapes", "evaluate", "compare", "decompose", "cli"),
    "nfsd3d.config": ("cli", "train", "runs"),
    "nfsd3d.settings": (
        "config",
        "cli",
        "train",
        "prior",
        "generators",
        "distill",
        "export",
        "runs",
        "views",
    ),
}
# The schema is derived from the components' settings, which import nothing heavy (see below).
SETTINGS = {name for name in MODULES if name.endswith(".settings") or name.startswith("nfsd3d.settings.")}
SETTINGS.add("nfsd3d.generators.nerf.hashgrid.spec")
# Everything may be used without train, except what is about whole runs.
ABOUT_RUNS = {
    "nfsd3d.__main__",
    "nfsd3d.api",
    *(
        name
        for name in MODULES
        if name.startswith(
            tuple(f"nfsd3d.{part}." for part in (("bench", "cli", "compare", "decompose", "evaluate", "jobs", "tune")))
        )
    ),
}
# Packages that only these modules may import.
ADAPTERS = {
    "hydra": {
        "nfsd3d.config.compose",
        "nfsd3d.config.hydra_compose",
        "nfsd3d.config.overrides",
        "nfsd3d.config.choices",
        "nfsd3d.cli.multirun",
        "nfsd3d.cli.parse_search_space",
    },
    "omegaconf": {
        "nfsd3d.config.compose",
        "nfsd3d.config.hydra_compose",
        "nfsd3d.config.choices",
        "nfsd3d.config.trust",
        "nfsd3d.config.yaml_files",
        "nfsd3d.cli.multirun",
    },
    "tinycudann": {"nfsd3d.generators.nerf.hashgrid.tinycudann"},
    "nerfacc": {"nfsd3d.generators.nerf.sampling.nerfacc"},
    "numba": {
        "nfsd3d.generators.nerf.launch_numba",
        "nfsd3d.generators.mesh.rasterize.numba_kernels",
        "nfsd3d.export.visibility_numba",
        "nfsd3d.generators.nerf.hashgrid.numba_kernels",
        "nfsd3d.generators.nerf.sampling.numba_kernels",
        "nfsd3d.generators.nerf.compositing.numba_kernels",
    },
    "lib3mf": {"nfsd3d.export.formats.threemf"},
    "pxr": {"nfsd3d.export.formats.usdz"},
    "viser": {"nfsd3d.viewer.server", "nfsd3d.viewer.panel"},
    "wandb": {"nfsd3d.loggers.wandb"},
    "mlflow": {"nfsd3d.loggers.mlflow"},
    "xatlas": {"nfsd3d.export.texture.unwrap_worker"},
    # Kernels stand at the top of their modules, so that these cannot be imported without Triton; see below.
    "triton": {
        "nfsd3d.generators.nerf.launch_triton",
        "nfsd3d.generators.nerf.hashgrid.triton_kernels",
        "nfsd3d.generators.nerf.morton_triton",
        "nfsd3d.generators.mesh.rasterize.triton_kernels",
        "nfsd3d.generators.nerf.mlp_triton",
        "nfsd3d.generators.nerf.sampling.triton_kernels",
        "nfsd3d.generators.nerf.compositing.triton_kernels",
        "nfsd3d.generators.nerf.compositing.triton_sums",
    },
    "diffusers": {
        "nfsd3d.prior.architectures",
        "nfsd3d.prior.compiled.encoder",
        "nfsd3d.prior.families.full_size",
        "nfsd3d.prior.files.load",
        "nfsd3d.prior.files.load_family",
        "nfsd3d.prior.load_prior",
        "nfsd3d.prior.merge_lora",
        "nfsd3d.prior.files.convert_single_file",
        "nfsd3d.prior.diffusers_prior",
        "nfsd3d.shapes.training.autoencoder",
        "nfsd3d.shapes.training.denoiser",
        "nfsd3d.shapes.training.objectives",
        "nfsd3d.shapes.training.pipeline",
    },
    "peft": {"nfsd3d.prior.lora"},
    "IPython": {"nfsd3d.viewer.notebook"},
    # The controller imports the module of the engine that is used.
    "joblib": {"nfsd3d.jobs.engines.joblib"},
    "submitit": {"nfsd3d.jobs.engines.submitit", "nfsd3d.jobs.engines.slurm"},
    "ray": {"nfsd3d.jobs.engines.ray"},
    "optuna": {"nfsd3d.tune.study"},
    "torchvision": set(),
}


def imports(path: Path, at_import_only: bool = False) -> set[str]:
    """Absolute names of the modules that a file imports, in functions too unless ``at_import_only``."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_import_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
            found.add(str(node.module))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def _is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_the_rules_name_modules_that_exist():
    named = {*FORBIDDEN, *ABOUT_RUNS, *(module for modules in ADAPTERS.values() for module in modules)}
    assert named <= MODULES.keys()


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_go_one_way(package):
    forbidden = [f"nfsd3d.{name}" for name in FORBIDDEN[package]]
    wrong = {
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        if _is_in(module, package)
        for imported in imports(path)
        if any(_is_in(imported, name) for name in forbidden)
        if not (package == "nfsd3d.config" and any(_is_in(imported, name) for name in SETTINGS))
    }
    assert wrong == set()


def test_everything_may_be_used_without_train():
    users = {
        module
        for module, path in MODULES.items()
        if not _is_in(module, "nfsd3d.train") and any(_is_in(name, "nfsd3d.train") for name in imports(path))
    }
    assert users <= ABOUT_RUNS


@pytest.mark.parametrize("package", sorted(ADAPTERS))
def test_only_its_adapter_imports_a_package(package):
    users = {module for module, path in MODULES.items() if any(_is_in(name, package) for name in imports(path))}
    assert users <= ADAPTERS[package]


@pytest.mark.parametrize("package", ["tinycudann", "nerfacc", "peft"])
def test_optional_packages_are_imported_when_used(package):
    users = {
        module
        for module, path in MODULES.items()
        if any(_is_in(name, package) for name in imports(path, at_import_only=True))
    }
    assert users == set()


def test_triton_kernels_are_imported_when_used():
    """Only they import each other on import; their callers import them within a function."""
    kernels = ADAPTERS["triton"]
    users = {
        module
        for module, path in MODULES.items()
        if imports(path, at_import_only=True) & kernels
        or any(name.rpartition(".")[0] in kernels for name in imports(path, at_import_only=True))
    }
    assert users <= kernels


def test_every_module_can_be_imported_without_cuda():
    modules = {info.name for info in pkgutil.walk_packages([str(PACKAGE)], "nfsd3d.")}
    names = sorted(
        modules.difference(*(ADAPTERS[package] for package in ("triton", "joblib", "submitit", "ray", "optuna")))
    )
    assert len(names) > 30
    code = (
        "import importlib, sys\n"
        "for package in ('tinycudann', 'nerfacc', 'triton'): sys.modules[package] = None\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent, timeout=120)


@pytest.fixture(scope="module")
def structure():
    """The module ``scripts/structure.py``."""
    spec = importlib.util.spec_from_file_location("structure", ROOT / "scripts" / "structure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_is_imported_in_a_circle(structure):
    figures = structure.count(ROOT)
    assert figures["files"] == len(MODULES)
    assert figures["cycles of files"] == [] and figures["cycles of packages"] == []


def test_circles_are_found_in_functions_and_between_packages_and_not_for_types(structure, tmp_path):
    files = {
        "prior/__init__.py": "",
        "prior/base.py": "def load():\n    import nfsd3d.train.loop\n",
        "prior/chunked.py": "",
        "train/__init__.py": "",
        "train/loop.py": "from nfsd3d.prior import chunked\n",
        "cameras.py": "from nfsd3d import prompts\n",
        "prompts.py": "def show():\n    from nfsd3d.cameras import orbit\n",
        "errors.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nfsd3d.device import here\n",
        "device.py": "from nfsd3d import errors\n",
    }
    for name, text in {"__init__.py": "", **files}.items():
        path = tmp_path / "nfsd3d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    figures = structure.count(tmp_path)
    assert figures["cycles of files"] == [["nfsd3d.cameras", "nfsd3d.prompts"]]
    assert figures["cycles of packages"] == [["nfsd3d.prior", "nfsd3d.train"]]
    assert figures["modules at the root"] == 4


def test_the_root_stays_small(structure):
    figures = structure.count(ROOT)
    assert figures["modules at the root"] <= 7
    assert figures["YAML files"] > 0  # how many there may be: tests/config/test_recipes.py


def test_settings_are_constrained_types_and_errors_alone():
    wrong = {
        f"{module} imports {imported}"
        for module in SETTINGS
        for imported in imports(MODULES[module])
        if imported.startswith("nfsd3d") and not _is_in(imported, "nfsd3d.errors")
        if not (_is_in(imported, "nfsd3d.settings") or any(_is_in(imported, name) for name in SETTINGS))
    }
    assert len(SETTINGS) >= 8 and wrong == set()


@pytest.mark.parametrize("name", ["nfsd3d.config.schema", *sorted(SETTINGS)])
def test_settings_import_nothing_slow(name):
    code = f"import sys, {name}; assert not set(sys.modules) & {{'torch', 'numpy', 'diffusers', 'hydra'}}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent, timeout=60)


def test_the_command_line_imports_nothing_slow():
    code = "import json, sys, nfsd3d.cli.main, nfsd3d.cli.doctor; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60
    )
    loaded = set(json.loads(result.stdout))
    assert {"nfsd3d.config.compose", "hydra"} <= loaded
    assert loaded & {"torch", "numpy", "diffusers", "transformers", "numba", "huggingface_hub"} == set()
