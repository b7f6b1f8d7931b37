"""What a prompt becomes before it enters the network: named tensors with one row per prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

SHAPE = ".shape"
"""After the name of a tensor whose rows differ in shape: the shape of each row, before it was padded with zeros."""


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: tensors whose first dimension is the prompt.

    Args:
        tensors: name -> [B, ...] (embeddings, pooled embeddings, attention masks, class labels ...). Empty for
            unconditional models.
        size: number of prompts B.
        truncated: per prompt, the text that the tokenizer cut off, or None.
    """

    tensors: Mapping[str, torch.Tensor]
    size: int
    truncated: tuple[str | None, ...] = field(default=())

    def __len__(self) -> int:
        return self.size

    def select(self, rows: Sequence[int] | torch.Tensor) -> Conditioning:
        """The given rows, in the given order (rows may repeat)."""
        index = torch.as_tensor(rows, dtype=torch.long)
        cut = tuple(self.truncated[int(i)] for i in index) if self.truncated else ()
        return Conditioning({k: v[index.to(v.device)] for k, v in self.tensors.items()}, len(index), cut)

    def expand(self, size: int) -> Conditioning:
        """One row repeated `size` times; a Conditioning of that size already is returned as it is."""
        if self.size == size:
            return self
        if self.size != 1:
            raise ValueError(f"cannot expand a conditioning of {self.size} rows to {size}")
        return self.select([0] * size)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Rows of all parts, one after the other; tensors of different length are padded with zeros to the longest."""
        names = parts[0].tensors.keys()
        size = sum(len(p) for p in parts)
        cut = tuple(c for p in parts for c in (p.truncated or (None,) * len(p)))
        return Conditioning({k: _joined([p.tensors[k] for p in parts]) for k in names}, size, cut)


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors [B, ...] one after the other, each padded with zeros at the end of every dimension but the first."""
    longest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    full = []
    for tensor in tensors:
        missing = [n - have for n, have in zip(longest, tensor.shape[1:], strict=True)]
        pads = [pad for gap in reversed(missing) for pad in (0, gap)]
        full.append(torch.nn.functional.pad(tensor, pads) if any(missing) else tensor)
    return torch.cat(full)
