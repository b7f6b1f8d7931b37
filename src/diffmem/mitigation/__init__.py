"""The mitigations at inference, by name; `RandomTokens(count=2)` of this package is "random-tokens:count=2"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffmem.method import by_class_name, class_names
from diffmem.registry import Registry

if TYPE_CHECKING:
    from diffmem.mitigation.base import Mitigation

_ROOM = "diffmem.mitigation"

MITIGATIONS: Registry[type[Mitigation]] = Registry(
    "mitigations",
    {
        "random-tokens": f"{_ROOM}.random_tokens:RandomTokens",
        "replace": f"{_ROOM}.replace:Replace",
        "word-repetition": f"{_ROOM}.word_repetition:WordRepetition",
        "random-numbers": f"{_ROOM}.random_numbers:RandomNumbers",
        "rewrite": f"{_ROOM}.rewrite:Rewrite",
        "embedding-noise": f"{_ROOM}.embedding_noise:EmbeddingNoise",
        "wen": f"{_ROOM}.wen:Wen",
        "low-noise-norm": f"{_ROOM}.low_noise_norm:LowNoiseNorm",
        "anisotropy": f"{_ROOM}.anisotropy:AnisotropyMitigation",
        "sail": f"{_ROOM}.sail:Sail",
        "han-batch": f"{_ROOM}.han_batch:HanBatch",
        "han-sample": f"{_ROOM}.han_sample:HanSample",
        "transition-static": f"{_ROOM}.transition_static:TransitionStatic",
        "transition-dynamic": f"{_ROOM}.transition_dynamic:TransitionDynamic",
        "opposite-guidance": f"{_ROOM}.opposite_guidance:OppositeGuidance",
        "amg": f"{_ROOM}.amg:Amg",
        "prss": f"{_ROOM}.prss:Prss",
        "ren": f"{_ROOM}.ren:Ren",
        "attenuation": f"{_ROOM}.attenuation:Attenuation",
    },
)
"""Mitigation classes; packages add their own through the entry-point group `diffmem.mitigations`."""


def __getattr__(name: str) -> Any:
    return by_class_name(name, MITIGATIONS)


def __dir__() -> list[str]:
    return ["MITIGATIONS", *class_names(MITIGATIONS)]
