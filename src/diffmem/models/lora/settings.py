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


def network_alpha(header: Mapping[str, str], conv: bool) -> float | None:
    """`ss_network_alpha` of sd-scripts' header (`conv_alpha` of the network's arguments for kernels above 1x1)."""
    text = header.get("ss_network_alpha")
    if conv:
        try:
            arguments = json.loads(header.get("ss_network_args") or "{}")
            text = arguments.get("conv_alpha", text) if isinstance(arguments, dict) else text
        except ValueError:
            pass  # an argument list that is no JSON says nothing of convolutions
    try:
        return None if text is None else float(text)
    except ValueError:
        return None  # "Dynamic", after resizing: alpha is in the tensors then
