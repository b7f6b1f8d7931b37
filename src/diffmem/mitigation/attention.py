"""Mitigations inside cross-attention: processors that see the logits, set for a call and put back after it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from diffmem.errors import MitigationRefused
from diffmem.mitigation.base import Mitigation
from diffmem.models.attention import SeenAttention, cross_attentions, processed
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
        modules, seen = self.chosen(cross_attentions(call.denoiser)), SeenAttention(rows.edit(self))
        call.record.items += [{"layers": len(modules), "tokens": int(row.sum())} for row in content]
        with processed(modules, lambda _: seen), hooked(call.denoiser, rows, before=True):
            yield


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

    def edit(self, mitigation: AttentionMitigation) -> Callable[[torch.Tensor], torch.Tensor]:
        """What a mitigation makes of the logits of all rows [rows, heads, queries, tokens]."""

        def see(logits: torch.Tensor) -> torch.Tensor:
            where = self.conditional.to(logits.device)
            if len(where) and bool(where.any()):
                logits[where] = mitigation.edit(logits[where], self.tokens.to(logits.device))
            return logits

        return see
