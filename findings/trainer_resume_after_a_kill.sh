#!/usr/bin/env bash
# transformers.Trainer 5.23.0 (torch 2.13.0, accelerate 1.15.0, safetensors 0.8.0): a run that is killed while it writes
# a checkpoint cannot be resumed with resume_from_checkpoint=True, although the checkpoint before it is intact; and a
# flipped bit in the saved model is loaded without a word.
#
# Expected: resume_from_checkpoint=True, "load the last checkpoint", takes the newest one that is complete, and a damaged
# file is an error.
# Seen: the folder checkpoint-6 is filled in place (model, optimizer, scheduler, random state, trainer_state.json last).
# After SIGKILL when optimizer.pt has appeared, the resumed run takes checkpoint-6 and ends in
# "FileNotFoundError: ... checkpoint-6/trainer_state.json"; resume_from_checkpoint="checkpoint-3" works, and gives the
# result of the run that nothing happened to. With one bit of checkpoint-9/model.safetensors flipped the run resumes,
# exits with 0, and has another result. The first is reported in huggingface/transformers issues 35525 and 35782.
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6

cat > training.py <<'PY'
import os, signal, sys, threading, time
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

output, resume, kill = Path(sys.argv[1]), sys.argv[2], sys.argv[3:] == ["kill"]


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(24)])

    def forward(self, x, labels=None):
        y = self.layers(x)
        return {"loss": (y - labels).square().mean(), "logits": y}


def watch():
    while not (output / "checkpoint-6" / "optimizer.pt").exists():
        time.sleep(0.0002)
    os.kill(os.getpid(), signal.SIGKILL)


torch.manual_seed(0)
model = Model()
rng = torch.Generator().manual_seed(1)
data = [{"x": torch.randn(512, generator=rng), "labels": torch.randn(512, generator=rng)} for _ in range(64)]
settings = TrainingArguments(
    output_dir=str(output), max_steps=12, save_steps=3, per_device_train_batch_size=4, learning_rate=1e-3,
    report_to=[], use_cpu=True, disable_tqdm=True, seed=0,
)
trainer = Trainer(model=model, args=settings, train_dataset=data)
if kill:
    threading.Thread(target=watch, daemon=True).start()
trainer.train(resume_from_checkpoint={"no": None, "newest": True}.get(resume, resume))
print("RESULT", trainer.state.global_step, repr(sum(p.double().sum().item() for p in model.parameters())))
PY

export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
run() { venv/bin/python training.py "$@" > out.txt 2> err.txt; }
result() { grep '^RESULT' out.txt; }
changed() { echo "CHANGED: $1"; tail -n 3 err.txt; exit 1; }

run straight no || changed "the plain run fails"
expected="$(result)"
echo "undisturbed: $expected"

if run killed no kill; then changed "the run was not killed while it saved"; fi
[ -d killed/checkpoint-3 ] || changed "no earlier checkpoint"
if [ -e killed/checkpoint-6/trainer_state.json ]; then changed "the checkpoint was complete when it was killed"; fi
if run killed newest; then changed "the killed run resumes from its newest checkpoint: $(result)"; fi
grep -q "FileNotFoundError.*checkpoint-6/trainer_state.json" err.txt || changed "another error"
echo "killed while saving, newest checkpoint: $(tail -n 1 err.txt)"
run killed killed/checkpoint-3 || changed "the earlier checkpoint does not resume either"
[ "$(result)" = "$expected" ] || changed "the earlier checkpoint gives another result: $(result)"
echo "killed while saving, checkpoint before: $(result)"

rm -r straight/checkpoint-12
venv/bin/python - <<'PY'
from pathlib import Path
path = Path("straight/checkpoint-9/model.safetensors")
content = bytearray(path.read_bytes())
content[-3] ^= 0x40
path.write_bytes(content)
PY
run straight newest || changed "a flipped bit is found"
[ "$(result)" != "$expected" ] || changed "a flipped bit has no effect"
echo "one flipped bit, exit code 0: $(result)"
echo "as described"
