"""``nfsd3d compare``: jobs, their records, resumption, and a whole small comparison."""

import json
import os
from dataclasses import asdict, replace

import pytest
import yaml
from PIL import Image

from nfsd3d.cli.main import main
from nfsd3d.compare import cost, records, workers
from nfsd3d.compare.contact_sheet import write_sheet
from nfsd3d.compare.jobs import SAMPLE_STEPS, perform, plan_jobs
from nfsd3d.compare.suite import TIERS, load_suite, overrides_of, tier_file
from nfsd3d.config.compose import compose
from nfsd3d.distill.methods import METHODS
from nfsd3d.errors import InputError
from nfsd3d.evaluate.classifier.model import Classifier
from nfsd3d.jobs.cores import shares, usable_cores
from nfsd3d.runs import lock
from nfsd3d.runs.process import start_time
from nfsd3d.train.build import build_parts
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


def planned(path, **options):
    return plan_jobs(load_suite(path), "small", oracle_fit=options.pop("oracle_fit", False))


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
    records.append(path, replace(record, row="SDS"))
    assert records.read(path) == ([record, replace(record, row="SDS")], 1)


def test_an_interrupted_comparison_resumes(tier, tmp_path, capsys, monkeypatch):
    """Two methods, one prompt, the shipped prior; one worker, so that there is one start-up."""
    path = tier()
    call = ["compare", "--tier", str(path), "--output", str(tmp_path / "out"), "--prompts", "1", "--jobs", "1"]
    assert main([*call, "--json", str(tmp_path / "numbers.json")]) == 0
    printed = capsys.readouterr().out
    assert "small: 5 jobs, 0 done, 5 to do" in printed and "5 of 5 jobs done" in printed
    assert "| NFSD | 1 |" in printed and "| SDS | NFSD | 1 |" in printed
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["rows"]["SDS"]["minus"] == "NFSD" and numbers["done"] == 5

    found, unreadable = records.read(tmp_path / "out/results.jsonl")
    assert unreadable == 0 and len(found) == 5
    assert str(tmp_path) not in (tmp_path / "out/results.jsonl").read_text()
    by_name = {(record.row, record.equal): record for record in found}
    assert by_name["SDS", False].evaluations == 2 * 2 * 4
    assert by_name["the prior's samples, s = 3", False].evaluations == 2 * 2 * SAMPLE_STEPS
    nfsd = by_name["NFSD", False]
    assert len(nfsd.score["margins"]) == 2 and nfsd.score["margin"] == pytest.approx(
        sum(nfsd.score["margins"]) / 2, abs=1e-3
    )
    with Image.open(tmp_path / "out" / nfsd.image) as strip:
        assert strip.size == (128, 64)
    with Image.open(tmp_path / "out/small.jpg") as sheet:
        assert sheet.width > 4 * 128
    assert not list((tmp_path / "out/runs").iterdir())

    # A job done again in this process gives the same numbers.
    job = next(job for job in planned(path) if job.row == "NFSD" and not job.equal)
    again = perform(job, tmp_path / "again", tmp_path / "again", Classifier.load(), keep=True)
    assert again.score == nfsd.score and again.key == nfsd.key
    assert list((tmp_path / "again/runs").rglob("*.safetensors"))

    # Nothing is done twice; results of other weights count for nothing.
    monkeypatch.setattr(workers, "run_jobs", lambda *arguments, **options: pytest.fail("done before"))
    assert main(call) == 0
    assert "5 done, 0 to do" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({**line, "prior": "other"}) + "\n" for line in lines))
    assert main([*call, "--results", str(tmp_path / "other.jsonl"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "5 jobs, 0 done, 5 to do" in printed and "5 results" in printed and "other weights" in printed
    assert "SDS: 0 of 1 done; 4 steps, " in printed and "minutes with --jobs 1" in printed


def test_failures_are_printed_and_the_jobs_stay_missing(tier, tmp_path, capsys, monkeypatch):
    def fail(missing, output, images, on_result, **options):
        for job in missing:
            on_result(job, "no luck")

    monkeypatch.setattr(workers, "run_jobs", fail)
    assert main(["compare", "--tier", str(tier()), "--output", str(tmp_path / "out"), "--row", "SDS"]) == 1
    printed = capsys.readouterr().out
    assert "nothing is done yet" in printed and "no luck" in printed and "6 jobs failed" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tier", "none"], "no such tier; choose one of 2d, core, full, length, tuning, tuning-3d, variants, wide"),
        (["--tier", "no.yaml"], "--tier no.yaml: cannot be read"),
        (["--tier", str(TIERS / "editing.yaml")], "a suite of edits; nfsd3d evaluate --suite"),
        (["--tier", "core", "--row", "DDS"], "--row DDS: no such row; there are NFSD,"),
        (["--tier", "core", "--jobs", "1000", "--output", "{out}"], "--jobs 1000: there are"),
    ],
)
def test_bad_arguments_exit_2_with_one_line(arguments, message, tmp_path, capsys):
    assert main(["compare", *(text.format(out=tmp_path) for text in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_processes_share_the_cores_without_overlap():
    assert shares([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3]]
    assert shares([3], 1) == [[3]]
    with pytest.raises(InputError, match="--jobs 3: there are 2 cores"):
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
    output = type("Output", (), {})

    def forward(self, z, *arguments, **options):
        output.sample = z.clone().requires_grad_()
        return output

    monkeypatch.setattr(type(parts.prior.unet), "forward", forward)
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
def test_the_directory_of_another_process_is_not_removed(tmp_path, row):
    suite = load_suite(tier_file("core"))
    job = next(job for job in plan_jobs(suite, "core", oracle_fit=True) if job.row == row)
    run_dir = tmp_path / "runs" / job.name
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text("another's")
    owner = replace(lock.Owner.this_process(), pid=os.getppid(), started=start_time(os.getppid()))
    (run_dir / lock.NAME).write_text(json.dumps(asdict(owner)))
    with pytest.raises(InputError, match=f"in use by process {os.getppid()}"):
        perform(job, tmp_path, tmp_path, None)
    assert (run_dir / "metrics.jsonl").read_text() == "another's"
