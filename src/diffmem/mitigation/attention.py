"""Mitigations inside cross-attention: processors that see the logits, set for a call and put back after it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from diffmem.errors import MitigationRefused
from diffmem.mitigation.base import Mitigation
from diffmem.models.denoiser import Denoiser
from diffmem.models.pipelines.branches import BranchSorter, hooked, own_evaluation, read_pass
from diffmem.models.pipelines.calls import Call


class AttentionMitigation(Mitigation):
    """Edits the logits of cross-attention in the conditional rows."""

    needs_tokenizer: ClassVar[bool] = True

    def check(self, denoiser: Denoiser) -> None:
        """Refuses networks without cross-attention."""
        super().check(denoiser)
        if not cross_attentions(denoiser):
            raise MitigationRefused(
                f"{self.name} changes the cross-attention to the prompt, but this network has none (it attends to image and "
                "text jointly, or takes class labels): use a mitigation of the guidance or of the embedding."
            )

    @abstractmethod
    def neutral_now(self) -> bool:
        """Whether these parameters change nothing, so that the pipeline's own attention can stay."""

    def chosen(self, modules: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Which cross-attention modules are edited; all of them by default."""
        return modules

    @abstractmethod
    def edit(self, logits: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        """New logits of conditional rows.

        Args:
            logits: [n, heads, queries, tokens], before the softmax.
            content: where the prompt's own tokens are, without start, end and padding, [n, tokens] bool.
        """

    @contextmanager
    def around(self, call: Call) -> Iterator[None]:
        """Set processors and a hook that tells them which rows are conditional; both are put back."""
        if self.neutral_now():
            yield
            return
        content = content_tokens(call)
        rows = _Rows(call, content)
        before: list[tuple[Any, Any]] = []
        try:
            for _, module in self.chosen(cross_attentions(call.denoiser)):
                before.append((module, module.processor))
                module.set_processor(_Edited(self, rows))
            call.record.items += [{"layers": len(before), "tokens": int(row.sum())} for row in content]
            with hooked(call.denoiser, rows, before=True):
                yield
        finally:
            for module, processor in before:
                module.set_processor(processor)


def cross_attentions(denoiser: Denoiser) -> list[tuple[str, Any]]:
    """The modules in which image features attend to the text, by name, in the order of the network."""
    return [
        (name, module)
        for network in denoiser.network_modules()
        for name, module in network.named_modules()
        if name.endswith("attn2") and getattr(module, "is_cross_attention", False)
    ]


def content_tokens(call: Call) -> torch.Tensor:
    """Where each prompt's own tokens are, [B, tokens] bool: neither the start token nor those after the last word."""
    tokenizer = call.pipeline.tokenizer
    length = call.conditioning().tensors["encoder_hidden_states"].shape[1]
    special = set(tokenizer.all_special_ids)
    content = torch.zeros(call.size, length, dtype=torch.bool)
    for row, text in enumerate(call.texts):
        ids = tokenizer(text, truncation=True, max_length=length).input_ids
        content[row, : len(ids)] = torch.tensor([number not in special for number in ids], dtype=torch.bool)
    return content


class _Rows:
    """Before every call of the network: which of its rows are conditional, and their content tokens."""

    def __init__(self, call: Call, content: torch.Tensor) -> None:
        self.denoiser, self.tokens = call.denoiser, content
        self.sorter = BranchSorter(call.conditioning(), call.negative())
        self.conditional: torch.Tensor = torch.zeros(0, dtype=torch.bool)

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if own_evaluation():  # another mitigation looks at the network as it is
            self.conditional = torch.zeros(0, dtype=torch.bool)
            return
        self.conditional = torch.tensor(self.sorter.conditional_rows(read_pass(self.denoiser, args, kwargs).cond))


class _Edited:
    """The plain attention of diffusers with the logits of the conditional rows edited before the softmax."""

    def __init__(self, mitigation: AttentionMitigation, rows: _Rows) -> None:
        self.mitigation, self.rows = mitigation, rows

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        **unused: Any,
    ) -> torch.Tensor:
        residual = hidden_states
        size, tokens, _ = encoder_hidden_states.shape
        if attn.norm_cross:
            encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)
        query, key, value = (
            attn.head_to_batch_dim(t)
            for t in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        )
        logits = (query @ key.transpose(1, 2) * attn.scale).float().unflatten(0, (size, attn.heads))
        mask = attn.prepare_attention_mask(attention_mask, tokens, size)
        if mask is not None:
            logits = logits + mask.unflatten(0, (size, attn.heads))
        where = self.rows.conditional.to(logits.device)
        if len(where) and bool(where.any()):
            content = self.rows.tokens.to(logits.device)
            logits[where] = self.mitigation.edit(logits[where], content)
        weights = logits.flatten(0, 1).softmax(-1).to(value.dtype)
        attended = attn.batch_to_head_dim(weights @ value)
        result: torch.Tensor = attn.to_out[1](attn.to_out[0](attended))
        if attn.residual_connection:
            result = result + residual
        return result / float(attn.rescale_output_factor)
