"""New tokens that a LoRA was trained with: their embeddings go into the pipeline's tokenizers and text encoders."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from diffmem.errors import ModelError, first_line
from diffmem.models.loading import quiet_libraries

if TYPE_CHECKING:
    from diffmem.models.lora.load import Loaded

ENCODERS = {
    "clip_l": 0, "text_encoders_0": 0, "clip_g": 1, "text_encoders_1": 1, "t5": -1, "t5xxl": -1, "string_to_param": 0,
    "emb_params": 0,
}  # fmt: skip
"""What files call the text encoder that an embedding is for -> its number among the pipeline's (the last, for T5)."""


def add_tokens(pipeline: Any, embeddings: dict[str, Any], loaded: Loaded) -> None:
    """Add tokens with these embeddings; what was added is in `loaded`.

    Args:
        pipeline: with tokenizers and text encoders.
        embeddings: "FILE:KEY" of a file beside the LoRA, or "bundle_emb.TOKEN…" from within it -> [vectors, width].
        loaded: of the LoRA, gets tokens and notes.

    Raises:
        ModelError: an embedding that has no place in this pipeline.
    """
    for key, value in embeddings.items():
        name, encoder = _named(key, loaded)
        if value.ndim == 1:
            value = value[None]
        tokens = name if isinstance(name, list) else [name, *(f"{name}_{i}" for i in range(1, len(value)))]
        if isinstance(name, str) and len(value) > 1 and not hasattr(pipeline, "maybe_convert_prompt"):
            raise ModelError(
                f"The LoRA {loaded.name} comes with {len(value)} vectors for the token {name} ({key}), which a "
                f"{type(pipeline).__name__} does not put in its place."
            )
        if name == []:
            tokens = [f"<s{i}>" for i in range(len(value))]
        _add(pipeline, encoder, tokens, value, key, loaded)


def _named(key: str, loaded: Loaded) -> tuple[str | list[str], int]:
    """(the token, or an empty list where the trainer numbers them; the text encoder's number)."""
    bundled = re.fullmatch(r"bundle_emb\.(?P<token>.+?)\.(?P<part>string_to_param\.\*|clip_l|clip_g|t5(?:xxl)?)", key)
    if bundled:
        return bundled["token"], ENCODERS[bundled["part"].removesuffix(".*")]
    file, _, part = key.partition(":")
    if part in ENCODERS:  # diffusers' advanced scripts: <s0>, <s1>, … in the order of the rows
        return [], ENCODERS[part]
    if re.fullmatch(r"<[^>]+>|[\w-]+", part) and file.startswith("learned_embeds"):
        return part, 1 if re.search(r"_(2|two|g)\b", file.rpartition(".")[0]) else 0
    raise ModelError(
        f"The LoRA {loaded.name} comes with {key}, in which no embedding of a token is recognised; move the file away or "
        "put its tokens into the pipeline with diffusers (load_textual_inversion)."
    )


def _add(pipeline: Any, number: int, tokens: list[str], vectors: Any, key: str, loaded: Loaded) -> None:
    import torch

    suffixes = [s for s in ("", "_2", "_3") if pipeline.components.get(f"text_encoder{s}") is not None]
    if not -1 <= number < len(suffixes) or not suffixes:
        raise ModelError(
            f"The LoRA {loaded.name} comes with embeddings ({key}) for a text encoder that a {type(pipeline).__name__} does "
            "not have."
        )
    suffix = suffixes[number]
    encoder, tokenizer = pipeline.components[f"text_encoder{suffix}"], pipeline.components[f"tokenizer{suffix}"]
    width = encoder.get_input_embeddings().weight.shape[1]
    if vectors.ndim != 2 or vectors.shape[1] != width or not torch.isfinite(vectors.float()).all():
        raise ModelError(
            f"The LoRA {loaded.name} comes with embeddings ({key}) of shape {tuple(vectors.shape)}; expected finite numbers "
            f"[tokens, {width}] for text_encoder{suffix}."
        )
    known = [token for token in tokens if token in tokenizer.get_vocab()]
    if known:
        raise ModelError(
            f"The LoRA {loaded.name} comes with embeddings ({key}) for {known[0]}, a token that the tokenizer has already."
        )
    try:
        with quiet_libraries(), torch.no_grad():
            tokenizer.add_tokens(tokens)
            if len(tokenizer) > len(encoder.get_input_embeddings().weight):  # T5 has more rows than tokens
                encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            ids = tokenizer.convert_tokens_to_ids(tokens)
            table = encoder.get_input_embeddings().weight
            table[ids] = vectors.to(table.device, table.dtype)
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError) as problem:
        raise ModelError(
            f"The tokens of {key} cannot be added to tokenizer{suffix}: {first_line(problem)}"
        ) from problem
    read = tokenizer(" ".join(tokens), add_special_tokens=False)["input_ids"]
    if list(read) != list(ids):
        raise ModelError(f"tokenizer{suffix} does not read the tokens {' '.join(tokens)} of {key} as one token each.")
    loaded.tokens += [token for token in tokens if token not in loaded.tokens]
    loaded.notes.append(
        f"the LoRA {loaded.name} brings embeddings ({key}): the new tokens {' '.join(tokens)} are in text_encoder{suffix}; "
        "prompts must hold them to use them"
    )
