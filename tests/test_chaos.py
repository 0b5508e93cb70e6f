"""A short version of scripts/chaos.py: whole runs that something happens to end as runs that nothing happens to."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = "kill,two processes"  # tests/jobs kills workers and controllers


def test_harmed_runs_end_with_the_result_of_those_in_peace(tmp_path):
    options = ["--cases", "2", "--workers", "1", "--kinds", KINDS, "--setups", "NFSD, latents"]
    command = [sys.executable, str(ROOT / "scripts/chaos.py"), *options, "--results", str(tmp_path / "cases.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all | 2 | 2 |" in done.stdout
    assert len((tmp_path / "cases.jsonl").read_text().splitlines()) == 2
