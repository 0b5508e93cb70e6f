"""A run in a notebook: its progress in place, itself as HTML, an error on one line."""

import re

import numpy as np
import pytest
from tiny_runs import OFF

from nfsd3d.api import load_run
from nfsd3d.callbacks.callback import Callback
from nfsd3d.callbacks.dispatch import CallbackFailed
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.train.interrupts import Interrupted
from nfsd3d.train.run import train_and_export
from nfsd3d.viewer import notebook
from nfsd3d.viewer.notebook import NotebookProgress, in_notebook


@pytest.fixture
def shown(monkeypatch):
    """What the output of a cell shows, one after the other."""
    outputs = []
    monkeypatch.setattr(notebook, "_open", lambda: outputs.append)
    monkeypatch.setattr(notebook, "REFRESH_S", 0.0)
    return outputs


def test_the_output_is_updated_in_place(configure, console, tiny_prior, shown):
    train_and_export(configure(**OFF), console=console, callbacks=[NotebookProgress()])
    assert [re.search(r"step (\d) of 6, .* left", html)[1] for html in shown[:-1]] == list("123456")
    assert [re.search(r'value="([\d.]+)"', html)[1] for html in shown[:3]] == ["0.1667", "0.3333", "0.5000"]
    assert "opacity" not in shown[0] and "opacity" in shown[-1] and "</progress> done" in shown[-1]
    assert "data:image/jpeg" not in shown[1] and 'alt="views after step 6"' in shown[-1]


def test_an_interrupted_run_says_so(configure, console, tiny_prior, shown):
    class Stop(Callback):
        def on_start(self, run):
            run.controls.stop()

    with pytest.raises(Interrupted):
        train_and_export(configure(**OFF), console=console, callbacks=[NotebookProgress(), Stop()])
    assert "interrupted: SIGINT after step 0" in shown[-1]


def test_a_run_is_html(configure, console, tiny_prior):
    run_dir = train_and_export(configure(**OFF, prompt="a red cube"), console=console)
    html = load_run(run_dir)._repr_html_()
    assert "<b>a red cube</b>" in html and "NFSD · seed 0 · 6 of 6 steps" in html and "status" not in html
    assert html.count("<img") == 1 and str(run_dir) in html  # the newest preview
    (run_dir / "summary.json").unlink()
    assert "step 6 · status: unfinished" in load_run(run_dir)._repr_html_()


def test_nothing_is_a_notebook_here():
    assert not in_notebook()


def test_errors_are_one_line(monkeypatch):
    monkeypatch.delenv("NFSD3D_DEBUG", raising=False)
    assert InputError("seed=-1: must\nbe 0")._render_traceback_() == ["InputError: seed=-1: must be 0"]
    assert RunFailed("diverged")._render_traceback_() == ["RunFailed: diverged"]
    monkeypatch.setenv("NFSD3D_DEBUG", "1")
    assert len(InputError("x")._render_traceback_()) == 2


def test_the_error_of_a_callback_has_its_traceback():
    try:
        try:
            np.zeros(1)[3]
        except IndexError as error:
            raise CallbackFailed("Mine.on_step") from error
    except CallbackFailed as failed:
        lines = failed._render_traceback_()
    assert "np.zeros(1)[3]" in "".join(lines) and lines[-1] == "CallbackFailed: Mine.on_step"
