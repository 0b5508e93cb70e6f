#!/usr/bin/env bash
# diffusers 0.42.1, UniPCMultistepScheduler: with solver_type="bh1" and defaults, every sample ends as NaN.
#
# Expected: bh1, which the description recommends for unconditional sampling in fewer than 10 steps, gives a sample of
# finite numbers, as bh2 does. With a predictor that knows the sample, both return it.
# Seen: all steps but the last are finite, and the last makes every number NaN, without an error or a warning, for any
# model, number of steps or order, and for flows. final_sigmas_type is "zero" unless it is given, so the last step goes
# to no noise at all and is infinitely long in the solver's logarithmic time. bh1 multiplies its correction with that
# length, and infinity times a correction of zero is NaN; bh2 has an exponential of the length there, which is finite.
# With final_sigmas_type="sigma_min" bh1 is finite, and leaves a little noise. (nfsd3d samples with its own DDIM.)
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet diffusers==0.42.1 numpy==2.4.6

cat > sample.py <<'PY'
import torch
from diffusers import UniPCMultistepScheduler

SAMPLE = torch.linspace(-1, 1, 4 * 8 * 8).view(1, 4, 8, 8)
flow = dict(use_flow_sigmas=True, prediction_type="flow_prediction")


def seen(steps, **settings):
    scheduler = UniPCMultistepScheduler(**{"prediction_type": "sample", **settings})
    scheduler.set_timesteps(steps)
    z = torch.randn(SAMPLE.shape, generator=torch.Generator().manual_seed(0))
    steps_left = len(scheduler.timesteps)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas):
        exact = (z - SAMPLE) / sigma if "use_flow_sigmas" in settings else SAMPLE
        z = scheduler.step(exact, t, z).prev_sample
        steps_left -= 1
        if z.isnan().any():
            return f"all NaN: {bool(z.isnan().all())}, steps left: {steps_left}"
    return f"off by less than 0.001: {bool((z - SAMPLE).abs().max() < 0.001)}"


for steps in (5, 20):
    print(f"{steps} steps, bh2: {seen(steps)}")
    print(f"{steps} steps, bh1: {seen(steps, solver_type='bh1')}")
    print(f"{steps} steps, bh1 of order 1: {seen(steps, solver_type='bh1', solver_order=1)}")
    print(f"{steps} steps, bh2 on a flow: {seen(steps, **flow)}")
    print(f"{steps} steps, bh1 on a flow: {seen(steps, solver_type='bh1', **flow)}")
    print(f"{steps} steps, bh1 to sigma_min: {seen(steps, solver_type='bh1', final_sigmas_type='sigma_min')}")
PY
venv/bin/python -W ignore sample.py | tee seen
for steps in 5 20; do
    cat <<EXPECTED
$steps steps, bh2: off by less than 0.001: True
$steps steps, bh1: all NaN: True, steps left: 0
$steps steps, bh1 of order 1: all NaN: True, steps left: 0
$steps steps, bh2 on a flow: off by less than 0.001: True
$steps steps, bh1 on a flow: all NaN: True, steps left: 0
$steps steps, bh1 to sigma_min: off by less than 0.001: False
EXPECTED
done | diff - seen
