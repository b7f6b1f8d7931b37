"""Tiny pipelines whose networks no score describes: they generate only."""

from __future__ import annotations

import torch

from tests.tiny import tiny_tokenizer
from tests.tiny_captured import deep_vae
from tests.tiny_families import clip, finished, louder, t5


def amused():
    """Masked tokens of a codebook instead of noise."""
    from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel

    tokenizer, size = tiny_tokenizer()
    torch.manual_seed(0)
    transformer = UVit2DModel(
        hidden_size=16, use_bias=False, hidden_dropout=0.0, cond_embed_dim=16, micro_cond_encode_dim=2,
        micro_cond_embed_dim=10, encoder_hidden_size=16, vocab_size=32, codebook_size=8, in_channels=8,
        block_out_channels=8, num_res_blocks=1, downsample=True, upsample=True, block_num_heads=1, num_hidden_layers=1,
        num_attention_heads=1, attention_dropout=0.0, intermediate_size=8, layer_norm_eps=1e-6,
        ln_elementwise_affine=True,
    )  # fmt: skip
    vqvae = VQModel(
        block_out_channels=[8], down_block_types=["DownEncoderBlock2D"], up_block_types=["UpDecoderBlock2D"],
        in_channels=3, out_channels=3, latent_channels=8, norm_num_groups=8, num_vq_embeddings=8, sample_size=8,
        mid_block_add_attention=False, lookup_from_codebook=True,
    )  # fmt: skip
    return finished(
        AmusedPipeline(
            vqvae=vqvae, tokenizer=tokenizer, text_encoder=clip(size, True), transformer=transformer,
            scheduler=AmusedScheduler(mask_token_id=31),
        )
    )  # fmt: skip


def stable_cascade():
    """A prior and a decoder, each a diffusion of its own."""
    from diffusers import DDPMWuerstchenScheduler, StableCascadeCombinedPipeline, StableCascadeUNet
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    tokenizer, size = tiny_tokenizer()
    torch.manual_seed(0)
    prior = StableCascadeUNet(
        in_channels=4, out_channels=4, conditioning_dim=16, block_out_channels=(16, 16), num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1), switch_level=(False,),
        clip_image_in_channels=16, clip_text_in_channels=16, clip_text_pooled_in_channels=16, dropout=(0.1, 0.1),
        down_blocks_repeat_mappers=(1, 1), up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
    )  # fmt: skip
    decoder = StableCascadeUNet(
        in_channels=4, out_channels=4, conditioning_dim=16, block_out_channels=(8, 8), num_attention_heads=(0, 2),
        down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1), clip_text_pooled_in_channels=16,
        effnet_in_channels=4, patch_size=2, dropout=(0.1, 0.1), down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock"),
                               ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")),
    )  # fmt: skip
    return finished(
        StableCascadeCombinedPipeline(
            tokenizer=tokenizer, text_encoder=clip(size, True), decoder=decoder, scheduler=DDPMWuerstchenScheduler(),
            vqgan=PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2), prior_prior=prior,
            prior_text_encoder=clip(size, True), prior_tokenizer=tokenizer, prior_scheduler=DDPMWuerstchenScheduler(),
            prior_feature_extractor=None, prior_image_encoder=None,
        )
    )  # fmt: skip


def cogview4():
    """Its sampler gives the network unshifted times of shifted noise levels, so it cannot be captured."""
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import GlmConfig, GlmModel

    tokenizer, _ = t5()
    torch.manual_seed(1)
    encoder = GlmModel(
        GlmConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    torch.manual_seed(0)
    transformer = CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=4,
        text_embed_dim=32, time_embed_dim=8, condition_dim=4, pos_embed_max_size=8, sample_size=8, rope_axes_dim=(8, 8),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return finished(
        CogView4Pipeline(
            tokenizer=tokenizer, text_encoder=encoder, vae=deep_vae(), transformer=louder(transformer), scheduler=scheduler
        )
    )  # fmt: skip


def kandinsky22():
    """A pipeline of pipelines: a prior makes an image embedding of the prompt, another network the image."""
    from diffusers import (
        DDIMScheduler,
        KandinskyV22CombinedPipeline,
        PriorTransformer,
        UnCLIPScheduler,
        UNet2DConditionModel,
        VQModel,
    )
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    tokenizer, size = tiny_tokenizer()
    torch.manual_seed(0)
    vision = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16, image_size=32, projection_dim=16, intermediate_size=16, num_attention_heads=2,
            num_hidden_layers=1, patch_size=16,
        )
    )  # fmt: skip
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        embedding_dim=16,
        num_embeddings=16,
        clip_embed_dim=16,
    )
    prior.clip_std.data.fill_(1.0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=8, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), addition_embed_type="image",
        encoder_hid_dim=16, encoder_hid_dim_type="image_proj", cross_attention_dim=16, attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    movq = VQModel(
        in_channels=3, out_channels=3, block_out_channels=(32, 32), norm_num_groups=8, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        sample_size=16, num_vq_embeddings=16, norm_type="spatial", vq_embed_dim=4,
    )  # fmt: skip
    return finished(
        KandinskyV22CombinedPipeline(
            unet=unet, scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1), movq=movq,
            prior_prior=prior, prior_image_encoder=vision, prior_text_encoder=clip(size, True),
            prior_tokenizer=tokenizer, prior_image_processor=CLIPImageProcessor(crop_size=32, size=32),
            prior_scheduler=UnCLIPScheduler(
                variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000,
                clip_sample_range=10.0,
            ),
        )
    )  # fmt: skip


UNCOMMON = {"cogview4": cogview4, "kandinsky22": kandinsky22, "amused": amused, "stable-cascade": stable_cascade}
