"""The setting in which networks are differentiated forward: full precision, kernels that have a forward derivative."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextmanager
def forward_mode(device: torch.device) -> Iterator[None]:
    """Inside: no gradients kept, autocast and TF32 off, attention in plain products; everything is restored after.

    Fused attention kernels have no forward derivative. Group normalisation has one, but it fails on tangents that are
    not contiguous, as attention leaves them.
    """
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            _ContiguousGroupNorm(),
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


class _ContiguousGroupNorm(TorchFunctionMode):
    """Hands group normalisation a copy of its input: the copy's tangents are contiguous."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.group_norm:
            args = (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
        return func(*args, **(kwargs or {}))
