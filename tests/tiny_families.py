"""Tiny pipelines of the larger families, from configs."""

from __future__ import annotations

import torch

from tests.tiny import tiny_tokenizer


def clip(size: int, projected: bool, seed: int = 0, positions: int = 16):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=size, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=positions, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(seed)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def t5(hidden: int = 32):
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(97 + i), -3.0) for i in range(26)] + [("▁a", -2.5), ("▁fox", -2.5)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    tokenizer.model_max_length = 24
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=len(pieces), d_model=hidden, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    return tokenizer, T5EncoderModel(config)


def vae(latent_channels: int = 4, shift: float | None = None):
    from diffusers import AutoencoderKL

    torch.manual_seed(2)
    return AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=latent_channels,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
        shift_factor=shift,
    )  # fmt: skip


def louder(network, words=("attn2.to_v", "attn2.to_out", "add_v_proj", "to_add_out", "context_embedder")):
    """Random weights hardly listen to the prompt; make it matter."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if any(word in name for word in words) and weight.ndim > 1:
                weight.mul_(5)
            if weight.abs().max() == 0 and weight.ndim > 1:
                weight.normal_(0, 0.05)
    return network


def finished(pipe):
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sdxl(zeros: bool = True):
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    tokenizer, size = tiny_tokenizer()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        attention_head_dim=(2, 4), cross_attention_dim=32, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=6 * 8 + 16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    return finished(
        StableDiffusionXLPipeline(
            vae=vae(), text_encoder=clip(size, False), text_encoder_2=clip(size, True, 5), tokenizer=tokenizer,
            tokenizer_2=tiny_tokenizer()[0], unet=louder(unet), scheduler=scheduler, force_zeros_for_empty_prompt=zeros,
        )
    )  # fmt: skip


def sd3():
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer, size = tiny_tokenizer()
    t5_tokenizer, t5_model = t5()
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, out_channels=4,
    )  # fmt: skip
    return finished(
        StableDiffusion3Pipeline(
            transformer=louder(transformer), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(4, 0.1),
            text_encoder=clip(size, True), tokenizer=tokenizer, text_encoder_2=clip(size, True, 5),
            tokenizer_2=tiny_tokenizer()[0], text_encoder_3=t5_model, tokenizer_3=t5_tokenizer,
        )
    )  # fmt: skip


def flux(distilled: bool = True):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer, size = tiny_tokenizer()
    t5_tokenizer, t5_model = t5()
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=distilled,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = FluxPipeline(
        transformer=louder(transformer), scheduler=scheduler, vae=vae(4, 0.1), text_encoder=clip(size, False),
        tokenizer=tokenizer, text_encoder_2=t5_model, tokenizer_2=t5_tokenizer,
    )  # fmt: skip
    pipe.default_sample_size = 8
    return finished(pipe)


def pixart():
    from diffusers import DDIMScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    tokenizer, encoder = t5()
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, norm_num_groups=None,
        norm_elementwise_affine=False, use_additional_conditions=False,
    )  # fmt: skip
    return finished(
        PixArtAlphaPipeline(
            transformer=louder(transformer),
            scheduler=DDIMScheduler(),
            vae=vae(),
            text_encoder=encoder,
            tokenizer=tokenizer,
        )
    )


def dit():
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        out_channels=8, attention_bias=True, num_embeds_ada_norm=1000,
    )  # fmt: skip
    names = {207: "golden retriever, retriever", 3: "tiger shark"}
    return finished(DiTPipeline(transformer=louder(transformer), vae=vae(), scheduler=DDIMScheduler(), id2label=names))


def byte_vocabulary(special):
    """Token numbers of all bytes, as GPT-2 writes them, after some special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    return {piece: i for i, piece in enumerate([*special, *sorted(ByteLevel.alphabet())])}


def qwen_tokenizer(limit: int = 2048):
    """A Qwen2 tokenizer over single bytes, with a chat template."""
    from transformers import Qwen2Tokenizer

    vocab = byte_vocabulary(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], model_max_length=limit)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    tokenizer.chat_template = "{% for m in messages %}" + turn + "{% endfor %}<|im_start|>assistant\n"
    return tokenizer, len(vocab)


def qwen_language_model(size: int):
    """The text encoder of Qwen-Image and Kandinsky 5, without much of a vision tower."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": size, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "rope_theta": 1e6,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    torch.manual_seed(3)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def z_image():
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    tokenizer, size = qwen_tokenizer()
    torch.manual_seed(1)
    encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=size, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8,
        )
    )  # fmt: skip
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 6, 6], axes_lens=[600, 32, 32],
    )  # fmt: skip
    pipe = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0), vae=vae(4, 0.1), text_encoder=encoder,
        tokenizer=tokenizer, transformer=louder(transformer, ("cap_embedder",)),
    )  # fmt: skip
    pipe.default_sample_size = 8
    return finished(pipe)


def qwen_image():
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )  # fmt: skip

    tokenizer, size = qwen_tokenizer()
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    torch.manual_seed(2)
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 2.0, 0.5, 1.0],
    )  # fmt: skip
    pipe = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9),
        vae=autoencoder, text_encoder=qwen_language_model(size), tokenizer=tokenizer,
        transformer=louder(transformer, ("add_v_proj", "to_add_out", "txt_in")),
    )  # fmt: skip
    pipe.default_sample_size = 8
    return finished(pipe)


def sana():
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581"]
    vocab = {piece: i for i, piece in enumerate([*special, *(chr(i) for i in range(33, 127)), "\n"])}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=[], model_max_length=4096)
    torch.manual_seed(1)
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(vocab), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8,
        )
    )  # fmt: skip
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=8,
        sample_size=8, patch_size=1,
    )  # fmt: skip
    torch.manual_seed(2)
    autoencoder = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3, encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8), encoder_qkv_multiscales=((),) * 3, decoder_qkv_multiscales=((),) * 3,
        encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1), scaling_factor=0.41,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, algorithm_type="dpmsolver++"
    )
    return finished(
        SanaPipeline(
            tokenizer=tokenizer,
            text_encoder=encoder,
            vae=autoencoder,
            transformer=louder(transformer),
            scheduler=scheduler,
        )
    )


FAMILIES = {
    "sdxl": sdxl, "sd3": sd3, "flux": flux, "pixart": pixart, "z-image": z_image, "qwen-image": qwen_image,
    "sana": sana, "dit": dit,
}  # fmt: skip
SIDES = {"sana": 32}
"""Pixels of the images of those whose images have not 16."""


def reopened(folder, **more):
    """A target from disk; the classes that fix the size of their samples are told the tiny one again."""
    from diffmem.models.target import Target

    target = Target.from_pretrained(folder, **more)
    if target.denoiser.family in ("flux", "z-image", "qwen-image"):
        target.pipeline.default_sample_size = 8
        target = Target.from_pipeline(target.pipeline, name=target.name)
    return target
