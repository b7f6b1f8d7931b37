"""Hold a component's config against the arguments of its class: diffusers takes any value and asks `if value` later."""

from __future__ import annotations

import inspect
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

from diffmem.errors import ModelError

_LAYERS = re.compile(r"layers(_|$)|(blocks|heads|depth)$")
_WIDTHS = re.compile(r"(channels|heads|_dim|hidden_size|_groups|d_model|d_ff|d_kv)$")
_SIZES = re.compile(r"(size|length|_len|positions|embeds|embeddings|_ada_norm)$")
_NUMBERS = re.compile(r"^num_|(theta|eps|epsilon|_dim|hidden_size|d_model|d_ff|d_kv)$")
"""What transformers takes true for 1 in, without a word."""
_EPSILON = re.compile(r"(^|_)eps(ilon)?$")
_NEVER_ZERO = frozenset(
    ("in_channels", "latent_channels", "hidden_size", "num_attention_heads", "attention_head_dim", "cross_attention_dim",
     "joint_attention_dim", "caption_channels", "d_model", "d_kv", "block_out_channels")
)  # fmt: skip
_MOST_LAYERS, _WIDEST, _LONGEST = 4096, 1 << 20, 1 << 26
_LARGEST = 1e12
"""Of any number in a component's config: nothing counts, scales or lasts longer."""


def check_counts(values: Mapping[str, Any], where: str) -> None:
    """Refuse widths, heads and layers that no model has, before anything is built of them.

    Args:
        values: a component's config.json, with the configs inside it.
        where: what to call it in the message.
    """
    for key, value in values.items():
        if isinstance(value, dict):
            check_counts(value, where)
            continue
        layers, width = _LAYERS.search(key), _WIDTHS.search(key)
        if isinstance(value, bool) and _NUMBERS.search(key):
            raise ModelError(f"{where} says {key} = {value}; expected a number. Correct the config or copy it again.")
        if _EPSILON.search(key) and isinstance(value, int | float) and not 0 <= value < 1:
            raise ModelError(
                f"{where} says {key} = {value}; expected a small number. Correct the config or copy it again."
            )
        if not layers and not width and not _SIZES.search(key):
            continue
        most = _MOST_LAYERS if layers else _WIDEST if width else _LONGEST
        least = 1 if key in _NEVER_ZERO else 0
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int | float) or isinstance(number, bool):
                continue  # null, a name, or what `check_types` looks at
            whole = number == number and math.isfinite(number) and number == int(number)
            if number > most or (width and (not whole or number < least)):
                expected = f"a whole number from {least} to {most}" if width else f"at most {most}"
                raise ModelError(
                    f"{where} says {key} = {_short(value)}; expected {expected}. It is not opened: correct the config or "
                    "copy it again."
                )


def check_types(values: Mapping[str, Any], kind: type, where: str) -> None:
    """Refuse entries of a diffusers config whose type is not that of the class's default.

    Args:
        values: the config.
        kind: the class that it is for.
        where: what to call it in the message.
    """
    for name, parameter in inspect.signature(kind).parameters.items():
        default, value = parameter.default, values.get(name)
        if value is None or default is None or default is inspect.Parameter.empty:
            continue
        if not _same_type(value, default):
            raise ModelError(
                f"{where} says {name} = {_short(value)}; a {kind.__name__} has {_word(default)} there (by default "
                f"{_short(default)}). Correct the config or copy it again."
            )


def _same_type(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        # One, or one for each block (only_cross_attention).
        return all(n in (0, 1) for n in (value if isinstance(value, list | tuple) and value else [value]))
    if isinstance(default, numbers.Real):
        # One number, or one for each block.
        several = value if isinstance(value, list | tuple) else [value]
        flat = [v for n in several for v in (n if isinstance(n, list | tuple) else [n])]
        return bool(several) and all(_number(v, math.isfinite(default)) for v in flat)
    if isinstance(default, str):
        return isinstance(value, str) or (
            isinstance(value, list | tuple) and all(v is None or isinstance(v, str) for v in value)
        )
    return not isinstance(value, dict) or isinstance(default, dict)


def _number(value: Any, finite: bool) -> bool:
    # A sampler's bound may be infinite by default (lambda_min_clipped), and only then.
    is_one = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return value is None or (is_one and (abs(value) <= _LARGEST or not finite))


def _word(default: Any) -> str:
    kinds = ((bool, "true or false"), (numbers.Real, "a finite number"), (str, "a text"))
    return next((word for kind, word in kinds if isinstance(default, kind)), "a list")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
