"""What a network's cross-attention to the prompt does: find the modules, and see or edit their logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from diffmem.models.denoiser import Denoiser


def cross_attentions(denoiser: Denoiser) -> list[tuple[str, Any]]:
    """The modules in which image features attend to the text, by name, in the order of the network."""
    return [
        (name, module)
        for network in denoiser.network_modules()
        for name, module in network.named_modules()
        if name.endswith("attn2") and getattr(module, "is_cross_attention", False)
    ]


@contextmanager
def processed(modules: Sequence[tuple[str, Any]], processor: Callable[[str], Any]) -> Iterator[None]:
    """Set a processor in each module, made from its name, and put the modules' own back."""
    before: list[tuple[Any, Any]] = []
    try:
        for name, module in modules:
            before.append((module, module.processor))
            module.set_processor(processor(name))
        yield
    finally:
        for module, own in before:
            module.set_processor(own)


class SeenAttention:
    """The plain attention of diffusers with its logits seen, and possibly changed, before the softmax.

    Args:
        see: given the logits [rows, heads, queries, tokens]; returns those to go on with.
    """

    def __init__(self, see: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.see = see

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        **unused: Any,
    ) -> torch.Tensor:
        """What diffusers' AttnProcessor computes, with `see` before the softmax."""
        residual = hidden_states
        size, tokens, _ = encoder_hidden_states.shape
        if attn.norm_cross:
            encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)
        query = _parted(attn, attn.to_q(hidden_states), attn.norm_q)
        key = _parted(attn, attn.to_k(encoder_hidden_states), attn.norm_k)
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        logits = (query @ key.transpose(1, 2) * attn.scale).float().unflatten(0, (size, attn.heads))
        mask = attn.prepare_attention_mask(attention_mask, tokens, size)
        if mask is not None:
            logits = logits + mask.unflatten(0, (size, attn.heads))
        weights = self.see(logits).flatten(0, 1).softmax(-1).to(value.dtype)
        attended = attn.batch_to_head_dim(weights @ value)
        result: torch.Tensor = attn.to_out[1](attn.to_out[0](attended))
        if attn.residual_connection:
            result = result + residual
        return result / float(attn.rescale_output_factor)


def _parted(attn: Any, projected: torch.Tensor, norm: Any) -> torch.Tensor:
    """Queries or keys [rows, places, heads * width], parted into [rows * heads, places, width] and normalised.

    A norm as wide as all heads (Sana 1.5) comes before they are parted, one of each head after, as diffusers does it.
    """
    weight = getattr(norm, "weight", None)
    across = weight is not None and len(weight) == projected.shape[-1]
    parted: torch.Tensor = attn.head_to_batch_dim(norm(projected) if across else projected)
    return parted if norm is None or across else norm(parted)


@contextmanager
def recorded(denoiser: Denoiser) -> Iterator[dict[str, torch.Tensor]]:
    """Cross-attention weights of the evaluations inside, module name -> [rows, queries, tokens], the mean over heads.

    The last evaluation of each module counts.
    """
    weights: dict[str, torch.Tensor] = {}

    def keep(name: str) -> SeenAttention:
        def see(logits: torch.Tensor) -> torch.Tensor:
            weights[name] = logits.softmax(-1).mean(1)
            return logits

        return SeenAttention(see)

    with processed(cross_attentions(denoiser), keep):
        yield weights
