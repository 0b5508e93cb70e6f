"""When networks are compiled, at which shapes, and what happens where that fails."""

from pathlib import Path

import pytest

from nfsd3d.config import compose
from nfsd3d.errors import InputError
from nfsd3d.prior.resolve import EMBEDDED
from nfsd3d.prior.stable_diffusion import StableDiffusionPrior
from nfsd3d.train.build import build_parts
from nfsd3d.train.compilation import cache_folder, compile_prior, compiled_rows, wants_compilation
from nfsd3d.train.pieces import Pieces


def test_auto_is_stable_diffusion_on_cuda():
    wanted = {
        (machine, prior, choice): wants_compilation(
            compose("nfsd", ["prompt=x", f"machine={machine}", f"prior={prior}", f"machine.compile={choice}"])
        )
        for machine in ("cpu", "cuda")
        for prior in ("shapes", "sd21")
        for choice in ("auto", "true", "false")
    }
    assert {case for case, yes in wanted.items() if yes and case[2] == "auto"} == {("cuda", "sd21", "auto")}
    assert all(yes == (case[2] == "true") for case, yes in wanted.items() if case[2] != "auto")


def test_the_shapes_are_those_of_the_steps():
    assert compiled_rows(views=1, most=3, at_once=None) == [1, 2, 3]
    assert compiled_rows(views=4, most=12, at_once=None) == [4, 8, 12]
    assert compiled_rows(views=4, most=12, at_once=1) == [1]
    assert compiled_rows(views=4, most=12, at_once=8) == [4, 8]


def test_the_cache_outlives_a_restart(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "nfsd3d" / "inductor"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/nfsd3d/inductor")


@pytest.fixture
def compiled_with(configure, monkeypatch):
    """(choice, what compiled networks do) -> the prior, the compilations asked for, and what was said."""
    asked = []
    original = StableDiffusionPrior.compile

    def compiling(self, *, row_unit, unet=True, backend="inductor"):
        asked.append((row_unit, unet))
        original(self, row_unit=row_unit, unet=unet, backend="eager")

    monkeypatch.setattr(StableDiffusionPrior, "compile", compiling)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")

    def result(choice, failing=False, **changes):
        config = configure(**{"machine.compile": choice, **changes})
        parts, said = build_parts(config, StableDiffusionPrior.load(EMBEDDED)), []

        def run(*arguments):
            if failing:
                raise RuntimeError("no C compiler\nand more")

        monkeypatch.setattr("nfsd3d.train.compilation.warm_up", run)
        compile_prior(config, parts, Pieces(), said.append)
        return parts.prior, asked, said

    return result


def test_a_run_says_that_it_compiles(compiled_with):
    prior, asked, said = compiled_with(True)
    assert asked == [(2, True)] and prior._compiled_unet is not None
    assert said[0].startswith("compiling the UNet and the encoder") and "s (kept in /somewhere)" in said[1]


def test_nothing_is_compiled_unless_wanted(compiled_with):
    assert compiled_with("auto")[1:] == ([], []) and compiled_with(False)[1:] == ([], [])


def test_vsds_unet_is_left_alone(compiled_with):
    prior, asked, _ = compiled_with(True, **{"distill.method": "vsd"})
    assert asked == [(2, False)] and prior._compiled_unet is None and prior._compiled_encoder is not None


def test_where_compiling_fails_auto_goes_on_and_true_says_why(compiled_with, monkeypatch):
    with pytest.raises(InputError, match=r"machine\.compile=true: no C compiler; set machine\.compile=false"):
        compiled_with(True, failing=True)
    monkeypatch.setattr("nfsd3d.train.compilation.wants_compilation", lambda config: True)
    prior, _, said = compiled_with("auto", failing=True)
    assert prior._compiled_unet is None and "not compiled (no C compiler)" in said[-1]
