"""summary.json."""

import json

from nfsd3d.runs.summary import read_summary


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
