#!/usr/bin/env bash
# diffusers 0.42.1: add_noise of the DPM-Solver++, DEIS and UniPC schedulers adds the noise of another timestep.
#
# Expected: one training schedule, so the same noise at a timestep as DDPMScheduler.add_noise, for any of its 1000
# timesteps, whether set_timesteps was called or not; or an error, as EulerDiscreteScheduler raises for a timestep that
# it does not sample at.
# Seen: a new scheduler has its timesteps from the noisiest down and its noise levels from the least noisy up, and
# pairs them by position: timestep 20 gets the noise of 979, timestep 979 that of 20. After set_timesteps(20) a
# timestep that is none of the 20 gets the noise of the last one (timestep 50), whatever it is. Nothing is raised or
# warned of. Code that noises latents at random timesteps with such a scheduler, as threestudio's guidance for VSD is
# written, then shows the model nearly clean latents where it says that they are noise, and noise where it says that
# they are nearly clean. EulerDiscreteScheduler reverses its levels when it is made, and is right; so is
# SASolverScheduler, which reads them from the training schedule. (nfsd3d has a noise schedule of its own, and takes
# only the numbers of a scheduler's configuration.)
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet diffusers==0.42.1 numpy==2.4.6

cat > noise.py <<'PY'
import diffusers
import torch

diffusers.logging.set_verbosity_error()
training = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
timesteps = torch.tensor([20, 500, 979])
zeros, ones = torch.zeros(3, 4, 8, 8), torch.ones(3, 4, 8, 8)


def levels(scheduler):
    """Noise over signal at each of the timesteps."""
    try:
        noise, signal = scheduler.add_noise(zeros, ones, timesteps), scheduler.add_noise(ones, zeros, timesteps)
    except IndexError:
        return "IndexError"
    return " ".join(f"{level:.2f}" for level in (noise / signal)[:, 0, 0, 0])


right = "DDPM", "SASolver", "EulerDiscrete"
wrong = "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep"
print("noise over signal at 20, 500, 979")
for name in right + wrong:
    scheduler = getattr(diffusers, f"{name}Scheduler")(**training)
    new = levels(scheduler)
    scheduler.set_timesteps(20)
    print(f"{name}: new {new}; after set_timesteps(20) {levels(scheduler)}")
PY
venv/bin/python -W ignore noise.py | tee seen
diff - seen <<'EXPECTED'
noise over signal at 20, 500, 979
DDPM: new 0.14 1.62 12.97; after set_timesteps(20) 0.14 1.62 12.97
SASolver: new 0.14 1.62 12.97; after set_timesteps(20) 0.14 1.62 12.97
EulerDiscrete: new 0.14 1.62 12.97; after set_timesteps(20) IndexError
DPMSolverMultistep: new 12.97 1.61 0.14; after set_timesteps(20) 0.23 1.62 0.23
DPMSolverSinglestep: new 12.97 1.61 0.14; after set_timesteps(20) 0.23 1.62 0.23
DEISMultistep: new 12.97 1.61 0.14; after set_timesteps(20) 0.23 1.62 0.23
UniPCMultistep: new 12.97 1.61 0.14; after set_timesteps(20) 0.23 1.62 0.23
EXPECTED
