"""summary.json."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nfsd3d.errors import InputError
from nfsd3d.runs.summary import peak_memory_mb, read_summary


def test_a_run_without_summary_has_an_empty_one(tmp_path):
    assert read_summary(tmp_path) == {}


def test_names_of_version_0_1_are_read_as_current_ones(tmp_path):
    pieces = {"from_step": 3, "pixels_at_once": 4096, "rows_at_once": 1, "checkpoint_encoder": True}
    old = {"status": "done", "final_metrics": {"particle_loss": 0.5}, "smaller_pieces": pieces}
    (tmp_path / "summary.json").write_text(json.dumps(old))
    chunks = {"from_step": 3, "rays_per_chunk": 4096, "unet_batch_size": 1, "checkpoint_encoder": True}
    assert read_summary(tmp_path) == {
        "status": "done", "final_metrics": {"lora_loss": 0.5}, "smaller_chunks": chunks,
    }  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\0" * 40,
        b"\xff{}",
        b"[" * 100_000,
        b'{"status": 1}',
        b'{"seconds": "many"}',
        b'{"final_metrics": []}',
        b'{"smaller_pieces": 3}',
    ],
)
def test_a_damaged_summary_is_one_line(tmp_path, content):
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(InputError, match=r"summary\.json is damaged") as raised:
        read_summary(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_folder_in_place_of_the_summary_is_one_line(tmp_path):
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(InputError, match=r"summary\.json cannot be read"):
        read_summary(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells it apart")
def test_the_peak_memory_is_that_of_the_run_alone():
    held = b"x" * (3 << 29)  # 1.5 GB, as of a notebook that starts a run
    code = (
        "from nfsd3d.runs.summary import peak_memory_mb\n"
        "print(peak_memory_mb('cpu')['host'], len(b'x' * (1 << 28)), peak_memory_mb('cpu')['host'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, _, after = map(float, done.stdout.split())
    assert before < 1000 < 1400 < peak_memory_mb("cpu")["host"] and len(held) > 0
    assert 200 < after - before < 400
