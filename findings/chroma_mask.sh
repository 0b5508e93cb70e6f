#!/usr/bin/env bash
# diffusers 0.42.1, ChromaPipeline: its mask of the text tokens hides nothing.
#
# Expected: the prompt's padding, except its first token, does not change the picture, as the pipeline's comment and the
# description of prompt_attention_mask say.
# Seen: the pipeline makes the mask of the numbers 0 and 1 (in the text encoder's type) and the transformer gives them to
# torch's attention, which adds numbers to the scores (only a mask of booleans hides). One prompt, padded to 16 and to 64
# tokens (max_sequence_length), gives two sets of latents. With the same mask as booleans both are the same.
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
from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

torch.manual_seed(0)
network = ChromaTransformer2DModel(
    in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
    axes_dims_rope=(4, 4, 8), approximator_num_channels=8, approximator_hidden_dim=32, approximator_layers=1,
).eval()
for value in network.parameters():
    if value.ndim > 1:
        torch.nn.init.normal_(value, std=0.2)
words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "man": 2}, unk_token="<unk>"))
pipeline = ChromaPipeline(
    scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, transformer=network,
    text_encoder=T5EncoderModel(T5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).eval(),
    tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"),
)
pipeline.set_progress_bar_config(disable=True)
common = dict(
    height=64, width=64, num_inference_steps=1, guidance_scale=1.0, latents=torch.randn(1, 16, 16), output_type="latent",
    return_dict=False,
)


def picture(length):
    return pipeline("man", max_sequence_length=length, **common)[0]


def picture_of_booleans(length):
    text, _, mask, *_ = pipeline.encode_prompt("man", do_classifier_free_guidance=False, max_sequence_length=length)
    return pipeline(prompt_embeds=text, prompt_attention_mask=mask.bool(), **common)[0]


numbers, booleans = ((of(16) - of(64)).abs().max().item() for of in (picture, picture_of_booleans))
print(f"48 more tokens of padding change the latents by {numbers:.4f}, with a mask of booleans by {booleans:.6f}")
assert numbers > 0.01 and booleans < 0.0001
PY
if venv/bin/python -W ignore test.py; then
    echo "as described"
else
    echo "changed: see the output above"
    exit 1
fi
