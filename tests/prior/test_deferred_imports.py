"""What diffusers' import puts off is not done before a prior is used, and is right when it is asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_RESULTS = ("export.mesh=false", "export.turntable=false", "export.report=false")

PROGRAM = """
import importlib.metadata, sys
original = importlib.metadata.packages_distributions
{first}
from nfsd3d.cli.main import main
assert main(sys.argv[1:]) == 0

from diffusers.utils import import_utils
kind = type(sys.modules["scipy.stats"]).__name__
deferred = kind == "_DeferredModule", "_found" not in vars(import_utils._package_map)
assert importlib.metadata.packages_distributions is original
assert dict(import_utils._package_map) == original() and len(import_utils._package_map) == len(original())

from diffusers import EulerDiscreteScheduler
scheduler = EulerDiscreteScheduler(use_beta_sigmas=True)
scheduler.set_timesteps(5)
import scipy.stats
assert abs(scipy.stats.norm.cdf(0.0) - 0.5) < 1e-12 and type(scipy.stats).__name__ == "module"
print(deferred)
"""


@pytest.mark.parametrize(("first", "expected"), [("", "(True, True)"), ("import scipy.stats", "(False, True)")])
def test_what_is_put_off_is_not_done_before_and_right_after(first: str, expected: str, tmp_path: Path) -> None:
    arguments = ["prompt=a red cube", f"run_dir={tmp_path / 'run'}", "machine=cpu", "train.steps=1", *WITHOUT_RESULTS]
    program = [sys.executable, "-c", PROGRAM.format(first=first), *arguments]
    result = subprocess.run(program, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == expected
