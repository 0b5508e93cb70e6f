import csv
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

import nfsd3d
from nfsd3d.cli.main import COMMANDS, main
from nfsd3d.config import hardware
from nfsd3d.config.compose import compose
from nfsd3d.config.experiments import config_root
from nfsd3d.config.schema import known_keys
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.prior.files import locate
from nfsd3d.runs import directory, files, preflight
from nfsd3d.train.interrupts import Interrupted

ROOT = Path(nfsd3d.__file__).parent.parent
SETTLED = ["machine=cpu", "backend=numba", "prior=shapes"]


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """The embedded model without weights and with a small vocabulary; it is never loaded."""
    folder, embedded = tmp_path_factory.mktemp("model"), locate.EMBEDDED
    weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(embedded, folder, ignore=weights, dirs_exist_ok=True)
    for path in embedded.glob("*/*.safetensors"):
        (folder / path.relative_to(embedded)).write_bytes((2).to_bytes(8, "little") + b"{}")
    negative = compose("nfsd", ["prompt=x", *SETTLED]).negative_prompt
    words = ["a", "red", "pink", "house", "mushroom", *directory.slug(negative, 1000).split("-")]
    vocabulary = {"words": words, "groups": {"objects": ["house", "mushroom"]}}
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary))
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, model) -> Path:
    """Each test starts in an empty folder, without a GPU, with the small model as the embedded one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 0)
    monkeypatch.setattr(locate, "EMBEDDED", model)
    monkeypatch.delenv("NFSD3D_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def runs(monkeypatch, jobs_here) -> list:
    """Replaces the training by a fake that records its calls; the seed determines its outcome."""
    asked: list = []

    def run(config, *, resume=None, worker=None, callbacks=(), console=None):
        asked.append((config, resume))
        if config.seed == 1 and config.distill.method == "sds":
            raise RunFailed("diverged: the scene is empty")
        if config.seed == 13:
            raise ZeroDivisionError("a bug")
        if config.seed == 143:
            raise Interrupted(15, "interrupted after step 3; resume with: launch.py --resume x")
        run_dir = Path(config.run_dir)
        (run_dir / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        summary = {"status": "done", "reason": None, "steps": config.train.steps, "seconds": 1.5}
        (run_dir / "summary.json").write_text(json.dumps(summary))
        return run_dir

    module = types.ModuleType("nfsd3d.train.run")
    module.train_and_export = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nfsd3d.train.run", module)
    return asked


def error_line(capsys) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


BAD_COMMANDS = [
    ([], "prompt is missing"),
    (["--config", "configs/nfsdd.yaml", "prompt=a red house"], "did you mean nfsd.yaml"),
    (["--config"], "--config: expected one argument"),
    (["--confg", "x"], "unknown option --confg (did you mean --config"),
    (["--resume", "nowhere"], "nowhere: no such run directory"),
    (["--resume", "x", "--config", "nfsd"], "neither --config nor -m"),
    (["evaluate", "no-run"], "no-run"),
    (["evalute", "no-run"], "unknown command evalute (did you mean evaluate?)"),
    (["a", "red", "cube"], 'unknown command a; a prompt is given as prompt="a red cube"; see --help'),
    (["prompt=a red house", "seed=0,1"], "seed=0,1: several values are a sweep; add -m"),
    (["prompt=a red house", "export.formats=glb,obj"], "add -m, or write export.formats=[glb,obj] for a list"),
    (["prompt=a red house", "viewer.port=8080"], "viewer.port: viewer has one value and no parts; write viewer=..."),
    (["prompt=a red house", "export.formats=[fbx]"], "export.formats"),
    (["prompt=a red house", "export.size_mm=0"], "export.size_mm=0: must be greater than or equal to 0.01"),
    (["prompt=a red house", "export.lods=[60000]"], "export.lods=[60000]: must lie below export.max_faces=50000"),
    (
        ["--config", "quick", "prompt=a red house", "prior=sd21"],
        "quick: is for prior=shapes and generator=nerf",
    ),
    (["--config", "best", "prompt=a red house", "prior=sd21"], "best: is for prior=shapes and generator=nerf"),
    (["--config", "fast", "prompt=a red house", "generator=mesh"], "fast: is not for generator=mesh"),
    (["prompt=a red house", "export.lods=[100,200]"], "export.lods=[100, 200]: must become smaller"),
    (["prompt=a red house", "export.compress=zip"], "export.compress=zip: must be"),
    (["-m", "prompt=a red house", "hydra/launcher=slurm"], "did you mean submitit_slurm?"),
    (["-m", "prompt=a red house", "hydra.launcher.worker=3"], "no engine has such a setting (did you mean workers?)"),
    (["--resume", "a-sweep"], "a-sweep: holds the runs of a sweep; name one of them, or nfsd3d sweep resume a-sweep"),
    (["completion"], "completion: name the shell: bash, zsh, fish"),
    (["checkmesh"], "unknown command checkmesh (did you mean check-mesh?)"),
    (["prompt=a red house", "viewer=maybe"], "viewer=maybe: must be true, false or HOST:PORT"),
    (["prompt=a red house", "viewer=localhost:0"], "viewer=localhost:0: must be true, false or HOST:PORT"),
    (["prompt=a red house", "viewer=true", "generator=latent"], "viewer=true: shows scenes, and generator=latent"),
    (["prompt=a red house", "logger=wandd"], "logger=wandd: no such logger (did you mean wandb?)"),
    (["check-mesh"], "RUN_DIR: give one or several, or --install"),
    (["compare", "--tier", "no"], "no such tier; choose one of"),
    (["decompose", "--image", "no.png"], "--image: needs --prompt TEXT"),
    (["prompt=a red huose"], "does not know 'huose' (did you mean house"),
    (["prompt=a red house", "negative_prompt=qux"], "negative_prompt: the prior does not know"),
    (["prompt=a red house", "train.steps=0"], "train.steps=0: must be greater than 0"),
    (["prompt=a red house", "machine=cuda"], "machine.device=cuda: no NVIDIA GPU is visible; use machine=cpu"),
    (["prompt=a red house", "backend=nvidia"], "computes on CUDA only"),
    (["prompt=a red house", "prior.model=/no/where"], "prior.model=/no/where"),
    (["prompt=a red house", "run_dir=used"], "run_dir=used: already used; choose another, or empty it"),
    (["prompt=a red house", "run_dir=used/file"], "run_dir=used/file: is a file"),
    (["prompt=a red house", "run_dir=used/file/x"], "run_dir=used/file/x: cannot be"),
    (["prompt=a red house", "run_dir=" + "x" * 300], "cannot be"),
    (["--config", "dds", "prompt=a red house", "source_run=x"], "needs source_prompt beside source_run=x"),
    (["--config", "dds", "prompt=a red house", "source_prompt=a house", "source_run=no"], "no: no such run directory"),
    (["--config", "dds_2d", "prompt=a red house", "source_prompt=a house", "source_image=no"], "no: no such file"),
    (["-m", "prompt=a red house", "seed=0,1", "train.stepz=3"], "unknown setting train.stepz"),
    (["-m", "prompt=a red house", "distill=sds,nfsdd"], "distill=nfsdd: no such choice (did you mean nfsd"),
    (["-m", "prompt=a red house", "run_dir=a,b"], "run_dir: a sweep has one directory"),
    (["-m", 'prompt="a red house', "seed=0,1"], "unbalanced quotes"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_COMMANDS)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, runs, elsewhere):
    (elsewhere / "used").mkdir()
    (elsewhere / "a-sweep").mkdir()
    (elsewhere / "a-sweep" / "manifest.jsonl").touch()
    (elsewhere / "used" / "file").write_text("precious")
    assert main(arguments) == 2
    assert message in error_line(capsys)
    assert runs == []
    assert (elsewhere / "used" / "file").read_text() == "precious"
    assert not (elsewhere / "outputs").exists()


def test_an_unknown_method_is_an_error_before_a_run_directory_is_made(capsys, runs, elsewhere):
    assert main(["prompt=a red house", "distill.method=nfsdd"]) == 2
    assert "distill.method=nfsdd: no such method (did you mean nfsd" in error_line(capsys)
    assert runs == [] and not (elsewhere / "outputs").exists()


def test_bad_input_is_an_error_before_slow_imports(elsewhere, model):
    commands = [arguments for arguments, _ in BAD_COMMANDS if arguments and "run_dir" not in " ".join(arguments)]
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from nfsd3d.cli.main import main\n"
        "from nfsd3d.prior.files import locate\n"
        f"locate.EMBEDDED = Path({str(model)!r})\n"
        f"codes = [main(arguments) for arguments in {commands!r}]\n"
        "slow = {'torch', 'diffusers', 'transformers', 'numba', 'numpy'} & set(sys.modules)\n"
        "print(json.dumps([codes, sorted(slow)]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=_environment(), capture_output=True, text=True, timeout=60
    )
    codes, slow = json.loads(result.stdout.splitlines()[-1])
    assert set(codes) == {2}
    assert slow == []
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == len(commands)


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("folder", ["the root", "an empty one", "one with configs of its own"])
def test_launch_from_any_folder(elsewhere, folder):
    if folder == "one with configs of its own":
        (elsewhere / "configs").mkdir()
        (elsewhere / "configs" / "mine.yaml").write_text("defaults: [nfsd, _self_]\n")
    command = [sys.executable, str(ROOT / "launch.py"), "--config", "configs/nfsd.yaml", "prompt=x", "train.steps=-1"]
    cwd = ROOT if folder == "the root" else elsewhere
    result = subprocess.run(command, cwd=cwd, env=_environment(), capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr == "error: train.steps=-1: must be greater than 0\n"
    assert result.stdout == ""


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("NFSD3D_DEBUG", "1")
    assert main(["prompt=x", "seed=-1"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "error: seed=-1" in shown.splitlines()[-1]


def test_a_run(runs, capsys, elsewhere):
    assert main(["--config", "configs/sds.yaml", "prompt=a pink, house"]) == 0
    ((config, resume),) = runs
    assert resume is None
    assert (config.prompt, config.distill.method) == ("a pink, house", "sds")
    run_dir = Path(config.run_dir)
    assert run_dir.is_dir()
    assert run_dir.parent == elsewhere / "outputs/sds/a-pink-house"
    announced = capsys.readouterr().err
    assert "machine=cpu (auto: no NVIDIA GPU is visible)" in announced
    assert "prior=shapes (auto: machine=cpu)" in announced


def test_a_run_in_a_chosen_directory(runs, elsewhere):
    (elsewhere / "empty").mkdir()
    for name in ("new/deep, er", "empty"):
        assert main(["prompt=a red house", f"run_dir={name}", *SETTLED]) == 0
        assert runs[-1][0].run_dir == str(elsewhere / name)
        assert (elsewhere / name).is_dir()


def test_exit_codes(runs, capsys):
    assert main(["prompt=a red house", "seed=1", "distill=sds", *SETTLED]) == 1
    assert error_line(capsys) == "error: diverged: the scene is empty"
    assert main(["prompt=a red house", "seed=143", *SETTLED]) == 143
    assert "--resume x" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        main(["prompt=a red house", "seed=13", *SETTLED])


def test_ctrl_c_before_the_training(monkeypatch, capsys):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(preflight, "check", interrupt)
    assert main(["prompt=a red house", *SETTLED]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_dry_run_prints_the_configuration_and_starts_nothing(runs, capsys, elsewhere):
    assert main(["prompt=a red house", "dry_run=true", "train.steps=7", *SETTLED]) == 0
    shown = capsys.readouterr().out
    printed = yaml.safe_load(shown)
    assert printed["prompt"] == "a red house"
    assert printed["train"]["steps"] == 7
    assert "# run directory: outputs/nfsd/<prompt>/<time>" in shown
    assert runs == []
    assert list(elsewhere.iterdir()) == []


def test_cfg_prints_what_hydra_composed(runs, capsys):
    assert main(["--config", "csd", "--cfg", "job", "prompt=it's, {a}", "prior=auto"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["prompt"], printed["distill"]["method"], printed["prior"]["name"]) == ("it's, {a}", "csd", "shapes")
    assert runs == []


def test_a_run_is_repeated_from_its_config(runs, elsewhere):
    assert main(["prompt=a red house", "run_dir=first", "seed=3", *SETTLED]) == 0
    assert main(["--config", "first/config.yaml", "run_dir=second"]) == 0
    assert main(["--config", "first/config.yaml", "seed=4"]) == 0
    (first, _), (second, _), (third, _) = runs
    assert second == first.replace(run_dir=str(elsewhere / "second"))
    assert third == first.replace(run_dir=third.run_dir, seed=4)
    assert Path(third.run_dir).is_relative_to(elsewhere / "outputs/nfsd")


def test_resume(runs, capsys, elsewhere):
    assert main(["prompt=a red house", "run_dir=first", *SETTLED]) == 0
    assert main(["--resume", "first", "train.steps=8"]) == 2
    assert "first: holds no checkpoint" in error_line(capsys)
    (elsewhere / "first" / "checkpoints").mkdir()
    (elsewhere / "first" / "checkpoints" / "step-000005.json").write_text("{}")
    assert main(["--resume", "first", "train.steps=8"]) == 0
    config, resume = runs[-1]
    assert (config.train.steps, config.prompt, Path(config.run_dir)) == (8, "a red house", elsewhere / "first")
    assert resume == elsewhere / "first"
    assert main(["--resume", "first", "distill=sds"]) == 2
    assert "--config configs/nfsd.yaml" in error_line(capsys)


def test_a_run_that_is_done_is_left_as_it_is(runs, capsys, elsewhere):
    assert main(["prompt=a red house", "run_dir=first", *SETTLED]) == 0
    (elsewhere / "first" / "checkpoints").mkdir()
    (elsewhere / "first" / "checkpoints" / "step-000005.json").write_text("{}")
    (elsewhere / "first" / "mesh.glb").touch()
    path = elsewhere / "first" / "summary.json"
    summary = json.loads(path.read_text()) | {"exported": ["mesh.glb"]}
    path.write_text(json.dumps(summary))
    before = len(runs)
    assert main(["--resume", "first"]) == 0
    assert "first: is done; more steps: --resume first train.steps=N" in capsys.readouterr().out
    assert len(runs) == before and json.loads(path.read_text()) == summary
    later = path.stat().st_mtime + 10
    os.utime(elsewhere / "first" / "config.yaml", (later, later))  # edited since
    assert main(["--resume", "first"]) == 0
    before += 1
    assert len(runs) == before
    path.write_text(json.dumps(summary))
    os.utime(path, (later + 10, later + 10))
    for change in (["export.resolution=64"], [f"train.steps={summary['steps'] + 1}"]):
        assert main(["--resume", "first", *change]) == 0
        before += 1
        assert len(runs) == before
        path.write_text(json.dumps(summary))
        os.utime(path, (later + 10, later + 10))
    (elsewhere / "first" / "mesh.glb").unlink()  # is made again
    (elsewhere / "first" / "config.yaml").write_text(runs[0][0].to_yaml())
    assert main(["--resume", "first"]) == 0 and len(runs) == before + 1


def _table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_sweep_continues_when_a_job_fails(runs, capsys, elsewhere):
    assert main(["--config", "configs/nfsd.yaml", "-m", "seed=0,1", "distill=sds,nfsd", "prompt=a red house"]) == 1
    (folder,) = (elsewhere / "outputs" / "nfsd").iterdir()
    assert folder.name.startswith("sweep-")
    rows = _table(folder)
    assert [(row["seed"], row["distill"], row["status"]) for row in rows] == [
        ("0", "sds", "done"),
        ("0", "nfsd", "done"),
        ("1", "sds", "failed"),
        ("1", "nfsd", "done"),
    ]
    assert rows[2]["reason"] == "diverged: the scene is empty"
    assert rows[0]["seconds"] == "1.5"
    names = [Path(row["run_dir"]).name for row in rows]
    assert names == ["0-distill=sds,seed=0", "1-distill=nfsd,seed=0", "2-distill=sds,seed=1", "3-distill=nfsd,seed=1"]
    assert [Path(config.run_dir).name for config, _ in runs] == names
    assert json.loads((folder / names[2] / "summary.json").read_text())["status"] == "failed"
    assert compose(folder / names[3] / "config.yaml").seed == 1
    assert "4 jobs: 3 done, 1 failed" in capsys.readouterr().out


def test_generators_in_a_sweep_and_a_dry_run(runs, capsys):
    assert main(["-m", "generator=latent,image,nerf", "prompt=a red house", "run_dir=s", *SETTLED]) == 0
    assert [config.generator.type for config, _ in runs] == ["latent", "image", "nerf"]
    assert [config.train.learning_rate.given().keys() for config, _ in runs][:2] == [{"latent"}, {"image"}]
    capsys.readouterr()
    assert main(["--config", "configs/nfsd_2d.yaml", "prompt=a red house", "dry_run=true", *SETTLED]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["generator"] == {"type": "latent", "initial_std": 0.1}
    assert "# run directory: outputs/nfsd_2d/<prompt>/<time>" in shown


def test_a_sweep_survives_bugs_and_combinations_that_do_not_fit(runs, capsys):
    swept = ["seed=13,2", "prompts.perp_neg=true,false", "prompts.view_dependent=true,false"]
    assert main(["-m", *swept, "prompt=a red house", "run_dir=all of them", *SETTLED]) == 1
    rows = _table(Path("all of them"))
    assert [row["status"] for row in rows] == [*["failed"] * 4, "done", "failed", "done", "done"]
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert rows[5]["reason"].startswith("prompts.perp_neg=true: moves away from view words")


def test_a_value_that_fits_no_job_is_refused_before_any_begins(runs, capsys, elsewhere):
    assert main(["-m", "seed=3,2", "train.steps=5,-5", "prompt=a red house", "run_dir=s", *SETTLED]) == 2
    assert error_line(capsys) == "error: train.steps=-5: must be greater than 0"
    assert runs == [] and list(elsewhere.iterdir()) == []


def test_a_dry_run_of_a_sweep_lists_its_jobs_and_writes_nothing(runs, capsys, elsewhere):
    arguments = ["-m", "seed=3,2", "distill=sds,nfsd", "prompt=a red house", "run_dir=s", "dry_run=true", *SETTLED]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["job", "seed", "distill"]
    assert [line.split()[:4] for line in lines[1:5]] == [
        ["0", "3", "sds", "pending"],
        ["1", "3", "nfsd", "pending"],
        ["2", "2", "sds", "pending"],
        ["3", "2", "nfsd", "pending"],
    ]
    assert runs == [] and list(elsewhere.iterdir()) == []


def test_the_same_sweep_goes_on_with_what_is_missing(runs, capsys):
    arguments = ["-m", "seed=143,4", "prompt=a red house", "run_dir=s", *SETTLED]
    assert main(arguments) == 143
    assert [row["status"] for row in _table(Path("s"))] == ["interrupted", "pending"]
    capsys.readouterr()
    assert main(["-m", "seed=143,5", "prompt=a red house", "run_dir=s", *SETTLED]) == 2
    assert "run_dir=s: holds a sweep of other jobs" in error_line(capsys)
    assert [config.seed for config, _ in runs] == [143]
    runs.clear()
    assert main(arguments) == 143  # the fake run is interrupted again
    assert [config.seed for config, _ in runs] == [143]


def test_the_prompts_of_a_sweep_come_from_a_file(runs, capsys, elsewhere):
    (elsewhere / "prompts.txt").write_text('# houses\na "red", pink house\n\n  a pink house \n')
    assert main(["-m", "prompt=@prompts.txt", "run_dir=s", *SETTLED]) == 0
    assert [config.prompt for config, _ in runs] == ['a "red", pink house', "a pink house"]
    capsys.readouterr()
    assert main(["-m", "prompt=@nowhere.txt", *SETTLED]) == 2
    assert "prompt=@nowhere.txt: cannot be read" in error_line(capsys)


def test_prompts_of_a_sweep(runs):
    arguments = ["-m", "prompt=\"a red, house\",a 'pink' house", "machine=auto,cpu", "prior=auto", "run_dir=s"]
    assert main(arguments) == 0
    assert [config.prompt for config, _ in runs] == ["a red, house", "a 'pink' house"]
    assert [row["prompt"] for row in _table(Path("s"))] == ["a red, house", "a 'pink' house"]


def test_the_runs_of_a_sweep_start_from_another_run(runs, elsewhere):
    assert main(["prompt=a red house", "run_dir=first", *SETTLED]) == 0
    (elsewhere / "first" / "checkpoints").mkdir()
    (elsewhere / "first" / "checkpoints" / "step-000005.json").write_text("{}")
    assert main(["-m", "seed=3,4", "prompt=a pink house", "source_run=first", "run_dir=s", *SETTLED]) == 0
    assert [(config.seed, config.source_run) for config, _ in runs[1:]] == [(3, "first"), (4, "first")]


def test_an_interrupted_sweep_stops(runs):
    assert main(["-m", "seed=0,143,2", "prompt=a red house", "run_dir=s", *SETTLED]) == 143
    assert [row["status"] for row in _table(Path("s"))] == ["done", "interrupted", "pending"]


def test_a_sweep_from_a_folder_with_configs_of_its_own(runs, elsewhere):
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "mine.yaml").write_text("defaults: [nfsd, _self_]\ntrain: {steps: 9}\n")
    for name, steps in (("configs/sds.yaml", 600), ("configs/mine.yaml", 9)):
        assert main(["--config", name, "-m", "seed=3,4", "prompt=a red house", *SETTLED]) == 0
        assert [(config.seed, config.train.steps) for config, _ in runs[-2:]] == [(3, steps), (4, steps)]


def test_a_sweep_over_a_runs_configuration(runs):
    assert main(["prompt=a red house", "run_dir=first", *SETTLED]) == 0
    assert main(["--config", "first/config.yaml", "-m", "seed=5,6", "run_dir=s"]) == 0
    assert [config.seed for config, _ in runs[1:]] == [5, 6]


def test_help_names_the_keys_and_choices(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    words = ["prompt=", "--resume", "-m", "distill.guidance_scale", "sd21-768", "nvidia", "csd", "run_dir", *COMMANDS]
    words += ["prior.vae", "prior.layout", "prior.offline", "prompts.views", "prompts.perp_neg", "distill.weighting"]
    words += ["distill.guidance_factor", "sigma_over_alpha", "lowmem", "128 + n"]
    assert [word for word in words if word not in shown] == []
    assert max(map(len, shown.replace(str(config_root()), "").splitlines())) <= 100
    assert "scripts/" not in shown  # which an installed wheel lacks


def test_every_setting_that_help_names_exists(capsys):
    main(["--help"])
    named = set(re.findall(r"\b([a-z_]+\.[a-z_.]+)=", capsys.readouterr().out))
    assert len(named) > 15 and named <= set(known_keys())


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nfsd3d {nfsd3d.__version__}\n"


def test_doctor(capsys, elsewhere):
    assert main(["doctor", "--json", "found.json"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((elsewhere / "found.json").read_text())
    assert found["packages"]["torch"] in shown
    assert found["auto"]["prior"] == "shapes (machine=cpu)"


def test_run_directories_of_one_second_differ(elsewhere):
    config = compose("nfsd", ["prompt=a red house", *SETTLED])
    directories = {directory.claim_run_dir(config, "nfsd").run_dir for _ in range(5)}
    assert len(directories) == 5
    assert all(Path(directory).is_dir() for directory in directories)


@pytest.mark.parametrize("given", [(), ("run_dir=new/below/run",)])
def test_a_run_that_fails_before_it_writes_leaves_no_folder(elsewhere, given):
    (elsewhere / "kept").mkdir()
    config = compose("nfsd", ["prompt=a red house", *SETTLED, *given])
    with pytest.raises(ZeroDivisionError), directory.claimed(config, "nfsd") as claimed:
        assert Path(str(claimed.run_dir)).is_dir()
        raise ZeroDivisionError
    assert [path.name for path in elsewhere.iterdir()] == ["kept"]
    with pytest.raises(ZeroDivisionError), directory.claimed(config.replace(run_dir="kept"), "nfsd"):
        raise ZeroDivisionError
    assert (elsewhere / "kept").is_dir()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A red & white, dotted mushroom!", "a-red-white-dotted-mushroom"),
        ("Würfel/../x", "wurfel-x"),
        ("x" * 60, "x" * 60),
    ],
)
def test_slug(text, name):
    assert directory.slug(text) == name


def test_slugs_that_leave_something_out_differ():
    for one, other in (("蘑菇", "房子"), ("x" * 99, "x" * 98), ("a red 蘑菇", "a red 房子")):
        first, second = directory.slug(one), directory.slug(other)
        assert first != second and max(map(len, (first, second))) <= 60
    assert directory.slug("蘑菇").isalnum() and directory.slug("a red 蘑菇").startswith("a-red-")


def test_an_unwritable_run_directory(monkeypatch, elsewhere):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"run_dir=here: cannot be written \(Permission denied\)"):
        directory.claim_folder(Path("here"))


def test_pythons_collector_leaves_alone_what_imports_make():
    """Its searches among half a million objects of libraries were a fifth of a start, and a second of an exit."""
    program = (
        "import gc\nfrom nfsd3d.__main__ import main\nmain(['--version'])\n"
        "print(gc.get_threshold()[0] >= 10_000, gc.get_freeze_count() > 10_000)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True True"
