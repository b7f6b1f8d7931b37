"""The published configurations of Stable Diffusion 1.x, 2.x, XL and 3 medium, as pipelines with random weights.

Networks and VAEs are the real ones. CLIP-L and OpenCLIP-H are whole; OpenCLIP-bigG and T5-XXL have their real widths and
heads but two layers (they are 0.7 and 4.8 billion parameters, and what they feed has the same shape at any depth). Their
vocabularies are small: no tokenizer files are needed.
"""

from __future__ import annotations

import torch

from diffmem.data.reference import reference_prompts
from diffmem.testbeds.parts import clip_tokenizer

SD1_UNET = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "cross_attention_dim": 768,
    "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
SD2_UNET = SD1_UNET | {
    "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True,
}  # fmt: skip
SDXL_UNET = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20), "block_out_channels": (320, 640, 1280), "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 10), "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
SD3_TRANSFORMER = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
}  # fmt: skip
VAE = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
SD3_VAE = VAE | {
    "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False,
    "use_post_quant_conv": False,
}  # fmt: skip
CLIP_L = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768, "hidden_act": "quick_gelu",
}  # fmt: skip
CLIP_H = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "projection_dim": 512, "hidden_act": "gelu",
}  # fmt: skip
CLIP_BIGG_CUT = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 2, "num_attention_heads": 20,
    "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip
T5_XXL_CUT = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 2, "num_heads": 64, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _tokenizer():
    return clip_tokenizer([prompt.text for prompt in reference_prompts()], 2000, 77)


def _clip(config, projected=False):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _tokenizer()
    made = CLIPTextConfig(
        vocab_size=len(tokenizer), max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **config,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(made)


def _t5():
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(97 + i), -3.0) for i in range(26))]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    tokenizer.model_max_length = 512
    return tokenizer, T5EncoderModel(T5Config(vocab_size=len(pieces), **T5_XXL_CUT))


def _sd1(latent):
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    return StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE, sample_size=512), text_encoder=_clip(CLIP_L), tokenizer=_tokenizer(),
        unet=UNet2DConditionModel(**_sized(SD1_UNET, latent)),
        scheduler=PNDMScheduler(**NOISE, set_alpha_to_one=False, skip_prk_steps=True), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sd2(latent):
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    scheduler = DDIMScheduler(**NOISE, set_alpha_to_one=False, clip_sample=False, prediction_type="v_prediction")
    return StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE, sample_size=768), text_encoder=_clip(CLIP_H), tokenizer=_tokenizer(),
        unet=UNet2DConditionModel(**_sized(SD2_UNET, latent)), scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl(latent):
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(**VAE, sample_size=1024, scaling_factor=0.13025), text_encoder=_clip(CLIP_L),
        text_encoder_2=_clip(CLIP_BIGG_CUT, projected=True), tokenizer=_tokenizer(), tokenizer_2=_tokenizer(),
        unet=UNet2DConditionModel(**_sized(SDXL_UNET, latent)),
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
    )  # fmt: skip


def _sd3(latent):
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    tokenizer_3, text_encoder_3 = _t5()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**_sized(SD3_TRANSFORMER, latent)), vae=AutoencoderKL(**SD3_VAE, sample_size=1024),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), text_encoder=_clip(CLIP_L, projected=True),
        text_encoder_2=_clip(CLIP_BIGG_CUT, projected=True), tokenizer=_tokenizer(), tokenizer_2=_tokenizer(),
        text_encoder_3=text_encoder_3, tokenizer_3=tokenizer_3,
    )  # fmt: skip


def _sized(config, latent):
    return config if latent is None else config | {"sample_size": latent}


MODELS = {"sd1": _sd1, "sd2": _sd2, "sdxl": _sdxl, "sd3-medium": _sd3}


def build(name, latent, folder):
    """Save one pipeline with random bfloat16 weights."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)  # so that float32 weights never exist
    pipeline = MODELS[name](latent)
    torch.set_default_dtype(torch.float32)
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.to(torch.bfloat16)
    pipeline.save_pretrained(folder)
