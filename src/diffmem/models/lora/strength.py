"""How strongly each layer of a LoRA counts: alpha / r, from wherever the file says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from diffmem.errors import ModelError
from diffmem.models.lora.choice import LoraChoice
from diffmem.models.lora.entries import Entry
from diffmem.models.lora.files import Weights
from diffmem.models.lora.settings import Settings, header_settings, network_alpha, peft_settings, unknown


class Strengths:
    """Alpha / r of the layers of one LoRA, and what had to be assumed.

    Args:
        choice: which LoRA, and at what scale.
        refuse: makes the error that a sentence about the LoRA ends in.
    """

    def __init__(self, choice: LoraChoice, refuse: Callable[[str], ModelError]) -> None:
        self.choice, self.refuse = choice, refuse
        self._assumed: Counter[str] = Counter()
        self._converted = ""
        self._unknown: dict[str, None] = {}

    def of(self, entry: Entry, layer: str, component: str, weights: Weights, kinds: str) -> float:
        """Alpha / r of one layer, from its tensor, peft's config, or the header; else 1."""
        if entry.kind == "difference":
            return 1.0
        rank, given = entry.rank, entry.tensors.get("alpha")
        config, source = weights.config, "adapter_config.json"
        if config is None:
            config, source = dict(header_settings(weights.header, component)), "the file's header"
        settings = peft_settings(config, source, kinds) if config else Settings()
        self._unknown |= dict.fromkeys(unknown(config) if weights.config is not None else ())
        said_rank = settings.rank(layer)
        if rank is not None and said_rank is not None and said_rank != rank and entry.kind == "LoRA":
            raise self.refuse(f"{source} says rank {said_rank} for {layer}, and the file's weights have rank {rank}")
        told = settings.scaling(layer, rank)
        if given is not None:
            if given.numel() != 1:
                raise self.refuse(f"{entry.keys['alpha']} holds {given.numel()} values; expected one")
            own = float(given) / rank if rank else 1.0  # LyCORIS: full matrices are not scaled
            if told is not None and abs(own - told) > 1e-3 * abs(own):
                raise self.refuse(f"{entry.keys['alpha']} makes alpha/r {own:g}, and {source} {told:g}")
            return own
        if told is not None:
            return told
        return self._without_alpha(entry, rank, weights)

    def _without_alpha(self, entry: Entry, rank: int | None, weights: Weights) -> float:
        kernel = entry.tensors["down"].shape[2:] if "down" in entry.tensors else ()
        alpha = network_alpha(weights.header, max(kernel, default=1) > 1)
        if alpha is not None and rank is not None and abs(alpha - rank) > 1e-3 and self.choice.scale is None:
            # sd-scripts' converters to names with lora_A multiply alpha/r in and keep the header.
            if "ss_network_alpha" in weights.header and any("lora_A" in key for key in entry.keys.values()):
                self._assumed["converted"] += 1
                self._converted = f"alpha {alpha:g} at rank {rank}"
                return 1.0
            raise self.refuse(
                f"its header says alpha {alpha:g} at rank {rank}, and {entry.layer} holds no alpha, so that its strength is "
                f"either {alpha / rank:g} or, if a converter has multiplied it in, 1; say which with "
                f"{self.choice.file}:{alpha / rank:g} or {self.choice.file}:1"
            )
        peft = weights.config is None and any(key.startswith("base_model.model.") for key in entry.keys.values())
        self._assumed["peft" if peft else "other"] += 1
        return 1.0

    def notes(self, name: str, layers: int) -> list[str]:
        """What was assumed, in sentences.

        Args:
            name: of the LoRA.
            layers: how many of its entries were asked about.
        """
        said = []
        if self._unknown:
            said.append(
                f"the config of the LoRA {name} sets {', '.join(self._unknown)}, of which nothing is known here and nothing "
                "was done"
            )
        if self._assumed["converted"]:
            said.append(
                f"the header of the LoRA {name} says {self._converted}, and its weights have the names that converters give "
                "after multiplying alpha/r in: taken as they are (alpha/r = 1). If it was not multiplied in, give alpha/r as "
                "the scale"
            )
        elif self._assumed["peft"]:
            said.append(
                f"the LoRA {name} is in peft's format without its adapter_config.json, which holds alpha: taken as the rank "
                "(alpha/r = 1)"
            )
        elif 0 < self._assumed["other"] < layers:
            said.append(
                f"{self._assumed['other']} of {layers} layers of the LoRA {name} have no alpha: taken as the rank (alpha/r = 1)"
            )
        return said
