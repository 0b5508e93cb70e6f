#!/usr/bin/env bash
# diffusers 0.42.1, PRXPipeline: two prompts with guidance raise an error, one prompt works.
#
# Expected: as with other pipelines, a list of two prompts gives two images.
# Seen: with guidance the timestep is repeated to two entries whatever the number of prompts, so that the transformer gets
# latents of four entries and timesteps of two: "The size of tensor a (2) must match the size of tensor b (4)". Also, where
# ftfy is not installed the prompt's cleaning raises a NameError, because the package is used without a check. (nfsd3d
# calls the transformer itself, with a timestep for each entry, and depends on ftfy.)
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
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, PRXPipeline, PRXTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaConfig, T5GemmaModuleConfig
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "cube": 3}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", padding_side="right", model_max_length=8
)
sizes = dict(
    vocab_size=4, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, layer_types=["full_attention"],
)
config = T5GemmaConfig(
    encoder=T5GemmaModuleConfig(**sizes),
    decoder=T5GemmaModuleConfig(**sizes, cross_attention_hidden_size=32),
    is_encoder_decoder=False,
)
encoder = T5GemmaEncoder(config.encoder).eval()
pipeline = PRXPipeline(
    transformer=PRXTransformer2DModel(
        patch_size=2, in_channels=16, context_in_dim=32, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=1,
        axes_dim=[4, 4],
    ),
    scheduler=FlowMatchEulerDiscreteScheduler(),
    text_encoder=encoder,
    tokenizer=tokenizer,
    vae=AutoencoderKL(
        block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4, latent_channels=16,
    ),
    default_sample_size=64,
)


def outcome(prompts):
    try:
        options = {"height": 64, "width": 64, "num_inference_steps": 2, "use_resolution_binning": False}
        images = pipeline(prompt=prompts, output_type="latent", **options).images
        return f"latents {tuple(images.shape)}"
    except (RuntimeError, NameError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"


print("one prompt:", outcome(["a cube"]))
print("two prompts:", outcome(["a cube", "a cube"]))
PY
venv/bin/python test.py 2> /dev/null | tee without.txt
venv/bin/pip install --quiet ftfy==6.3.1
venv/bin/python test.py 2> /dev/null | tee with.txt
grep -q "^one prompt: NameError" without.txt
grep -q "^one prompt: latents (1, 16, 8, 8)" with.txt
grep -q "^two prompts: RuntimeError: The size of tensor a (2) must match" with.txt
