"""What a stranger's file may say: nothing in an experiment, a run or a model folder runs code or reads the environment.

Each file here would call a harmless function, which writes a marker. Neither a run nor a sweep, a dry run or a printed
composition may call it.
"""

import json
import sys
from pathlib import Path

import pytest
from hydra.utils import instantiate

from nfsd3d.api import load_run
from nfsd3d.cli import launch
from nfsd3d.cli.main import main
from nfsd3d.config.compose import compose, compose_experiment, load_run_config
from nfsd3d.config.experiments import find_experiment
from nfsd3d.errors import InputError

SETTLED = ["machine=cpu", "backend=numba", "prior=shapes"]
BEGIN = "defaults: [nfsd, _self_]\n"
WAYS = {
    "a run": [],
    "a dry run": ["dry_run=true"],
    "a sweep": ["-m", "seed=0,1"],
    "a dry sweep": ["-m", "seed=0,1", "dry_run=true"],
    "--cfg job": ["--cfg", "job"],
    "--cfg all": ["--cfg", "all"],
}

MARKER = """
from pathlib import Path

def touch(*_, **__):
    Path(__file__).with_name("called").touch()
    return {}
"""
TARGET = "{_target_: marker_of_a_test.touch}"

# name: files by name, and what the message names
DOORS = {
    "a callback": ({"x": f"{BEGIN}hydra: {{callbacks: {{mine: {TARGET}}}}}"}, "hydra.callbacks.mine._target_"),
    "a logging factory": (
        {"x": BEGIN + "hydra: {job_logging: {handlers: {h: {(): marker_of_a_test.touch}}}}"},
        "hydra.job_logging.handlers.h.()",
    ),
    "Hydra's logging": ({"x": BEGIN + "hydra: {hydra_logging: {root: {level: DEBUG}}}"}, "hydra.hydra_logging.root"),
    "a launcher's class": ({"x": f"{BEGIN}hydra: {{launcher: {TARGET}}}"}, "hydra.launcher._target_"),
    "a sweeper's class": ({"x": f"{BEGIN}hydra: {{sweeper: {TARGET}}}"}, "hydra.sweeper._target_"),
    "a sampler's class": ({"x": f"{BEGIN}hydra: {{sweeper: {{sampler: {TARGET}}}}}"}, "hydra.sweeper.sampler._target_"),
    "a shell line": ({"x": BEGIN + "hydra: {launcher: {setup: [touch called]}}"}, "hydra.launcher.setup"),
    "batch parameters": (
        {"x": BEGIN + "hydra: {launcher: {additional_parameters: {wrap: touch called}}}"},
        "hydra.launcher.additional_parameters.wrap",
    ),
    "an expression": ({"x": BEGIN + "hydra: {launcher: {pre_dispatch: touch()}}"}, "hydra.launcher.pre_dispatch"),
    "a line break in a value": ({"x": BEGIN + 'hydra: {launcher: {partition: "a\\nb"}}'}, "hydra.launcher.partition"),
    "an option in a value": ({"x": BEGIN + "hydra: {launcher: {partition: --wrap}}"}, "hydra.launcher.partition"),
    "the environment": ({"x": BEGIN + "hydra: {job: {env_set: {PYTHONPATH: x}}}"}, "hydra.job.env_set.PYTHONPATH"),
    "a copied environment": ({"x": BEGIN + "hydra: {job: {env_copy: [HOME]}}"}, "hydra.job.env_copy"),
    "another directory": ({"x": BEGIN + "hydra: {sweep: {dir: elsewhere}}"}, "hydra.sweep.dir"),
    "a search path": ({"x": BEGIN + "hydra: {searchpath: [pkg://marker_of_a_test]}"}, "hydra.searchpath"),
    "a job's settings": ({"x": BEGIN + "hydra: {sweeper: {params: {hydra.verbose: true}}}"}, "params.hydra.verbose"),
    "a reference": ({"x": BEGIN + "hydra: {launcher: {name: '${oc.env:HOME}'}}"}, "oc.env"),
    "a whole reference": ({"x": BEGIN + "hydra: ${prompts}"}, "hydra=${prompts}"),
    "no group": ({"x": BEGIN + "hydra: [1]"}, "hydra=[1]"),
    "an anchor": ({"x": f"{BEGIN}train: &a {{callbacks: {{mine: {TARGET}}}}}\nhydra: {{<<: *a}}"}, "hydra.callbacks"),
    "a package": (
        {"x": "defaults: [nfsd, cameras@hydra.callbacks: bad, _self_]", "cameras/bad": f"mine: {TARGET}"},
        "hydra.callbacks.mine._target_",
    ),
    "a package in a header": (
        {"x": "defaults: [nfsd, mine, _self_]", "mine": f"# @package hydra.callbacks\nmine: {TARGET}"},
        "mine.yaml: @package hydra.callbacks",
    ),
    "a global package": (
        {"x": "defaults: [nfsd, a/b, _self_]", "a/b": f"# @package _global_\nhydra: {{callbacks: {{m: {TARGET}}}}}"},
        "hydra.callbacks.m._target_",
    ),
    "a package cut out": (
        {"x": "defaults: [nfsd, 'a@_global_xhydra.callbacks': b, _self_]", "a/b": f"m: {TARGET}"},
        "hydra.callbacks.m._target_",
    ),
    "a package put together": (
        {"x": "defaults: [nfsd, 'd@hy_group_ra.callbacks': b, _self_]", "d/b": f"m: {TARGET}"},
        "hydra.callbacks.m._target_",
    ),
    "a sweep's overrides": (
        {"x": "defaults: [nfsd, 'd@_global_xhydra.overrides': b, _self_]", "d/b": "task: [+hydra.job.env_set.A=b]"},
        "hydra.overrides.task",
    ),
    "a job's name": (
        {"x": "defaults: [nfsd, 'd@_global_xhydra.job': b, _self_]", "d/b": 'name: "a\\ntouch called"'},
        "hydra.job.name",
    ),
    "the whole file": ({"x": f"# @package hydra.callbacks\n{BEGIN}m: {TARGET}"}, "x.yaml: @package hydra.callbacks"),
    "a file that a file names": (
        {"x": "defaults: [y, _self_]", "y": f"{BEGIN}hydra: {{callbacks: {{mine: {TARGET}}}}}"},
        "y.yaml: hydra.callbacks.mine._target_",
    ),
    "an optional file": (
        {"x": "defaults: [nfsd, optional a: y, _self_]", "a/y": f"hydra: {{callbacks: {{mine: {TARGET}}}}}"},
        "a/y.yaml: hydra.callbacks.mine._target_",
    ),
    "a launcher of its own": (
        {"x": "defaults: [nfsd, override hydra/launcher: y, _self_]", "hydra/launcher/y": TARGET},
        "hydra/launcher/y.yaml",
    ),
    "a launcher in place of Hydra's": ({"x": BEGIN, "hydra/launcher/basic": TARGET}, "hydra/launcher/basic.yaml"),
    "a sweeper in place of Hydra's": ({"x": BEGIN, "hydra/sweeper/basic": TARGET}, "hydra/sweeper/basic.yaml"),
    "Hydra's settings in place of its own": (
        {"x": BEGIN, "hydra/config": f"callbacks: {{m: {TARGET}}}"},
        "hydra/config",
    ),
    "callbacks in a group": (
        {"x": "defaults: [nfsd, override hydra/callbacks: y, _self_]", "hydra/callbacks/y": f"m: {TARGET}"},
        "hydra/callbacks/y.yaml",
    ),
    "another launcher": ({"x": "defaults: [nfsd, override hydra/launcher: joblib, _self_]"}, "hydra/launcher=joblib"),
    "another logging": (
        {"x": "defaults: [nfsd, override hydra/job_logging: stdout, _self_]"},
        "hydra/job_logging=stdout",
    ),
    "a launcher by a reference": (
        {"x": "defaults: [nfsd, optional a: hydra/job_logging/stdout, '${a}', _self_]"},
        "hydra.job_logging",
    ),
    "a file outside": ({"folder/x": "defaults: [nfsd, ../y, _self_]", "y": "seed: 1"}, "../y"),
    "a group outside": ({"folder/x": "defaults: [nfsd, cameras: ../../y, _self_]", "y": "seed: 1"}, "../y"),
    "a file with its whole path": ({"x": "defaults: [nfsd, //etc/y, _self_]"}, "/etc/y"),
    "a tag": ({"x": BEGIN + "a: !!python/object/apply:marker_of_a_test.touch []"}, "!!python/object/apply"),
    "a tag in a group": (
        {"x": "defaults: [nfsd, override cameras: y, _self_]", "cameras/y": "a: !!python/name:os.system ''"},
        "!!python/name",
    ),
    "a path's tag": (
        {
            "x": "defaults: [nfsd, override cameras: y, _self_]",
            "cameras/y": "a: !!python/object/apply:pathlib.Path [a]",
        },
        "!!python/object/apply:pathlib.Path",
    ),
    "an environment variable": ({"x": BEGIN + "negative_prompt: '${oc.env:HOME}'"}, "add --allow-env"),
    "a nested environment variable": (
        {"x": BEGIN + "negative_prompt: '${oc.select:a,\"${oc.env:HOME}\"}'"},
        "negative_prompt: ${oc.env:...}",
    ),
    "an environment variable in a defaults list": ({"x": "defaults: [nfsd, 'a: ${oc.env:HOME}', _self_]"}, "oc.env"),
    "a resolver by reference": ({"x": BEGIN + "a: oc.env\nnegative_prompt: '${${a}:HOME}'"}, "${${a}:...}"),
    "text that becomes a reference": ({"x": BEGIN + "a: env\nnegative_prompt: '${oc.${a}:HOME}'"}, "${oc.${a}:...}"),
    "decoded text": ({"x": BEGIN + "negative_prompt: '${oc.decode:a}'"}, "${oc.decode:...}"),
    "created values": ({"x": BEGIN + "negative_prompt: '${oc.create:a}'"}, "${oc.create:...}"),
    "Hydra's settings": ({"x": BEGIN + "negative_prompt: '${hydra:runtime.cwd}'"}, "${hydra:...}"),
    "another program's resolver": ({"x": BEGIN + "negative_prompt: '${mine:a}'"}, "${mine:...}"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch, jobs_here) -> Path:
    """An empty folder that is the current one and can be imported from; training is replaced."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "marker_of_a_test.py").write_text(MARKER)
    monkeypatch.setattr(launch, "_train", lambda *_, **__: None)
    yield tmp_path
    sys.modules.pop("marker_of_a_test", None)


def write(folder: Path, files: dict[str, str]) -> Path:
    """Writes the YAML files and returns the first one's path."""
    paths = [folder / f"{name}.yaml" for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return paths[0]


def refusal(arguments: list[str], capsys) -> str:
    """The one line with which a command line ends that exits with 2."""
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_a_call_of_the_target_writes_the_marker(folder):
    instantiate({"_target_": "marker_of_a_test.touch"})
    assert (folder / "called").exists()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_callbacks_of_the_command_line_are_refused_because_nothing_would_call_them(folder, capsys, way):
    target = "+hydra.callbacks.mine._target_=marker_of_a_test.touch"
    assert "has no effect" in refusal(["prompt=a red cube", target, *SETTLED, *way], capsys)
    assert not (folder / "called").exists()


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS.keys())
def test_a_file_says_no_more_than_it_may(folder, capsys, door):
    files, named = door
    path = write(folder, files)
    ways = WAYS.values() if "callbacks" in named else (WAYS["a dry run"], WAYS["a sweep"])
    for way in ways:
        assert named in refusal(["--config", str(path), "prompt=a red cube", *SETTLED, *way], capsys)
        assert not (folder / "called").exists()
        assert not (folder / "outputs").exists()
    assert "marker_of_a_test" not in sys.modules


@pytest.mark.parametrize("names", ["bad,orbit", "orbit,bad"])
@pytest.mark.parametrize("where", ["the file", "the command line"])
def test_the_files_of_one_job_of_a_sweep_say_no_more_than_others(folder, capsys, names, where):
    logging = "{version: 1, root: {handlers: [h]}, handlers: {h: {(): marker_of_a_test.touch}}}"
    params = f"hydra: {{sweeper: {{params: {{cameras: '{names}'}}}}}}" if where == "the file" else ""
    files = {"cameras/bad": "defaults: [orbit, '/d@_global_xhydra.job_logging': b, _self_]", "d/b": logging}
    path = write(folder, {"x": BEGIN + params, **files})
    given = [] if where == "the file" else [f"cameras={names}"]
    assert main(["--config", str(path), "-m", "prompt=a red cube", *SETTLED, *given, "dry_run=true"]) == 2
    assert "error: x.yaml: hydra.job_logging." in capsys.readouterr().err
    assert not (folder / "called").exists()
    assert not (folder / "outputs").exists()


def test_a_file_sets_workers_partitions_and_times(folder, capsys):
    values = "{workers: 4, partition: 'gpu,long', timeout_min: 60, gpus: 1, mem_gb: 1.5}"
    path = write(folder, {"x": f"{BEGIN}hydra: {{launcher: {values}}}"})
    for arguments in ([], ["dry_run=true"], ["--cfg", "all"]):
        assert main(["--config", str(path), "prompt=a red cube", *SETTLED, *arguments]) == 0
    # A partition is for an engine that has it, which the command line chooses.
    line = refusal(["--config", str(path), "-m", "prompt=a red cube", *SETTLED], capsys)
    assert "hydra.launcher.partition: engine local has no such setting; it has engine, workers, threads" in line
    assert not (folder / "sweep").exists()


def test_a_file_sets_the_values_of_the_sweeper_that_is_chosen(folder):
    values = "{params: {seed: '3,4', train.steps: 'range(5,7)'}}"
    path = write(folder, {"x": f"{BEGIN}hydra: {{sweeper: {values}}}"})
    main(["--config", str(path), "-m", "prompt=a red cube", "run_dir=sweep", *SETTLED])
    assert len((folder / "sweep" / "sweep.csv").read_text().splitlines()) == 1 + 4


def test_an_environment_variable_is_read_where_the_command_line_allows_it(folder, capsys, monkeypatch):
    monkeypatch.setenv("A_WORD", "blurry")
    path = write(folder, {"x": f"{BEGIN}negative_prompt: ${{oc.env:A_WORD}}"})
    arguments = ["--config", str(path), "prompt=a red cube", *SETTLED]
    for way in (["--cfg", "job"], ["-m", "seed=0,1", "dry_run=true", "run_dir=sweep"]):
        assert "add --allow-env" in refusal([*arguments, *way], capsys)
        assert main([*arguments, *way, "--allow-env"]) == 0
    allowed = compose_experiment(find_experiment(path, allow_env=True), ["prompt=a red cube", *SETTLED])
    assert allowed.config.negative_prompt == "blurry"
    assert compose("nfsd", ["prompt=x", "seed=${train.steps}", "train.steps=7"]).seed == 7


RUNS = {
    "a hydra block": ("hydra: {launcher: {n_jobs: 2}}", "hydra: not a setting of a run"),
    "a resolver": ("more: ${cpu_precision:}", "${cpu_precision:...}"),
    "an environment variable": ("more: ${oc.env:HOME}", "${oc.env:...}"),
    "a defaults list": ("defaults: [nfsd, _self_]", "has a defaults list"),
}


@pytest.mark.parametrize("content", RUNS.values(), ids=RUNS.keys())
def test_a_run_holds_values_only(folder, capsys, content):
    lines, named = content
    run = folder / "run"
    write(folder, {"run/config": compose("nfsd", ["prompt=a red cube", *SETTLED]).to_yaml() + lines})
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-000001.json").write_text("{}")
    for arguments in (["--resume", "run"], ["prompt=a red cube", *SETTLED, "source_run=run"], ["export", "run"]):
        assert named in refusal(arguments, capsys)
    for read in (load_run_config, load_run):
        with pytest.raises(InputError) as caught:
            read(run)
        assert named in str(caught.value)
    if "defaults" not in named:
        for way in WAYS.values():
            assert named in refusal(["--config", "run/config.yaml", *way, "--allow-env"], capsys)
    assert not (folder / "outputs").exists()


def test_a_run_is_read_without_files_beside_it(folder, capsys):
    config = compose("nfsd", ["prompt=a red cube", *SETTLED])
    path = write(folder, {"run/config": config.to_yaml(), "run/hydra/launcher/basic": TARGET})
    assert "hydra/launcher/basic.yaml" in refusal(["--config", str(path), "-m", "seed=1,2"], capsys)
    assert not (folder / "called").exists()


def test_a_model_folder_is_data(folder, capsys):
    for name in ("unet", "vae", "text_encoder", "scheduler"):
        write(folder, {f"model/{name}/config": TARGET})
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        values = {
            "_target_": "marker_of_a_test.touch",
            "hydra": {"a": "${oc.env:HOME}"},
            "auto_map": {"AutoModel": "m.M"},
        }
        (folder / "model" / name / file).write_text(json.dumps(values))
    main(["prompt=a red cube", "prior=sd15", *SETTLED[:2], "prior.model=model", "dry_run=true"])
    assert not (folder / "called").exists() and "HOME" not in capsys.readouterr().out


def test_folders_of_the_command_line_are_read_by_the_same_rules(folder, capsys):
    write(folder, {"more/hydra/launcher/mine": TARGET})
    for searched in (f"hydra.searchpath=[{folder}/more]", f"hydra.searchpath=[file://{folder}/more]"):
        arguments = ["prompt=a red cube", *SETTLED, searched]
        line = refusal([*arguments, "-m", "hydra/launcher=mine"], capsys)
        assert "hydra/launcher/mine.yaml" in line and not (folder / "called").exists()


def test_other_programs_in_the_process_keep_their_search_path(folder):
    import hydra

    write(folder, {"app": "hydra: {job: {env_set: {A: b}}}\nsize: 3"})
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        assert compose("nfsd", ["prompt=x", *SETTLED]).distill.method == "nfsd"
        assert hydra.compose("app", return_hydra_config=True).hydra.job.env_set.A == "b"
