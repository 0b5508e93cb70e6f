"""``nfsd3d compare``: jobs, their records, resumption, and a whole small comparison."""

import dataclasses
import json
import os
import signal
import threading
import time
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from PIL import Image

from nfsd3d.cli.main import main, run_command
from nfsd3d.compare import cost, records
from nfsd3d.compare.collect import collect
from nfsd3d.compare.contact_sheet import write_sheet
from nfsd3d.compare.jobs import PlannedJob, manifest_of, plan_jobs
from nfsd3d.compare.run_job import SAMPLE_STEPS, run_job
from nfsd3d.compare.suite import TIERS, load_suite, overrides_of, tier_file
from nfsd3d.config.compose import compose
from nfsd3d.distill.methods import METHODS
from nfsd3d.errors import InputError
from nfsd3d.jobs.cores import shares, usable_cores
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.manifest import read, write
from nfsd3d.jobs.perform import perform
from nfsd3d.jobs.state import states
from nfsd3d.runs import lock
from nfsd3d.runs.process import start_time
from nfsd3d.train.build import build_parts
from nfsd3d.train.interrupts import stop_requests
from nfsd3d.train.plan import plan_at
from nfsd3d.train.step import step_loss

TIER = {
    "config": "nfsd_2d",
    "prompts": ["a purple snowman", "a blue sphere"],
    "rows": {
        "NFSD": {"train.steps": 4, "train.batch_size": 2},
        "SDS": {"distill": "sds", "train.steps": 4, "train.batch_size": 2},
    },
    "baseline": "NFSD",
    "equal_evaluations": True,
}


@pytest.fixture
def tier(tmp_path):
    """(changes) -> the file of a small tier."""

    def written(**changes):
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({**TIER, **changes}, sort_keys=False))
        return path

    return written


def planned(path, *, oracle_fit=False, **engine):
    return plan_jobs(load_suite(path), "small", EngineSettings(**engine), oracle_fit=oracle_fit)


def test_every_row_has_jobs_and_a_second_one_where_it_costs_more_than_sds(tier):
    found = planned(tier(seeds=[0, 1]))
    assert len({job.key for job in found}) == len({job.name for job in found}) == len(found) == 2 * 2 * 5
    first = [job for job in found if job.prompt == "a purple snowman" and job.seed == 0]
    assert [(t.row, t.kind, t.equal) for t in first] == [
        ("the prior's samples, s = 7.5", "samples", False),
        ("the prior's samples, s = 3", "samples", False),
        ("NFSD", "run", False),
        ("NFSD", "run", True),
        ("SDS", "run", False),
    ]
    assert [job.config.train.steps for job in first[2:]] == [4, 3, 4]
    assert not first[2].config.export.report and first[2].config.prompt == "a purple snowman"
    # The same configuration as from the command line with the same settings.
    settings = [*overrides_of(TIER["rows"]["SDS"]), "export.report=false", "train.tensorboard=false"]
    assert first[4].config == compose("nfsd_2d", ["prompt=a purple snowman", "seed=0", *settings])


def test_jobs_for_a_cluster_have_the_machine_that_its_engine_gives_them(tier):
    path = tier(prompts=["a blue sphere"], rows={"NFSD": {"prior": "shapes"}, "CPU": {"machine": "cpu"}})
    for gpus, device in ((1.0, "cuda"), (None, "cpu")):
        found = planned(path, engine="submitit_slurm", gpus=gpus)
        devices = {job.row: job.config.machine.device for job in found if job.kind == "run"}
        assert devices == {"NFSD": device, "CPU": "cpu"}


def test_the_oracle_fit_of_a_scene_does_not_depend_on_the_prior(tier):
    path = tier(config="nfsd", rows={"NFSD": {}, "SDS": {"distill": "sds"}}, seeds=[0, 1])
    found = planned(path, oracle_fit=True)
    (oracle_fit,) = {(t.recipe, t.prior) for t in found if t.kind == "oracle_fit"}
    assert oracle_fit[1] == "" and sum(t.kind == "oracle_fit" for t in found) == len(TIER["prompts"])
    assert not any(t.config.export.mesh or t.config.export.turntable for t in found)


def test_only_what_decides_a_result_counts_in_its_recipe():
    config = compose("nfsd", ["prompt=a blue sphere"])
    same = config.replace(prompt="a red cube", seed=3, run_dir="x")
    assert records.recipe_of(config, "run") == records.recipe_of(same, "run")
    other = compose("nfsd", ["prompt=a blue sphere", "train.t_max=0.9"])
    assert records.recipe_of(config, "run") != records.recipe_of(other, "run")
    assert records.recipe_of(config, "samples", s=3) == records.recipe_of(other, "samples", s=3)
    sds = compose("sds", ["prompt=a blue sphere"])
    assert records.recipe_of(config, "run") != records.recipe_of(sds, "run")
    assert records.recipe_of(config, "oracle_fit") == records.recipe_of(sds, "oracle_fit")


def test_the_same_weights_that_teach_something_else_are_another_prior(tier, tmp_path):
    from safetensors.torch import save_file

    lora = tmp_path / "lora.safetensors"
    save_file({"unet.x.lora_A.weight": torch.zeros(1, 1)}, lora)
    variants = [{}, {"prior.clock": "flow"}, {"prior.image_size": 32}, {"prior.lora": str(lora)}]
    variants += [{"prior.lora": f"{lora}:0.5"}, {"prior.cache": False}]
    rows = {f"row {i}": {"prior": "shapes", **variant} for i, variant in enumerate(variants)}
    found = {job.row: job.prior for job in planned(tier(rows=rows, baseline="row 0")) if job.kind == "run"}
    assert len(set(found.values())) == 5 and found["row 0"] == found["row 5"]  # the cache changes nothing


def test_a_newer_setting_that_changes_nothing_leaves_a_recipe_as_it_was(monkeypatch):
    constant = compose("nfsd", ["prompt=x", "distill.guidance_factor=1.0"])
    older = constant.to_dict()
    del older["distill"]["guidance_factor"]
    expected = records.recipe_of(constant, "run")
    falling = compose("nfsd", ["prompt=x", "distill.guidance_factor=[[0, 1.0], [1, 0.4]]"])
    assert records.recipe_of(falling, "run") != expected
    monkeypatch.setattr(type(constant), "to_dict", lambda config: older)
    assert records.recipe_of(constant, "run") == expected


def test_a_line_that_a_crash_cut_off_does_not_spoil_the_next(tmp_path):
    values = dict.fromkeys(records.Record.__dataclass_fields__, None)
    record = records.Record(**{**values, "row": "NFSD", "seconds": 1.5})
    path = tmp_path / "new" / "results.jsonl"
    assert records.read(path) == ([], 0)
    records.append(path, record)
    with path.open("a") as stream:
        stream.write('{"row": "SD')
    other = replace(record, row="SDS\u2028")  # which is no end of a line
    records.append(path, other)
    assert records.read(path) == ([record, other], 1)


def test_jobs_on_gpus_that_their_engine_does_not_give_are_refused(tier):
    rows = {"NFSD": {"machine": "cuda", "prior": "sd21", "train.steps": 4}}
    with pytest.raises(InputError, match="gpus=0: ray would give no GPU to jobs with machine=cuda"):
        planned(tier(rows=rows), engine="ray")


@pytest.mark.engines
def test_a_comparison_on_two_workers_and_again(tier, tmp_path, capsys, request):
    """Two methods, one prompt, the shipped prior."""
    path, out = tier(), tmp_path / "out"
    call = ["compare", "--tier", str(path), "--output", str(out), "--prompts", "1", "--workers", "2"]
    assert main([*call, "--json", str(tmp_path / "numbers.json")]) == 0
    printed = capsys.readouterr().out
    assert "small: 5 jobs, 0 done, 5 to do" in printed and "5 of 5 jobs done" in printed
    assert "| NFSD | 1 |" in printed and "| SDS | NFSD | 1 |" in printed
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["rows"]["SDS"]["minus"] == "NFSD" and numbers["done"] == 5

    found, unreadable = records.read(out / "results.jsonl")
    assert unreadable == 0 and len(found) == 5
    assert str(tmp_path) not in (out / "results.jsonl").read_text()
    by_name = {(record.row, record.equal): record for record in found}
    assert by_name["SDS", False].evaluations == 2 * 2 * 4
    assert by_name["the prior's samples, s = 3", False].evaluations == 2 * 2 * SAMPLE_STEPS
    nfsd = by_name["NFSD", False]
    assert len(nfsd.score["margins"]) == 2 and nfsd.score["margin"] == pytest.approx(
        sum(nfsd.score["margins"]) / 2, abs=1e-3
    )
    with Image.open(out / nfsd.image) as strip:
        assert strip.size == (128, 64)
    with Image.open(out / "small.jpg") as sheet:
        assert sheet.width > 4 * 128
    left = {"job.json", "job.log", "summary.json", "thumbnail.jpg"}
    assert {path.name for path in (out / "runs").rglob("*") if path.is_file()} == left
    pids = {json.loads(path.read_text())["pid"] for path in (out / "runs").rglob("job.json")}
    assert len(pids) == 2 and os.getpid() not in pids

    # The states are in the jobs' directories.
    manifest = read(out)
    assert manifest.kind == "compare" and [state.status for _, state in states(manifest)] == ["done"] * 5
    assert main(["sweep", "report", str(out)]) == 0
    page = (out / "sweep.html").read_text()
    assert page.count("<img src=") == 5 and "margin over row" in page
    capsys.readouterr()

    # A job done again in this process gives the same numbers.
    job = next(job for job in planned(path) if job.row == "NFSD" and not job.equal)
    (tmp_path / "again").mkdir()
    again = run_job(PlannedJob.from_json(job.to_json()), tmp_path / "again")
    assert again.score == nfsd.score and again.key == nfsd.key == job.key
    assert list((tmp_path / "again").rglob("*.safetensors"))

    # Nothing is done twice: records that are lost are read from the jobs' directories.
    assert main(call) == 0
    assert "5 done, 0 to do" in capsys.readouterr().out
    before = (out / "results.jsonl").read_text()
    (out / "results.jsonl").unlink()
    request.getfixturevalue("jobs_here")
    assert main(call) == 0
    assert sorted((out / "results.jsonl").read_text().splitlines()) == sorted(before.splitlines())
    assert {json.loads(path.read_text())["attempt"] for path in (out / "runs").rglob("job.json")} == {1}
    capsys.readouterr()

    # Results of other weights count for nothing.
    lines = [json.loads(line) for line in before.splitlines()]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({**line, "prior": "other"}) + "\n" for line in lines))
    assert main([*call, "--results", str(tmp_path / "other.jsonl"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "5 jobs, 0 done, 5 to do" in printed and "5 results" in printed and "other weights" in printed
    assert "SDS: 0 of 1 done; 4 steps, " in printed and "minutes with --workers 2" in printed


@pytest.fixture
def sds(tier, tmp_path) -> list[str]:
    """The command of a comparison in which one job is missing: SDS on one prompt, with 40 steps."""
    settings = {"distill": "sds", "train.steps": 40, "train.batch_size": 1, "train.log_every": 1}
    path = tier(prompts=["a blue sphere"], rows={"SDS": settings}, baseline={})
    for job in planned(path):
        if job.kind != "run":
            fields = {field.name: getattr(job, field.name) for field in dataclasses.fields(records.Job)}
            rest = {"steps": 30, "status": "done", "score": {"margin": 1.0}, "evaluations": 1, "seconds": 1.0}
            more = {"cpu_seconds": 1.0, "image": None, "revision": None}
            records.append(tmp_path / "out" / "results.jsonl", records.Record(**fields, **rest, **more))
    return ["compare", "--tier", str(path), "--output", str(tmp_path / "out"), "--workers", "1"]


def test_an_interrupted_comparison_resumes(sds, tmp_path, capsys, jobs_here):
    def interrupt() -> None:
        while not any(path.stat().st_size for path in tmp_path.rglob("metrics.jsonl")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with stop_requests():  # so that a late signal does not end the tests
        assert main(sds) == 143
        thread.join()
    (job,) = read(tmp_path / "out").jobs
    run_dir = tmp_path / "out" / job.directory
    assert [state.status for _, state in states(read(tmp_path / "out"))] == ["interrupted"]
    assert main([*sds, "--keep-runs"]) == 0
    printed = capsys.readouterr().out
    assert "3 jobs, 2 done, 1 to do" in printed and "resumed after step" in printed
    assert json.loads((run_dir / "job.json").read_text())["attempt"] == 2
    assert [record.steps for record in records.read(tmp_path / "out/results.jsonl")[0]] == [30, 30, 40]
    assert (run_dir / "checkpoints").is_dir() and (run_dir / "image.png").exists()


def test_a_run_that_is_trained_and_could_not_be_scored_is_scored_by_the_next_call(
    sds, tmp_path, capsys, jobs_here, monkeypatch
):
    def fail(*arguments):
        raise ArithmeticError("no luck")

    with monkeypatch.context() as context:
        context.setattr("nfsd3d.compare.run_job.image_score", fail)
        assert main(sds) == 1
    printed = capsys.readouterr().out
    (run_dir,) = (path.parent for path in tmp_path.rglob("metrics.jsonl"))
    assert f"failed: no luck; see {run_dir}/job.log" in printed and "not done: 1 of 3 jobs" in printed
    assert [state.status for _, state in states(read(tmp_path / "out"))] == ["failed"]
    assert main(sds) == 0
    assert "resumed after step 40" in capsys.readouterr().out
    assert len(records.read(tmp_path / "out/results.jsonl")[0]) == 3


def test_a_record_of_another_classifier_does_not_count(sds, tmp_path, monkeypatch):
    job = next(job for job in planned(tmp_path / "small.yaml") if job.kind == "run")
    run_dir, results = tmp_path / job.directory, tmp_path / "results.jsonl"
    run_dir.mkdir(parents=True)
    fields = {name: None for name in records.Record.__dataclass_fields__}
    values = {**fields, **{field.name: getattr(job, field.name) for field in dataclasses.fields(records.Job)}}
    for classifier, count in (("other", 0), (job.classifier, 1)):
        summary = {"status": "done", "record": {**values, "classifier": classifier}}
        (run_dir / "summary.json").write_text(json.dumps(summary))
        collect(job, run_dir, results, keep=False)
        assert len(records.read(results)[0]) == count
        assert (run_dir / "summary.json").exists() == (count == 1)  # without, the job is run again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--tier", "none"],
            "no such tier; choose one of 2d, core, flow-2d, flow-core, full, length, tuning, tuning-3d, variants, wide",
        ),
        (["--tier", "no.yaml"], "--tier no.yaml: cannot be read"),
        (["--tier", str(TIERS / "editing.yaml")], "a suite of edits; nfsd3d evaluate --suite"),
        (["--tier", "core", "--row", "DDS"], "--row DDS: no such row; there are NFSD,"),
        (["--tier", "core", "--workers", "1000", "--output", "{out}/a"], "workers 1000: there are"),
        (["--tier", "core", "--jobs", "1000", "--output", "{out}/a"], "workers 1000: there are"),
        (["--job", "{{}}", "{out}"], "describes no job of a comparison"),
    ],
)
def test_bad_arguments_exit_2_with_one_line(arguments, message, tmp_path, capsys):
    assert main(["compare", *(text.format(out=tmp_path) for text in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_processes_share_the_cores_without_overlap():
    assert shares([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3]]
    assert shares([3], 1) == [[3]]
    with pytest.raises(InputError, match="workers 3: there are 2 cores"):
        shares([0, 1], 3)
    assert usable_cores() == sorted(os.sched_getaffinity(0))


def test_tiers_and_tuning_have_no_prompt_in_common():
    suites = {name: load_suite(tier_file(name)) for name in ("2d", "core", "wide", "length", "full")}
    tuning = set(load_suite(tier_file("tuning")).prompts)
    assert len(tuning) == 4 and not any(tuning & set(suite.prompts) for suite in suites.values())
    assert suites["core"].prompts == suites["wide"].prompts and set(suites["core"].prompts) < set(suites["2d"].prompts)
    assert set(suites["length"].prompts) < set(suites["core"].prompts)
    # What a tier shares with another is done once.
    assert suites["wide"].rows["NFSD"] == suites["core"].rows["NFSD"] == suites["length"].rows["NFSD"]


def test_a_row_with_a_grid_is_many(tier):
    grid = {"distill.guidance_scale": [5, 7.5], "distill.weighting": ["uniform", "sigma2"]}
    suite = load_suite(tier(rows={"SDS": {"distill": "sds", "grid": grid}}, baseline={}))
    assert suite.rows["SDS, guidance_scale 7.5, weighting uniform"] == {
        "distill": "sds",
        "distill.guidance_scale": 7.5,
        "distill.weighting": "uniform",
    }
    assert len(suite.rows) == 4
    with pytest.raises(InputError, match="baseline=SDX: names no row"):
        load_suite(tier(baseline="SDX"))


@pytest.mark.parametrize("method", sorted(name for name, method in METHODS.items() if not method.needs_source))
def test_the_cost_is_what_a_step_really_spends(method, monkeypatch):
    """The predicted cost of a run is its number of evaluations, over all timesteps; here without a network."""
    perp_neg = json.dumps(method in ("sds", "nfsd"))
    settings = ["machine=cpu", "prior=shapes", "train.steps=1", "train.batch_size=2"]
    settings += ["prompts.view_dependent=true", f"prompts.perp_neg={perp_neg}", f"distill={method}"]
    config = compose("nfsd_2d", ["prompt=a blue sphere", *settings])
    parts = build_parts(config)

    def forward(self, z, *arguments, **options):
        return (z.clone().requires_grad_(),)

    monkeypatch.setattr(type(parts.prior.denoiser), "forward", forward)
    for t in (0.03, 0.17, 0.2, 0.555):
        at_t = config.replace(train=config.to_dict()["train"] | {"t_min": t, "t_max": t})
        plan = plan_at(at_t.train, 0.0)
        result = step_loss(parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges, plan, parts.rng)
        assert result.evaluations == pytest.approx(2 * cost.evaluations_per_view(at_t))


def test_the_steps_of_equal_cost_follow_from_the_nfe_of_a_method():
    config = compose("nfsd", ["prompt=a blue sphere", "distill=vsd"])
    assert cost.evaluations_per_view(config) == 4 and cost.equal_steps(config) == config.train.steps // 2
    assert cost.equal_steps(compose("sds", ["prompt=a blue sphere"])) == config.train.steps


def test_a_contact_sheet_has_four_views_of_each_result_and_white_gaps(tmp_path):
    Image.new("RGB", (512, 64), "red").save(tmp_path / "red.jpg")
    write_sheet(tmp_path / "sheet.jpg", ["a blue sphere", "a red cube"], {"NFSD": {"a red cube": tmp_path / "red.jpg"}})
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.size == (110 + 128, 34 + 2 * 128)
        assert sheet.getpixel((110 + 40, 34 + 64)) == (255, 255, 255)
        red, green, _ = sheet.getpixel((110 + 40, 34 + 128 + 40))
    assert red > 240 and green < 20


@pytest.mark.parametrize("row", ["NFSD", "the oracle fit"])
def test_the_directory_of_another_process_is_not_removed(tier, tmp_path, row, monkeypatch):
    monkeypatch.setattr("nfsd3d.jobs.perform.ORPHANED", 0.0)
    path = tier(config="nfsd", prompts=["a blue sphere"], rows={"NFSD": {}}, equal_evaluations=False)
    job = next(job for job in planned(path, oracle_fit=True) if job.row == row)
    manifest = manifest_of([job], tmp_path)
    write(manifest)
    run_dir = manifest.run_dir(manifest.jobs[0])
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text("another's")
    owner = replace(lock.Owner.this_process(), pid=os.getppid(), started=start_time(os.getppid()))
    (run_dir / lock.NAME).write_text(json.dumps(asdict(owner)))
    assert perform(run_command, tmp_path, 0, engine="test") == ""
    assert [state.status for _, state in states(manifest)] == ["running"]
    assert (run_dir / "metrics.jsonl").read_text() == "another's"
