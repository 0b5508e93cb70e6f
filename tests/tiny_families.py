"""Small pipelines of every family, with random weights, as diffusers makes them."""

import tempfile
from pathlib import Path

import torch

from nfsd3d.prior.diffusers_prior import DiffusersPrior
from nfsd3d.prior.families.table import FAMILIES
from nfsd3d.prior.files.scheduler_config import training_schedule
from nfsd3d.prior.schedule import RectifiedFlow, VariancePreserving
from nfsd3d.prior.text_encoders import PipelineTextEncoders

SIZE = 16
"""Latents along each axis."""

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "cube", "front", "side", "view", "dull", ",")


def word_tokenizer(**settings):
    """A tokenizer of one token a word, that ends with </s> and pads at the right."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **tokens, padding_side="right", **settings)


def clip_tokenizer():
    from tiny_models import _tokenizer

    return _tokenizer()


def clip(width, projection=None):
    from tiny_models import TOKENS
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(clip_tokenizer()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        projection_dim=projection or width,
    )
    return CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)


def t5(width=32, kind="T5"):
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


def decoder(kind, width=32):
    """The states of a causal language model: Gemma2 or Qwen3."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return getattr(transformers, f"{kind}Model")(config)


def autoencoder(channels, **settings):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        **settings,
    )


FLUX_LATENTS = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False}


XL_STATISTICS = {"latents_mean": (0.1, -0.2, 0.3, 0.0), "latents_std": (1.5, 2.0, 0.5, 1.0)}


def sdxl():
    import diffusers

    unet = diffusers.UNet2DConditionModel(
        sample_size=SIZE,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16 + 24,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
    )
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(
            4, scaling_factor=0.13025, latents_mean=(0.1, -0.2, 0.3, 0.0), latents_std=(1.5, 2.0, 0.5, 1.0)
        ),
        text_encoder=clip(16),
        text_encoder_2=clip(24, projection=20),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, set_alpha_to_one=False, **betas),
        add_watermarker=False,
    )


def sentencepiece_model(folder):
    """A small model of sentencepiece, as T5's and ChatGLM's tokenizers are made from."""
    import sentencepiece

    text, model = folder / "text.txt", folder / "small.model"
    text.write_text("\n".join(["a red cube , front view", "a blue cube , side view", "dull"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "small"), vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    return model


def kolors():
    import diffusers
    from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    unet = diffusers.UNet2DConditionModel(
        sample_size=SIZE,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        use_linear_projection=True,
        encoder_hid_dim_type="text_proj",
        encoder_hid_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    text_encoder = ChatGLMModel(
        ChatGLMConfig(
            num_layers=2,
            num_hidden_layers=2,
            padded_vocab_size=80,
            hidden_size=32,
            ffn_hidden_size=32,
            kv_channels=16,
            num_attention_heads=2,
            seq_length=256,
            multi_query_attention=True,
            multi_query_group_num=1,
            rmsnorm=True,
            add_qkv_bias=True,
            original_rope=True,
            use_cache=True,
        )
    )
    for value in text_encoder.parameters():  # which its class leaves as they were in memory
        torch.nn.init.normal_(value, mean=float(value.ndim == 1), std=0.1)
    # The file must stay: a tokenizer is saved by copying it.
    tokenizer = ChatGLMTokenizer(str(sentencepiece_model(Path(tempfile.mkdtemp()))))
    return diffusers.KolorsPipeline(
        vae=autoencoder(4, scaling_factor=0.13025),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.014,
            beta_schedule="scaled_linear",
            num_train_timesteps=1100,
            clip_sample=False,
        ),
    )


def sd3(with_t5=True):
    import diffusers

    transformer = diffusers.SD3Transformer2DModel(
        sample_size=SIZE,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=48,
        pooled_projection_dim=12 + 20,
        out_channels=16,
        pos_embed_max_size=SIZE,
    )
    return diffusers.StableDiffusion3Pipeline(
        vae=autoencoder(
            16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip(16, projection=12),
        text_encoder_2=clip(24, projection=20),
        text_encoder_3=t5(48) if with_t5 else None,
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=word_tokenizer() if with_t5 else None,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def pixart():
    import diffusers

    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=SIZE,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=32,
        use_additional_conditions=False,
        norm_num_groups=1,
    )
    return diffusers.PixArtSigmaPipeline(
        vae=autoencoder(4, scaling_factor=0.13025),
        text_encoder=t5(),
        tokenizer=word_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False),
    )


def auraflow():
    import diffusers

    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=SIZE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pos_embed_max_size=256,
    )
    return diffusers.AuraFlowPipeline(
        vae=autoencoder(4, scaling_factor=0.13025),
        text_encoder=t5(kind="UMT5"),
        tokenizer=word_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def cogview4():
    import diffusers

    transformer = diffusers.CogView4Transformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=SIZE,
        sample_size=SIZE,
        rope_axes_dim=(SIZE, SIZE),
    )
    tokenizer = word_tokenizer()
    tokenizer.padding_side = "left"
    return diffusers.CogView4Pipeline(
        vae=autoencoder(16, scaling_factor=1.0, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=decoder("Glm"),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    )


def sana():
    import diffusers

    transformer = diffusers.SanaTransformer2DModel(
        sample_size=SIZE,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=32,
        timestep_scale=0.5,
    )
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return diffusers.SanaPipeline(
        vae=vae,
        text_encoder=decoder("Gemma2"),
        tokenizer=word_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def lumina2():
    import diffusers

    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=SIZE,
        patch_size=2,
        in_channels=16,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(512, 64, 64),
        cap_feat_dim=32,
    )
    return diffusers.Lumina2Pipeline(
        vae=autoencoder(16, **FLUX_LATENTS),
        text_encoder=decoder("Gemma2"),
        tokenizer=word_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
    )


def prx():
    import diffusers
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaConfig, T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    sizes = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "layer_types": ["full_attention"],
    }
    config = T5GemmaConfig(
        encoder=T5GemmaModuleConfig(**sizes),
        decoder=T5GemmaModuleConfig(**sizes, cross_attention_hidden_size=32),
        is_encoder_decoder=False,
    )
    transformer = diffusers.PRXTransformer2DModel(
        patch_size=2,
        in_channels=16,
        context_in_dim=32,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[4, 4],
    )
    return diffusers.PRXPipeline(
        vae=autoencoder(16, **FLUX_LATENTS),
        text_encoder=T5GemmaEncoder(config.encoder),
        tokenizer=word_tokenizer(model_max_length=24),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        default_sample_size=8 * SIZE,
    )


def zimage():
    import diffusers

    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}a {{ message['content'] }} , {% endfor %}"
    return diffusers.ZImagePipeline(
        vae=autoencoder(16, **FLUX_LATENTS),
        text_encoder=decoder("Qwen3"),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def chroma():
    import diffusers

    transformer = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=64,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return diffusers.ChromaPipeline(
        vae=autoencoder(16, **FLUX_LATENTS),
        text_encoder=t5(),
        tokenizer=word_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


PIPELINES = {
    "sdxl": sdxl,
    "sd3": sd3,
    "pixart": pixart,
    "auraflow": auraflow,
    "sana": sana,
    "lumina2": lumina2,
    "prx": prx,
    "zimage": zimage,
    "chroma": chroma,
    "cogview4": cogview4,
    "kolors": kolors,
}


def pipeline_of(name):
    """The pipeline of a family, in float32, with weights so large that every input matters."""
    torch.manual_seed(0)
    pipeline = PIPELINES[name]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
            for value in part.parameters():
                if value.ndim > 1 and value.std() < 0.1:
                    value.normal_(std=0.1)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save(name, folder):
    """Writes the small model of a family as it is shipped."""
    pipeline = pipeline_of(name)
    pipeline.save_pretrained(folder)
    if name == "prx":
        # diffusers 0.42.1 writes the encoder's configuration alone and reads one of encoder and decoder.
        from transformers.models.t5gemma.configuration_t5gemma import T5GemmaConfig

        own = pipeline.text_encoder.config
        T5GemmaConfig(encoder=own, decoder=own, is_encoder_decoder=False).save_pretrained(folder / "text_encoder")


def prior_of(pipeline, name):
    """The prior that the networks of a pipeline make."""
    family = FAMILIES[name]
    config = dict(pipeline.scheduler.config)
    training = training_schedule({**config, "_class_name": type(pipeline.scheduler).__name__}, "scheduler")
    process = RectifiedFlow() if training.is_flow else VariancePreserving(pipeline.scheduler.alphas_cumprod.double())
    factor = 2 ** (len(dict(pipeline.vae.config).get("encoder_block_out_channels", (0,) * 4)) - 1)
    return DiffusersPrior(
        getattr(pipeline, family.denoiser),
        pipeline.vae,
        PipelineTextEncoders(lambda encoders: pipeline, family),
        process,
        training.prediction_type,
        family=family,
        image_size=factor * SIZE,
    )
