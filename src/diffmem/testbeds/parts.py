"""Building blocks of the trained testbeds: real diffusers and transformers classes at tiny size, made from nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffmem.errors import UsageError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
IMAGE_GAIN = 2.0**-9


def identity_vae(channels: int, image_size: int) -> AutoencoderKL:
    r"""An autoencoder that is the identity, so that a latent-diffusion pipeline runs in pixel space.

    Every image channel x becomes one GroupNorm group [d·x, −d·x, √2, −√2] with d = 2⁻⁹. Its mean is 0 and its variance
    1 + d²·mean(x²)/2, so the norm changes nothing to first order; its gain 1/d brings back ±x, and
    SiLU(x) − SiLU(−x) = x holds exactly. Residual branches are zero, the log-variance is −30 (σ = 3e-7).

    Args:
        channels: image channels, which are the latent channels, too.
        image_size: side of the square images; recorded in the config only.

    Returns:
        A frozen AutoencoderKL in eval mode with scaling factor 1 and no down-sampling; the error for images in [−1, 1]
        is below 2e-5 in float32.
    """
    import torch
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=channels,
        block_out_channels=(4 * channels,),
        layers_per_block=1,
        norm_num_groups=channels,
        sample_size=image_size,
        scaling_factor=1.0,
        force_upcast=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        for half in (vae.encoder, vae.decoder):
            half.conv_norm_out.weight.fill_(1 / IMAGE_GAIN)
            for channel in range(channels):
                first = 4 * channel
                half.conv_in.weight[first, channel, 1, 1] = IMAGE_GAIN
                half.conv_in.weight[first + 1, channel, 1, 1] = -IMAGE_GAIN
                half.conv_in.bias[first + 2] = 2**0.5
                half.conv_in.bias[first + 3] = -(2**0.5)
                half.conv_out.weight[channel, first, 1, 1] = 1.0
                half.conv_out.weight[channel, first + 1, 1, 1] = -1.0
        vae.encoder.conv_out.bias[channels:] = -30.0
    frozen: AutoencoderKL = vae.eval().requires_grad_(False)
    return frozen


def clip_tokenizer(corpus: Sequence[str], vocab_size: int, max_length: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learned from a corpus; the same corpus gives the same tokenizer.

    Args:
        corpus: captions; CLIP lower-cases them.
        vocab_size: upper limit on the tokens, the two special ones included; at least 514 (every byte inside and at
            the end of a word, start, end). Fewer are made when the corpus runs out of pairs.
        max_length: tokens of an encoded caption, start and end included.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < 2 * len(alphabet) + 2:
        raise UsageError(
            f"vocab_size is {vocab_size}; every byte must have a token: give {2 * len(alphabet) + 2} or more."
        )
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        special_tokens=[*alphabet, *(letter + WORD_END for letter in alphabet)],
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(sorted(set(corpus)), trainer)
    tokens = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    vocab = {token: number for number, (token, _) in enumerate(tokens)}
    vocab[START], vocab[END] = len(vocab), len(vocab) + 1
    merges: Any = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def clip_text_encoder(
    tokenizer: CLIPTokenizer, hidden: int = 64, layers: int = 2, heads: int = 4, intermediate: int = 128
) -> CLIPTextModel:
    """A randomly initialised CLIP text encoder that fits a tokenizer made by `clip_tokenizer`, in eval mode."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        projection_dim=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder: CLIPTextModel = CLIPTextModel(config).eval()
    return encoder
