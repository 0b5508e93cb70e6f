#!/usr/bin/env bash
# diffusers 0.42.1, QwenImage21Transformer2DModel: padding that is masked moves the image.
#
# Expected: a prompt gives the same prediction alone and padded in a batch with a longer one, as its
# encoder_hidden_states_mask excludes the padding (in QwenImageTransformer2DModel it does).
# Seen: the mask hides the padding's values, but the image's position comes after the padded text, so a shorter prompt gets
# another prediction beside a longer one than alone. QwenImage21Pipeline pads a list of prompts in this way.
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet diffusers==0.42.1 transformers==5.23.0

cat > test.py <<'PY'
import torch
from diffusers import QwenImage21Transformer2DModel, QwenImageTransformer2DModel

torch.manual_seed(0)
small = dict(num_layers=2, attention_head_dim=16, num_attention_heads=2, axes_dims_rope=(4, 6, 6))
networks = (
    QwenImage21Transformer2DModel(in_channels=16, out_channels=16, context_in_dim=32, **small).eval(),
    QwenImageTransformer2DModel(in_channels=16, out_channels=4, joint_attention_dim=32, **small).eval(),
)
for network in networks:
    for value in network.parameters():
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=0.2)
noise = torch.randn(1, 16, 16)
short, long, others = torch.randn(1, 16, 32), torch.randn(1, 24, 32), torch.randn(1, 8, 32)
mask = (torch.arange(24) < torch.tensor([[16], [24]])).long()


def predict(network, words, mask):
    count, length, _ = words.shape
    slots = torch.cat([torch.zeros(count, length), torch.ones(count, 4)], dim=1).bool()
    given = {"img_mask": slots} if isinstance(network, QwenImage21Transformer2DModel) else {}
    with torch.no_grad():
        return network(
            hidden_states=noise.repeat(count, 1, 1), encoder_hidden_states=words, encoder_hidden_states_mask=mask,
            timestep=torch.full((count,), 0.5), img_shapes=[[(1, 4, 4)]] * count, return_dict=False, **given,
        )[0][0, -16:]


changes = []
for network in networks:
    alone = predict(network, short, None)
    padded = predict(network, torch.cat([torch.cat([short, torch.zeros_like(others)], dim=1), long]), mask)
    other = predict(network, torch.cat([torch.cat([short, others], dim=1), long]), mask)
    changes.append((alone - padded).abs().max().item())
    print(
        f"{type(network).__name__}: padding changes the prediction by {changes[-1]:.6f} (of {alone.abs().max():.1f}), "
        f"other values in the padding by {(padded - other).abs().max():.6f}"
    )
    assert (padded - other).abs().max() < 0.0001
assert changes[0] > 0.01 and changes[1] < 0.0001
PY
if venv/bin/python -W ignore test.py; then
    echo "as described"
else
    echo "changed: see the output above"
    exit 1
fi
