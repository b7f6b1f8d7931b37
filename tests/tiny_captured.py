"""Tiny pipelines of classes that no family knows, from configs: what the family by capture is shown on."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tests.tiny import tiny_tokenizer
from tests.tiny_families import clip, finished, louder, qwen_language_model, qwen_tokenizer, t5


def deep_vae(latent_channels: int = 4, blocks: int = 2, **more):
    """An AutoencoderKL whose latents have 1/2^(blocks-1) of the side."""
    from diffusers import AutoencoderKL

    torch.manual_seed(2)
    return AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(8,) * blocks, norm_num_groups=4,
        latent_channels=latent_channels, down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks, **more,
    )  # fmt: skip


def gemma(width: int = 8):
    """Gemma's tokenizer over single letters, and a tiny Gemma 2."""
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581"]
    vocab = {piece: i for i, piece in enumerate([*special, *(chr(i) for i in range(33, 127)), "\n"])}
    torch.manual_seed(1)
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(vocab), hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8,
        )
    )  # fmt: skip
    return GemmaTokenizer(vocab=vocab, merges=[], model_max_length=4096), encoder


def chroma():
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    tokenizer, encoder = t5()
    torch.manual_seed(0)
    transformer = ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 4, 8), approximator_num_channels=8, approximator_hidden_dim=32,
        approximator_layers=1,
    )  # fmt: skip
    pipe = ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=deep_vae(shift_factor=0.1),
        text_encoder=encoder, tokenizer=tokenizer, transformer=louder(transformer),
    )  # fmt: skip
    pipe.default_sample_size = 8
    return finished(pipe)


def lumina2():
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    tokenizer, encoder = gemma()
    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=4, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=3,
        num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2), axes_lens=(300, 16, 16), cap_feat_dim=8,
    )  # fmt: skip
    return finished(
        Lumina2Pipeline(
            transformer=louder(transformer, ("caption_embedder",)), text_encoder=encoder, tokenizer=tokenizer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0), vae=deep_vae(blocks=4, shift_factor=0.1),
        )
    )  # fmt: skip


def aura_flow():
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer, _ = t5()
    torch.manual_seed(1)
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0,
        )
    )  # fmt: skip
    torch.manual_seed(0)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32, pos_embed_max_size=64,
    )  # fmt: skip
    pipe = AuraFlowPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=deep_vae(), transformer=louder(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )  # fmt: skip
    pipe.default_sample_size = 8
    return finished(pipe)


def hunyuan_dit():
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = [chr(i) for i in range(97, 123)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {piece: i for i, piece in enumerate([*special, *letters, *(f"##{letter}" for letter in letters)])}
    torch.manual_seed(1)
    bert = BertModel(
        BertConfig(
            vocab_size=len(vocab), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=80,
        )
    )  # fmt: skip
    t5_tokenizer, t5_model = t5()
    torch.manual_seed(0)
    transformer = HunyuanDiT2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        cross_attention_dim=16, cross_attention_dim_t5=32, pooled_projection_dim=16, hidden_size=24,
    )  # fmt: skip
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.018,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        steps_offset=1,
    )
    pipe = HunyuanDiTPipeline(
        vae=deep_vae(blocks=4), text_encoder=bert, tokenizer=BertTokenizer(vocab=vocab), transformer=louder(transformer),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        text_encoder_2=t5_model, tokenizer_2=t5_tokenizer,
    )  # fmt: skip
    pipe.default_sample_size = 8
    return finished(pipe)


class TextProcessor:
    """The text side of Kandinsky's Qwen2VLProcessor, whose other half needs torchvision."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.decode = tokenizer.decode

    def __call__(self, text, images=None, videos=None, **settings):
        return self.tokenizer(text, **settings)


def kandinsky5():
    from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5T2IPipeline, Kandinsky5Transformer3DModel

    tokenizer, size = qwen_tokenizer()
    clip_tokenizer, clip_size = tiny_tokenizer(77)
    torch.manual_seed(0)
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=16, in_text_dim2=16, time_dim=16, out_visual_dim=4, model_dim=32, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 6, 6),
    )  # fmt: skip
    pipe = Kandinsky5T2IPipeline(
        transformer=louder(transformer, ("text_embeddings", "cross_attention")), vae=deep_vae(blocks=4),
        text_encoder=qwen_language_model(size),
        tokenizer=TextProcessor(tokenizer),
        text_encoder_2=clip(clip_size, False, positions=77), tokenizer_2=clip_tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )  # fmt: skip
    pipe.resolutions = [(64, 64)]
    return finished(pipe)


def flux2():
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer, size = qwen_tokenizer()
    torch.manual_seed(1)
    encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=size, hidden_size=8, intermediate_size=16, num_hidden_layers=28, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8,
        )
    )  # fmt: skip
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    torch.manual_seed(2)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, sample_size=16,
    )  # fmt: skip
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    pipe = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae, text_encoder=encoder,
        tokenizer=tokenizer, transformer=louder(transformer),
    )  # fmt: skip
    pipe.default_sample_size = 8
    return finished(pipe)


def flux2_dev():
    """Flux 2 with guidance as an input of the network, so one branch, and Mistral as text encoder."""
    from diffusers import Flux2Pipeline, Flux2Transformer2DModel
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    tokenizer, size = qwen_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    text = {
        "model_type": "mistral", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 31,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": size,
    }  # fmt: skip
    vision = {
        "model_type": "pixtral", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
        "intermediate_size": 16, "image_size": 16, "patch_size": 4,
    }  # fmt: skip
    torch.manual_seed(1)
    encoder = Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, image_token_index=4)
    )
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    other = flux2()
    pipe = Flux2Pipeline(
        scheduler=other.scheduler, vae=other.vae, text_encoder=encoder, tokenizer=tokenizer,
        transformer=louder(transformer),
    )  # fmt: skip
    pipe.default_sample_size = 8
    return finished(pipe)


def deep_floyd():
    """A pixel model that learns its variance and takes no initial latents."""
    from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel

    tokenizer, encoder = t5()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=(16, 16),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), in_channels=3, out_channels=6,
        cross_attention_dim=32, encoder_hid_dim=32, attention_head_dim=8, addition_embed_type="text",
        addition_embed_type_num_heads=2, cross_attention_norm="group_norm", resnet_time_scale_shift="scale_shift",
        act_fn="gelu", norm_num_groups=4,
    )  # fmt: skip
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    return finished(
        IFPipeline(
            tokenizer=tokenizer, text_encoder=encoder, unet=unet, scheduler=scheduler, safety_checker=None,
            feature_extractor=None, watermarker=None, requires_safety_checker=False,
        )
    )  # fmt: skip


def hidream():
    """Mixture of experts over four text encoders, two of them CLIP's, T5 and Llama."""
    from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImagePipeline, HiDreamImageTransformer2DModel
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer, size = tiny_tokenizer(77)
    t5_tokenizer, t5_model = t5()
    llama_tokenizer, llama_size = qwen_tokenizer()
    torch.manual_seed(1)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=llama_size, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, pad_token_id=1,
        )
    )  # fmt: skip
    torch.manual_seed(0)
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_channels=[32, 16], text_emb_dim=32, num_routed_experts=4, num_activated_experts=2,
        axes_dims_rope=(4, 2, 2), max_resolution=(32, 32), llama_layers=(0, 1),
    )  # fmt: skip
    pipe = HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=deep_vae(shift_factor=0.1),
        text_encoder=clip(size, True, positions=128), tokenizer=tokenizer,
        text_encoder_2=clip(size, True, 5, positions=128), tokenizer_2=tiny_tokenizer(77)[0],
        text_encoder_3=t5_model, tokenizer_3=t5_tokenizer, text_encoder_4=llama, tokenizer_4=llama_tokenizer,
        transformer=louder(transformer, ("caption_projection", "to_v_t")),
    )  # fmt: skip
    pipe.default_sample_size = 8
    return finished(pipe)


def prx():
    """Photoroom's flow transformer with T5Gemma as text encoder."""
    import diffusers.pipelines.prx.pipeline_prx as module
    from diffusers import FlowMatchEulerDiscreteScheduler, PRXPipeline, PRXTransformer2DModel
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    module.ftfy = SimpleNamespace(fix_text=str)  # repairs broken encodings, which the prompts of tests have not
    tokenizer, _ = gemma()
    tokenizer.model_max_length = 64
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 64,
        "layer_types": ["full_attention"], "query_pre_attn_scalar": 4, "dropout_rate": 0.0,
    }  # fmt: skip
    torch.manual_seed(1)
    encoder = T5GemmaEncoder(T5GemmaModuleConfig(**settings))
    torch.manual_seed(0)
    transformer = PRXTransformer2DModel(
        patch_size=1,
        in_channels=4,
        context_in_dim=8,
        hidden_size=8,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[2, 2],
    )
    pipe = PRXPipeline(
        transformer=louder(transformer, ("txt_in", "txt_kv_proj")), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=encoder, tokenizer=tokenizer, vae=deep_vae(shift_factor=0.1), default_sample_size=16,
    )  # fmt: skip
    return finished(pipe)


CAPTURED = {
    "chroma": chroma, "lumina2": lumina2, "aura-flow": aura_flow, "hunyuan-dit": hunyuan_dit, "kandinsky5": kandinsky5,
    "flux2-klein": flux2, "flux2-dev": flux2_dev, "deep-floyd": deep_floyd, "hidream": hidream, "prx": prx,
}  # fmt: skip
TARGETS = {"kandinsky5": ["to_query", "to_key", "to_value"], "prx": ["img_qkv_proj", "txt_kv_proj"]}
"""Layers of LoRAs where they are called otherwise than to_q, to_k, to_v."""
