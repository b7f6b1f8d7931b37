"""Do a pipeline's tokenizers and text encoders belong together?"""

from __future__ import annotations

import math
from typing import Any

from diffmem.errors import ModelError
from diffmem.models.families._inputs import kind_of, unwrapped

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def check_tokenizers(pipeline: Any) -> None:
    """Refuse a tokenizer that gives its text encoder more tokens, or others, than that can read.

    Raises:
        ModelError: a limit that is none or beyond the encoder's positions, a special token without an embedding, or an
            end of text at which the encoder does not look.
    """
    for name, encoder in pipeline.components.items():
        if not name.startswith("text_encoder") or encoder is None:
            continue
        key = name.replace("text_encoder", "tokenizer")
        tokenizer = pipeline.components.get(key)
        if not hasattr(tokenizer, "model_max_length"):
            continue
        rows = _rows(unwrapped(encoder))
        config = getattr(unwrapped(encoder), "config", None)
        limit, positions = tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)
        clip = kind_of(encoder).startswith("CLIPText")
        if (
            not isinstance(limit, int | float)
            or isinstance(limit, bool)
            or not 2 < limit < math.inf
            or (clip and limit != int(limit))
        ):
            raise ModelError(f"{key} says model_max_length = {limit!r}; expected a number of tokens. {_mend(key)}")
        if clip and isinstance(positions, int) and limit > positions:
            raise ModelError(
                f"{key} makes up to {limit:g} tokens of a prompt (model_max_length) and {name} has {positions} positions: "
                f"the model would fail on its prompts. {_mend(key)}"
            )
        if rows and 2 * len(tokenizer) < rows:
            raise ModelError(
                f"{key} knows {len(tokenizer)} tokens and {name} has embeddings for {rows}: its vocabulary is lost or of another "
                f"model, so that different prompts would be alike. {_mend(key)}"
            )
        numbers = tokenizer.get_vocab().values() if hasattr(tokenizer, "get_vocab") else ()
        if len(set(numbers)) < len(numbers):
            raise ModelError(f"{key} gives several tokens one number: its vocabulary is damaged. {_mend(key)}")
        empty = [kind for kind in _SPECIAL if getattr(tokenizer, f"_{kind}", getattr(tokenizer, kind, None)) == ""]
        if empty:
            raise ModelError(f"{key} has an empty {empty[0]}, which no text encoder was trained with. {_mend(key)}")
        try:
            own = {str(token) for kind in _SPECIAL if (token := getattr(tokenizer, kind, None))}
            known = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=False)
            special = {token: number for token, number in known if token in own}  # others stand in no template
        except Exception as problem:  # transformers looks for an unknown token's number without an end
            raise ModelError(
                f"The special tokens of {key} cannot be looked up ({type(problem).__name__}). {_mend(key)}"
            ) from problem
        lost = [token for token, number in special.items() if number is None or (rows and not 0 <= number < rows)]
        if lost:
            raise ModelError(
                f"{key} has the special token {lost[0]!r}, for which {name} has no embedding (it has {rows}). {_mend(key)}"
            )
        _check_end(pipeline, name, key, config if clip else None, tokenizer)


def _check_end(pipeline: Any, name: str, key: str, config: Any, tokenizer: Any) -> None:
    """CLIP's pooled output is read at the end of the text: at the token that the config names (2: at the largest)."""
    end = getattr(config, "eos_token_id", None)
    pooled = "text_encoder_2" in pipeline.components
    if pooled and isinstance(end, int) and end not in (2, tokenizer.eos_token_id):
        raise ModelError(
            f"{name} looks for the end of a text at token {end} (eos_token_id of its config) and {key} ends texts with "
            f"{tokenizer.eos_token_id}: the pooled embedding would be that of no prompt's end. Correct the config."
        )


def _rows(encoder: Any) -> int | None:
    table = encoder.get_input_embeddings() if hasattr(encoder, "get_input_embeddings") else None
    return None if table is None else int(table.weight.shape[0])


def _mend(key: str) -> str:
    return f"Copy the folder {key} of the original model again."
