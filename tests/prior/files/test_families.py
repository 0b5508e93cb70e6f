"""Models of other families are named before anything is loaded."""

import json
import subprocess
import sys

import pytest
from tiny_models import write_zeros

from nfsd3d.errors import InputError
from nfsd3d.prior.files import check_folder
from nfsd3d.prior.files.check_folder import family_of
from nfsd3d.prior.files.check_single_file import family_of as family_of_tensors
from nfsd3d.prior.files.locate import EMBEDDED, locate

SD = {
    "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    "unet/config.json": {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768},
    "vae/config.json": {"_class_name": "AutoencoderKL"},
    "text_encoder/config.json": {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]},
}


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def with_unet(**config):
    return SD | {"unet/config.json": {**SD["unet/config.json"], **config}}


def of_pipeline(name):
    return {"model_index.json": {"_class_name": name}}


FOLDERS = [
    (with_unet(cross_attention_dim=2048) | of_pipeline("StableDiffusionXLPipeline"), "Stable Diffusion XL model"),
    (of_pipeline("StableDiffusionXLImg2ImgPipeline") | {"unet/config.json": {"cross_attention_dim": 1280}}, "refiner"),
    (with_unet(addition_embed_type="text_time", cross_attention_dim=2048), "Stable Diffusion XL model"),
    (of_pipeline("StableDiffusion3Pipeline"), "Stable Diffusion 3"),
    ({"transformer/config.json": {"_class_name": "SD3Transformer2DModel"}}, "Stable Diffusion 3"),
    ({"transformer/config.json": {"_class_name": "FluxTransformer2DModel"}}, r"FLUX\.1"),
    ({"transformer/config.json": {"_class_name": "Flux2Transformer2DModel"}}, r"FLUX\.2"),
    ({"transformer/config.json": {"_class_name": "BrandNewTransformer2DModel"}}, "a BrandNewTransformer2DModel"),
    (of_pipeline("PixArtSigmaPipeline"), "PixArt"),
    (of_pipeline("KandinskyV22Pipeline"), "Kandinsky"),
    (with_unet(addition_embed_type="image"), "Kandinsky"),
    (of_pipeline("IFPipeline"), "DeepFloyd IF"),
    (with_unet(addition_embed_type="text"), "DeepFloyd IF"),
    (of_pipeline("UnCLIPPipeline"), "unCLIP"),
    (of_pipeline("StableUnCLIPImg2ImgPipeline"), "unCLIP"),
    (with_unet(class_embed_type="projection", projection_class_embeddings_input_dim=2048), "unCLIP"),
    (with_unet(num_class_embeds=1000), "a condition besides text .*num_class_embeds=1000"),
    (with_unet(encoder_hid_dim_type="text_proj"), "a condition besides text"),
    (with_unet(time_embedding_type="fourier"), "a condition besides text"),
    (of_pipeline("LatentConsistencyModelPipeline"), "LCM"),
    (with_unet(time_cond_proj_dim=256), "LCM"),
    (with_unet(in_channels=9), "inpainting"),
    (with_unet(in_channels=5), "depth"),
    (with_unet(in_channels=8), "instruct-pix2pix"),
    (with_unet(in_channels=7), "upscaler"),
    (with_unet(out_channels=8), "4 to 8 channels"),
    (of_pipeline("StableVideoDiffusionPipeline"), "video"),
    (with_unet(_class_name="UNetSpatioTemporalConditionModel"), "video"),
    (with_unet(_class_name="UNet3DConditionModel"), "video"),
    (of_pipeline("WanPipeline"), "video"),
    ({"config.json": {"_class_name": "ControlNetModel"}}, "ControlNet"),
    ({"config.json": {"_class_name": "AutoencoderKL"}}, "an autoencoder alone"),
    ({"config.json": {"_class_name": "UNet2DConditionModel"}}, "a UNet alone"),
    ({"config.json": {"architectures": ["CLIPTextModel"]}}, "a text encoder alone"),
    ({"config.json": {"architectures": ["LlamaForCausalLM"]}}, "a LlamaForCausalLM"),
    ({"adapter_config.json": {}}, "LoRA"),
    ({"pytorch_lora_weights.safetensors": {}}, "LoRA"),
    (SD | {"text_encoder/config.json": {"model_type": "t5"}}, "a text encoder of type t5"),
    (SD | {"vae/config.json": {"_class_name": "VQModel"}}, "the autoencoder VQModel"),
]


@pytest.mark.parametrize(("files", "family"), FOLDERS)
def test_a_folder_of_another_family_is_named(tmp_path, files, family):
    with pytest.raises(
        InputError, match=rf"^prior\.model=.*: is .*{family}.*does not load; use (a Stable Diff|prior=)"
    ):
        locate("sd21", str(write(tmp_path, files)))


def test_diffusers_prior_is_not_taken_for_another_family(tmp_path):
    assert family_of(write(tmp_path, SD)) is None
    assert family_of(write(tmp_path, of_pipeline("StableDiffusionImg2ImgPipeline"))) is None
    assert family_of(EMBEDDED) is None and (EMBEDDED / "model_index.json").is_file()


def test_a_folder_that_names_no_class_is_incomplete_rather_than_of_another_family(tmp_path):
    assert family_of(write(tmp_path, {"config.json": {"architectures": []}})) is None
    assert family_of(write(tmp_path, with_unet(in_channels="4"))) is None


def test_every_condition_of_diffusers_unet_is_known():
    import inspect

    from diffusers import UNet2DConditionModel

    parameters = inspect.signature(UNet2DConditionModel.__init__).parameters
    for name, absent in check_folder._CONDITIONS.items():
        assert parameters[name].default in absent


UNET = "model.diffusion_model."
TENSORS = [
    ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": [4, 320]}, "LoRA"),
    ({"unet.down_blocks.0.attentions.0.attn1.to_q.lora_A.weight": [4, 320]}, "LoRA"),
    ({"emb_params": [4, 768]}, "textual inversion"),
    ({"control_model.input_blocks.0.0.weight": [320, 4, 3, 3]}, "ControlNet"),
    ({"controlnet_cond_embedding.conv_in.weight": [16, 3, 3, 3]}, "ControlNet"),
    ({"conditioner.embedders.1.model.positional_embedding": [77, 1280]}, "XL model"),
    ({"conditioner.embedders.0.model.positional_embedding": [77, 1280]}, "refiner"),
    ({f"{UNET}label_emb.0.0.weight": [1280, 2816]}, "XL model"),
    ({f"{UNET}label_emb.0.0.weight": [1280, 2560]}, "refiner"),
    ({f"{UNET}label_emb.0.0.weight": [1280, 2048]}, "unCLIP"),
    ({f"{UNET}joint_blocks.0.context_block.adaLN_modulation.1.bias": [9216]}, "Stable Diffusion 3"),
    ({"double_blocks.0.img_attn.norm.key_norm.scale": [128]}, r"FLUX\.1"),
    ({f"{UNET}single_stream_modulation.lin.weight": [1, 1]}, r"FLUX\.2"),
    ({f"{UNET}distilled_guidance_layer.in_proj.bias": [1]}, "Chroma"),
    ({"y_embedder.y_embedding": [120, 4096]}, "PixArt"),
    ({"blocks.0.mlp.inverted_conv.conv.weight": [1, 1]}, "SANA"),
    ({f"{UNET}input_blocks.1.0.time_stack.in_layers.0.weight": [320]}, "video"),
    ({f"{UNET}input_blocks.0.0.weight": [320, 9, 3, 3]}, "inpainting"),
    ({f"{UNET}input_blocks.0.0.weight": [320, 5, 3, 3]}, "depth"),
    ({f"{UNET}input_blocks.0.0.weight": [320, 8, 3, 3]}, "instruct-pix2pix"),
    ({f"{UNET}input_blocks.0.0.weight": [320, 7, 3, 3]}, "upscaler"),
    ({f"{UNET}time_embed.cond_proj.weight": [320, 256]}, "LCM"),
    ({"first_stage_model.encoder.conv_in.weight": [128, 3, 3, 3]}, "an autoencoder alone"),
    ({"encoder.conv_in.weight": [128, 3, 3, 3]}, "an autoencoder alone"),
    ({"text_model.encoder.layers.0.mlp.fc1.weight": [1, 1]}, "a text encoder alone"),
    ({"encoder.block.0.layer.0.SelfAttention.q.weight": [1, 1]}, "a text encoder alone"),
    ({f"{UNET}input_blocks.0.0.weight.absmax": [1]}, "quantised"),
]


@pytest.mark.parametrize(("shapes", "family"), TENSORS)
def test_a_single_file_of_another_family_is_named(tmp_path, shapes, family):
    file, layout = write_zeros(tmp_path / "m.safetensors", shapes), tmp_path / "layout"
    write(layout, SD | {"tokenizer/tokenizer.json": {}, "scheduler/scheduler_config.json": {}})
    with pytest.raises(InputError, match=rf"prior\.model=.*m\.safetensors: is .*{family}.*does not load"):
        locate("sd15", str(file), layout=str(layout))


def test_a_single_file_of_stable_diffusion_is_not_taken_for_another_family(single_file):
    from nfsd3d.prior.files.configs_and_headers import header_shapes

    assert family_of_tensors(header_shapes(single_file)) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04" + bytes(40), "a pickle of PyTorch"),
        (b"\x80\x02}q\x00" + bytes(40), "a pickle"),
        (b"GGUF" + bytes(40), "a quantised GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path, content, said):
    file = tmp_path / "m.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"prior\.model=.*m\.safetensors: is {said}"):
        locate("sd15", str(file), layout=str(write(tmp_path / "layout", SD | {
            "tokenizer/tokenizer.json": {}, "scheduler/scheduler_config.json": {}})))  # fmt: skip


def test_a_file_that_is_cut_off_says_how_much_is_there(tmp_path):
    from nfsd3d.prior.files.configs_and_headers import tensor_shapes

    file = write_zeros(tmp_path / "m.safetensors", {"a": [100]})
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"x: cannot be read as safetensors \(cut off: it has \d+ of \d+ bytes\)"):
        tensor_shapes(file, "x")
    file.write_bytes(file.read_bytes() + bytes(1))
    assert tensor_shapes(file, "x") == {"a": [100]}


def test_another_class_of_autoencoder_is_named(tmp_path):
    write(tmp_path, {"config.json": {"_class_name": "AutoencoderDC"}})
    with pytest.raises(InputError, match=r"prior\.vae=.*: is a AutoencoderDC"):
        locate("shapes", vae=str(tmp_path))


@pytest.mark.parametrize("place", ["~nobody-of-this-name/model", "x" * 300, "/" + "y" * 300])
def test_paths_that_cannot_be_looked_up_are_an_error_of_their_setting(place, no_hub_cache):
    with pytest.raises(InputError, match=r"^prior\.model="):
        locate("sd21", place)


def test_families_are_recognised_without_torch():
    code = "import sys, nfsd3d.prior.files.locate; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
