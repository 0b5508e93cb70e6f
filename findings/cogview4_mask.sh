#!/usr/bin/env bash
# diffusers 0.42.1, CogView4Transformer2DModel: its attention_mask hides nothing.
#
# Expected: tokens whose mask is 0 do not change the prediction, as the attention processor's description says.
# Seen: the mask is converted to the numbers 0 and 1 and given to torch's attention, which adds numbers to the scores (only
# a mask of booleans hides). Other values in the masked tokens give another prediction, about as different as without a
# mask. Prompts of several lengths in one batch therefore read each other's padding. (nfsd3d calls the transformer once for
# each length.)
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
from diffusers import CogView4Transformer2DModel

torch.manual_seed(0)
network = CogView4Transformer2DModel(
    num_layers=2, attention_head_dim=8, num_attention_heads=2, text_embed_dim=32, time_embed_dim=16, condition_dim=8,
    pos_embed_max_size=8, sample_size=8, rope_axes_dim=(8, 8),
).eval()
for value in network.parameters():
    if value.ndim > 1:
        torch.nn.init.normal_(value, std=0.2)
size = torch.tensor([[64.0, 64.0]])
common = dict(
    hidden_states=torch.randn(1, 16, 8, 8), timestep=torch.tensor([500.0]), original_size=size, target_size=size,
    crop_coords=torch.zeros(1, 2), return_dict=False,
)
words = torch.randn(1, 24, 32)
others = words.clone()
others[:, 16:] = torch.randn(1, 8, 32)
mask = (torch.arange(24) < 16)[None].long()


def change(**given):
    with torch.no_grad():
        one, two = (network(encoder_hidden_states=text, **common, **given)[0] for text in (words, others))
    return (one - two).abs().max().item()


masked, unmasked = change(attention_mask=mask), change()
print(f"other values in tokens that are masked change the prediction by {masked:.4f}, without a mask by {unmasked:.4f}")
assert masked > 0.2 * unmasked > 0
PY
if venv/bin/python -W ignore test.py; then
    echo "as described"
else
    echo "changed: see the output above"
    exit 1
fi
