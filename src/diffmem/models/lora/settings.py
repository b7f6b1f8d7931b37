"""Alpha and rank where they stand beside the weights: in the file's header or in peft's adapter_config.json."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffmem.errors import ModelError

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of peft that subtract from the base's weights; such an adapter belongs to weights that are not the base's."""
UNREAD = {
    "modules_to_save": "whole layers are saved beside it (modules_to_save)",
    "layer_replication": "layers are used several times (layer_replication)",
    "trainable_token_indices": "rows of the token embedding were trained (trainable_token_indices)",
    "target_parameters": "bare parameters were trained (target_parameters)",
    "megatron_config": "it is for Megatron's layers",
    "use_qalora": "it is for quantised layers (QALoRA)",
    "alora_invocation_tokens": "it works from an invocation token on only (aLoRA)",
    "arrow_config": "it routes between several LoRAs (Arrow)",
    "layers_to_transform": None,
}
KNOWN = frozenset(UNREAD) | {
    "alpha", "alpha_dropout", "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "decompose_both", "decompose_factor", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "init_weights", "layers_pattern", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout",
    "lora_ga_config", "module_dropout", "peft_type", "peft_version", "qalora_group_size", "r", "rank_dropout",
    "rank_dropout_scale", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_dora",
    "use_effective_conv2d", "use_rslora", "ensure_weight_tying", "megatron_core",
}  # fmt: skip
MERGE = (
    "Merge it into its base with the tool that trained it (peft: merge_and_unload, then save_pretrained) and audit the "
    "merged model"
)


@dataclass(frozen=True)
class Settings:
    """What a LoRA's config says, where there is one.

    Attributes:
        config: of peft, as a dictionary.
        source: where it stands.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def alpha(self, layer: str) -> float | None:
        """lora_alpha of one layer, by its name in the network."""
        found = _by_pattern(
            self.config.get("alpha_pattern"), layer, self.config.get("lora_alpha", self.config.get("alpha"))
        )
        return None if found is None else float(found)

    def rank(self, layer: str) -> int | None:
        """The rank of one layer."""
        found = _by_pattern(self.config.get("rank_pattern"), layer, self.config.get("r"))
        return None if found is None else int(found)

    def scaling(self, layer: str, rank: int | None) -> float | None:
        """Alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA; None where no alpha is given."""
        alpha, r = self.alpha(layer), rank or self.rank(layer)
        if alpha is None or r is None:
            return None
        return alpha / (math.sqrt(r) if self.config.get("use_rslora") else r)


def _by_pattern(patterns: Any, layer: str, otherwise: Any) -> Any:
    """Peft's rule: the first pattern that the end of the layer's name matches."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return otherwise


def peft_settings(config: Mapping[str, Any], source: str, kinds: str) -> Settings:
    """Settings of a peft config, held against what can be loaded rightly.

    Raises:
        ModelError: the config says something of the adapter that its weights alone do not give.
    """
    _check_values(config, source)
    kind = str(config.get("peft_type") or "LORA").upper().rpartition(".")[2]
    if kind not in ("LORA", "LOHA", "LOKR"):
        raise ModelError(f"{source} says that this is a {kind} adapter, not a LoRA. {MERGE}.")
    start = str(config.get("init_lora_weights") or "")
    if start.lower().startswith(CHANGES_BASE):
        raise ModelError(
            f"{source} says init_lora_weights={start!r}: training began by taking a part out of the base's weights, so "
            f"the adapter belongs to those and not to the base. {MERGE}."
        )
    for name, why in UNREAD.items():
        if why and config.get(name):
            raise ModelError(f"{source} says that {why}, which cannot be loaded here. {MERGE}.")
    if config.get("use_dora") and "DoRA" not in kinds:
        raise ModelError(f"{source} says use_dora, and the file holds no magnitudes; copy or save the LoRA again.")
    return Settings(config, source)


def _check_values(config: Mapping[str, Any], source: str) -> None:
    """Refuse alphas and ranks that are no numbers, and patterns that are no regular expressions."""
    for name in ("lora_alpha", "alpha", "r"):
        if name in config and (_number(config[name]) is None or not math.isfinite(float(config[name]))):
            raise ModelError(f"{source} says {name} = {config[name]!r}; expected a number. Save the LoRA again.")
    if "lora_alpha" not in config and "alpha" not in config:
        raise ModelError(f"{source} gives no lora_alpha, so the strength of the LoRA is not known; add it.")
    for name in ("alpha_pattern", "rank_pattern"):
        patterns = config.get(name) or {}
        if not isinstance(patterns, dict) or any(_number(value) is None for value in patterns.values()):
            raise ModelError(f"{source} says {name} = {patterns!r}; expected layers' names and a number for each.")
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as problem:
                raise ModelError(
                    f"{source} has the {name} {pattern!r}, no regular expression ({problem})."
                ) from problem


def unknown(config: Mapping[str, Any]) -> list[str]:
    """Entries of a peft config that are set, and of which it is not known here what they do to the weights."""
    return sorted(k for k, v in config.items() if v and k not in KNOWN)


def header_settings(header: Mapping[str, str], component: str) -> Mapping[str, Any]:
    """What a safetensors header says in peft's words about the LoRA of one component; nothing where it does not.

    diffusers writes `lora_adapter_metadata`: one JSON of peft's fields, each with the component before it.
    """
    found: dict[str, Any] = {}
    for value in header.values():
        try:
            read = json.loads(value)
        except (TypeError, ValueError):
            continue
        if not isinstance(read, dict):
            continue
        prefixed = {k.removeprefix(f"{component}."): v for k, v in read.items() if k.startswith(f"{component}.")}
        mine = prefixed or {k: v for k, v in read.items() if "." not in k}
        if "lora_alpha" in mine:
            found |= mine
    if not found and "lora_alpha" in header:
        found = {k: header[k] for k in ("lora_alpha", "r") if k in header}
    return found


def says_dora(header: Mapping[str, str]) -> bool:
    """Whether the network's arguments in sd-scripts' header ask for magnitudes (LyCORIS' dora_wd)."""
    found = re.search(r'"?(dora_wd|weight_decompose|use_dora)"?\s*[:=]\s*"?(\w+)', header.get("ss_network_args") or "")
    return found is not None and found[2].lower() == "true"


def network_alpha(header: Mapping[str, str], conv: bool) -> float | None:
    """Alpha by the header of sd-scripts (`ss_network_alpha`, `conv_alpha` for kernels above 1x1) or of any other trainer."""
    if conv:
        found = _number_in(header.get("ss_network_args"), "conv_alpha")
        if found is not None:
            return found
    told = _number(header.get("ss_network_alpha"))  # "Dynamic" after resizing: alpha is in the tensors then
    if told is not None or "ss_network_alpha" in header:
        return told
    for name, text in header.items():
        own = _number(text) if _ALPHA.fullmatch(name) else None
        inside = own if own is not None else _number_in(text, None)
        if inside is not None:
            return inside
    return None


_ALPHA = re.compile(r"(.*[._-])?(lora|network)?_?alpha", re.IGNORECASE)


def _number(text: Any) -> float | None:
    try:
        return None if text is None or isinstance(text, bool) else float(text)
    except (TypeError, ValueError):
        return None


def _number_in(text: str | None, wanted: str | None) -> float | None:
    """The number of an entry in a JSON text, at any depth: of this name, or any that is called alpha."""
    try:
        waiting = [json.loads(text or "")]
    except (ValueError, RecursionError):
        return None  # no JSON: it says nothing
    while waiting:
        value = waiting.pop()
        if not isinstance(value, dict):
            continue
        for name, inner in value.items():
            named = name == wanted if wanted is not None else _ALPHA.fullmatch(str(name)) is not None
            found = _number(inner) if named else None
            if found is not None:
                return found
            waiting.append(inner)
    return None
