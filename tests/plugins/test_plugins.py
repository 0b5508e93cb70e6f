"""Methods, generators and priors from outside the package: registered, or offered by an installed package."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nfsd3d import distill, generators, prior
from nfsd3d.cli.main import main
from nfsd3d.config.compose import compose
from nfsd3d.distill.methods import METHODS, TABLE, find_method
from nfsd3d.errors import InputError
from nfsd3d.prior.files.locate import EMBEDDED

DOCUMENT = Path(__file__).parents[2] / "docs" / "methods.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
TINY = {
    "machine": "cpu",
    "backend": "numba",
    "train.steps": 2,
    "train.batch_size": 1,
    "train.preview_every": 99,
    "export.report": False,
}
TINY_SCENE = {
    **TINY,
    "train.resolution": 8,
    "export.turntable": False,
    "export.mesh": False,
    "export.resolution": 16,
    "export.texture_size": 0,
    "export.threshold": 1.0,
}


@pytest.fixture
def method():
    """A registered method of this name."""
    row = distill.Method(lambda p, s: s * p.cond, ("cond",), guidance_scale=3.0, weighting="uniform")
    distill.register("mine", row)
    yield "mine"
    distill.unregister("mine")


def install(folder: Path, name: str, group: str, code: str) -> None:
    """A package in ``folder``, as an installer leaves it, with one entry point ``outside``."""
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{group}]\noutside = {name}:ROW\n", encoding="utf-8")


def run_snippet(code, tmp_path, monkeypatch, settings):
    import nfsd3d

    generate = nfsd3d.generate

    def tiny(prompt, **given):
        return generate(prompt, **{**settings, "prior": "shapes", "run_dir": tmp_path / "run", **given})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nfsd3d, "generate", tiny, raising=False)
    names: dict = {}
    exec(compile(code, str(DOCUMENT), "exec"), names)
    return names


def test_the_documented_method_can_be_pasted_and_makes_a_mesh(tmp_path, monkeypatch):
    assert len(SNIPPETS[0].splitlines()) <= 15
    try:
        run = run_snippet(SNIPPETS[0], tmp_path, monkeypatch, TINY_SCENE)["run"]
        assert run.step == 2 and run.config.distill.method == "mine"
        assert run.summary["status"] == "done" and (tmp_path / "cube.glb").is_file()
    finally:
        distill.unregister("mine")


def test_the_documented_generator_can_be_pasted(tmp_path, monkeypatch):
    try:
        run = run_snippet(SNIPPETS[1], tmp_path, monkeypatch, TINY)["run"]
        assert run.images.shape == (1, 64, 64, 3) and (run.images[..., 0] == run.images[..., 1]).all()
        assert run.config.generator.options == {"start": 0.5}
        assert run.config.generator.learning_rate == {"gray": 0.05}
    finally:
        generators.unregister("gray")


def test_the_documented_prior_can_be_pasted(tmp_path, monkeypatch):
    shutil.copytree(EMBEDDED, tmp_path / "my-model")
    try:
        run = run_snippet(SNIPPETS[2], tmp_path, monkeypatch, {**TINY, "generator": "latent"})["run"]
        assert run.config.prior.name == "mine" and run.images.shape == (1, 64, 64, 3)
        assert run.config.train.t_max == compose("nfsd_2d", ["prompt=x", "prior=shapes"]).train.t_max
    finally:
        prior.unregister("mine")


def test_a_registered_method_composes_with_the_defaults_of_its_row(method):
    settings = compose("nfsd", ["prompt=x", "distill=mine"]).distill
    assert (settings.method, settings.guidance_scale, settings.weighting) == ("mine", 3.0, "uniform")
    assert settings.threshold == compose("nfsd", ["prompt=x"]).distill.threshold
    changed = compose("nfsd", ["prompt=x", "distill=mine", "distill.guidance_scale=4"]).distill
    assert changed.guidance_scale == 4


def test_a_sweep_takes_built_in_and_registered_methods(method, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    swept = ["prompt=a red cube", "distill=sds,mine", "dry_run=true", "machine=cpu"]
    assert main(["--config", "configs/nfsd.yaml", "-m", *swept]) == 0
    assert "mine" in capsys.readouterr().out


def test_a_registered_method_that_edits_needs_a_source():
    distill.register("shift", distill.Method(lambda p, s: p.cond - p.source_cond, ("cond", "source_cond")))
    try:
        with pytest.raises(InputError, match="distill=shift: needs something to edit"):
            compose("nfsd", ["prompt=x", "distill=shift"])
    finally:
        distill.unregister("shift")


@pytest.mark.parametrize("name", ["sds", "mine"])
def test_a_duplicate_name_is_refused(method, name):
    with pytest.raises(ValueError, match=f"'{name}' exists already"):
        distill.register(name, METHODS["sds"])


def test_built_in_generators_and_priors_cannot_be_replaced():
    with pytest.raises(ValueError, match="'nerf' exists already"):
        generators.register("nerf", generators.GeneratorRow(lambda options, facts: None, {}))
    with pytest.raises(ValueError, match="'shapes' exists already"):
        prior.register("shapes", prior.PriorRow(lambda *arguments: None))


def test_an_invalid_registration_is_refused():
    with pytest.raises(TypeError, match="not a Method"):
        distill.register("mine", lambda p, s: p.cond)
    with pytest.raises(ValueError, match="letters, digits"):
        distill.register("mine,sds", METHODS["sds"])
    with pytest.raises(ValueError, match="'conf'"):
        distill.Method(lambda p, s: p.conf, predictions=("conf",))


def test_an_unknown_name_is_an_error_that_lists_what_there_is(method):
    with pytest.raises(InputError, match=r"distill=minr: no such choice \(did you mean mine\?\).*mine"):
        compose("nfsd", ["prompt=x", "distill=minr"])
    with pytest.raises(InputError, match=r"distill.method=minr: no such method.*sds.*mine"):
        find_method("minr")
    with pytest.raises(InputError, match="generator=grey: no such choice"):
        compose("nfsd", ["prompt=x", "generator=grey"])


def test_an_installed_package_offers_a_method_without_torch_being_imported(tmp_path):
    code = "from nfsd3d.distill import Method\nROW = Method(lambda p, s: s * p.cond, ('cond',), guidance_scale=2.0)\n"
    install(tmp_path, "apart", "nfsd3d.methods", code)
    program = (
        "import sys; from nfsd3d.config.compose import compose;"
        "print(compose('nfsd', ['prompt=x', 'distill=outside']).distill.guidance_scale, 'torch' in sys.modules)"
    )
    root = str(Path(distill.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": f"{root}:{tmp_path}", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.split() == ["2.0", "False"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "apart offers it, but apart:ROW cannot be imported (ModuleNotFoundError"),
        ("raise RuntimeError('first\\nsecond')", "(RuntimeError: first)"),
        ("ROW = 3", "the package apart offers apart:ROW, of type int, not a Method"),
        ("", "cannot be imported (AttributeError"),
    ],
)
def test_a_broken_package_is_one_line_that_names_it(tmp_path, monkeypatch, code, reason):
    install(tmp_path, "apart", "nfsd3d.methods", code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "apart", raising=False)
    assert "outside" in TABLE.names()
    with pytest.raises(InputError, match=re.escape(reason)) as error:
        compose("nfsd", ["prompt=x", "distill=outside"])
    assert "\n" not in str(error.value) and "distill.method=outside: the package apart" in str(error.value)
    assert compose("nfsd", ["prompt=x"]).distill.method == "nfsd"  # others work


def test_two_packages_with_the_same_name_are_an_error(tmp_path, monkeypatch):
    for package in ("apart", "beside"):
        install(tmp_path, package, "nfsd3d.methods", "ROW = 3")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"the package (apart and beside|beside and apart) offer it both"):
        find_method("outside")


def test_a_file_has_the_name_of_a_plug_in_that_an_earlier_run_used(method, tmp_path):
    """Also where a defaults list chooses it; a later run without the file has the plug-in again."""
    (tmp_path / "distill").mkdir()
    (tmp_path / "distill" / "mine.yaml").write_text("method: mine\nguidance_scale: 5.5\nweighting: sigma2\n")
    (tmp_path / "own.yaml").write_text("defaults: [nfsd, _self_]\n")
    (tmp_path / "listed.yaml").write_text("defaults: [nfsd, {override distill: mine}, _self_]\n")
    common = ["prompt=a red cube", "machine=cpu"]
    for _ in range(2):
        assert compose("nfsd", [*common, "distill=mine"]).distill.guidance_scale == 3.0
        assert compose(tmp_path / "own.yaml", [*common, "distill=mine"]).distill.guidance_scale == 5.5
        assert compose(tmp_path / "listed.yaml", common).distill.guidance_scale == 5.5
