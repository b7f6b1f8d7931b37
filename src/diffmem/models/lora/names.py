"""Which layers of a pipeline a file's names mean: the pipeline's own, or those of the model's first code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffmem.models.lora.first_names import Part, first_names, flat

WRAPPERS = ("base_model.model.", "module.", "_orig_mod.")
"""What peft, data parallelism and compilation put before names."""
CODES = ("pipe.dit.", "dit.", "model.", "net.", "denoiser.")
"""What trainers of their own code call the network; the same words are names of layers elsewhere, so they come last."""
NETWORK, TEXT = "network", "text"
PREFIXES: tuple[tuple[str, str], ...] = (
    ("lora_unet_", NETWORK), ("lora_transformer_", NETWORK), ("lycoris_", NETWORK), ("lora_te1_", "text1"),
    ("lora_te2_", "text2"), ("lora_te3_", "text3"), ("lora_te_", TEXT), ("model.diffusion_model.", NETWORK),
    ("diffusion_model.", NETWORK), ("unet.", NETWORK), ("transformer.", NETWORK), ("lora_unet.", NETWORK),
    ("text_encoders.clip_l.transformer.", "clip_l"), ("text_encoders.clip_g.transformer.", "clip_g"),
    ("text_encoders.t5xxl.transformer.", "t5"), ("text_encoder.", "text_encoder"), ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder_3.", "text_encoder_3"), ("te1.", "text1"), ("te2.", "text2"), ("te3.", "text3"), ("te.", TEXT),
)  # fmt: skip
"""What the files of trainers and programs put before a layer's name -> the part of the pipeline that they mean."""


@dataclass(frozen=True)
class Place:
    """Where an entry goes: a component, and one layer of it or several that the file counts as one."""

    component: str
    parts: tuple[Part, ...]


class Names:
    """The layers of a pipeline under every name that files give them."""

    def __init__(self, pipeline: Any) -> None:
        import torch

        parts = {k: v for k, v in pipeline.components.items() if isinstance(v, torch.nn.Module)}
        self.network = next((n for n in ("unet", "transformer") if n in parts), "")
        self.texts = [name for name in ("text_encoder", "text_encoder_2", "text_encoder_3") if name in parts]
        self._parts = parts
        self._maps: dict[str, dict[str, tuple[Part, ...]]] = {}

    def find(self, layer: str, component: str = "") -> Place | None:
        """The place that a layer of a file means, or None."""
        bare, place = strip(layer)
        code = next((start for start in CODES if bare.startswith(start)), "")
        named = [flat(name) for name in (bare, layer, bare.removeprefix(code))]
        places = {
            name: parts
            for name in self._components(component or place)
            if (parts := next((self._map(name)[one] for one in named if one in self._map(name)), None))
        }
        if self.network in places:
            return Place(self.network, places[self.network])
        # A name without a component that several text encoders have says too little.
        return Place(*places.popitem()) if len(places) == 1 else None

    def means(self, layer: str) -> str:
        """What a layer's prefix says it belongs to, in words."""
        place = strip(layer)[1]
        wanted = self._components(place)
        if wanted:
            return wanted[0]
        return "its text encoders" if place and place != NETWORK else "its network"

    def _components(self, place: str) -> list[str]:
        if place == NETWORK:
            return [self.network] if self.network else []
        if not place:
            return [n for n in (self.network, *self.texts) if n]
        if place in self._parts:
            return [place]
        t5 = [name for name in self.texts if _is_t5(self._parts[name])]
        clips = [name for name in self.texts if not _is_t5(self._parts[name])]
        if place == TEXT:
            return self.texts if len(self.texts) == 1 else []
        if place == "text3":
            return self.texts[2:3] or t5[:1]
        if place == "t5":
            return t5[:1]
        number = {"text1": 0, "text2": 1, "clip_l": 0, "clip_g": 1}.get(place)
        if number is None:
            return []
        return (clips if place.startswith("clip") else self.texts)[number : number + 1]

    def _map(self, component: str) -> dict[str, tuple[Part, ...]]:
        if component not in self._maps:
            self._maps[component] = _names_of(self._parts[component])
        return self._maps[component]


def strip(layer: str) -> tuple[str, str]:
    """A layer's name without what trainers put before it, and what that says of the component."""
    place = ""
    while True:
        before = layer
        for wrapper in WRAPPERS:
            layer = layer.removeprefix(wrapper)
        if not place:
            for prefix, meant in PREFIXES:
                if layer.startswith(prefix):
                    layer, place = layer.removeprefix(prefix), meant
                    break
        if layer == before:
            return layer, place


def _is_t5(encoder: Any) -> bool:
    return "t5" in type(encoder).__name__.lower()


def _names_of(component: Any) -> dict[str, tuple[Part, ...]]:
    layers = {name: layer for name, layer in component.named_modules() if getattr(layer, "weight", None) is not None}
    names: dict[str, tuple[Part, ...]] = {flat(name): (Part(name),) for name in layers}
    for more in first_names(component, layers):
        for name, parts in more:
            if all(part.layer in layers for part in parts):
                names.setdefault(name, parts)
    return names
