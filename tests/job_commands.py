"""Commands for jobs in worker processes, which import them by name."""

import json
import os
import time
from pathlib import Path


def record_gpus(arguments: list[str]) -> None:
    """Writes the GPUs that the job may use into its directory, and ends as a run does; takes a moment."""
    (run_dir,) = [Path(word.partition("=")[2]) for word in arguments if word.startswith("run_dir=")]
    time.sleep(0.3)  # so that another worker gets the next one
    (run_dir / "gpus.txt").write_text(str(os.environ.get("CUDA_VISIBLE_DEVICES")))
    (run_dir / "summary.json").write_text(json.dumps({"status": "done"}))


def record_threads(arguments: list[str]) -> None:
    """Runs a kernel of numba; writes torch's and numba's threads into the job's directory, and ends as a run does."""
    import numba
    import numpy as np
    import torch

    from nfsd3d.generators.nerf.launch_numba import launch

    (run_dir,) = [Path(word.partition("=")[2]) for word in arguments if word.startswith("run_dir=")]
    launch(_double, values := np.arange(8.0))
    found = [torch.get_num_threads(), numba.get_num_threads(), numba.threading_layer(), values.tolist()]
    (run_dir / "threads.json").write_text(json.dumps(found))
    (run_dir / "summary.json").write_text(json.dumps({"status": "done"}))


def _double(values):
    import numba

    @numba.njit(parallel=True)
    def kernel(values):
        for index in numba.prange(len(values)):
            values[index] *= 2

    kernel(values)
