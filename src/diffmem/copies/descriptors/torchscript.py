"""Networks in TorchScript files: checked before they are opened, because opening one can run code."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffmem.errors import ModelError

UNCHECKED = (
    "A TorchScript file can run code when it is opened: state its checksum with sha256=… (--weights-sha256), or open it "
    "unchecked with allow_pickle=True (--allow-pickle)."
)


def open_torchscript(
    path: Path,
    expected: str | None,
    pinned: Collection[str | None],
    allow_pickle: bool,
    device: str,
    what: str,
    advice: str,
) -> tuple[Any, str]:
    """The network and the SHA-256 of its file; what is opened is what was hashed, not the file a moment later.

    Args:
        path: the file.
        expected: the checksum that it must have, or None.
        pinned: checksums that are known to be good.
        allow_pickle: open it without either.
        device: where the network runs.
        what: whose weights, for messages.
        advice: what to give instead of a file that cannot be read.

    Raises:
        ModelError: no such file, a wrong or no checksum, not a TorchScript file.
    """
    import torch

    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"Cannot read the {what} weights '{path}' ({error.strerror or error}); {advice}.") from error
    found = hashlib.sha256(data).hexdigest()
    if expected is not None and found != expected.lower():
        raise ModelError(f"'{path}' has SHA-256 {found}; expected {expected}. It was not opened; get the file again.")
    if expected is None and found not in pinned and not allow_pickle:
        raise ModelError(f"'{path}' has SHA-256 {found}, which is none of the pinned ones. {UNCHECKED}")
    try:
        network = torch.jit.load(io.BytesIO(data), map_location=device)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"'{path}' is not a TorchScript file: {str(error).splitlines()[0]}.") from error
    return network.eval(), found


def describe_by_shape(
    inputs: Sequence[NDArray[Any]], batch: int, network: Callable[[Any], Any], device: str, what: str
) -> NDArray[np.float32]:
    """Outputs [N, D] float32 of inputs whose shapes may differ: those of one shape share batches, order is kept.

    Args:
        inputs: N arrays.
        batch: inputs at a time.
        network: tensor [n, ...] -> tensor [n, D].
        device: where the network runs.
        what: whose network, for messages.

    Raises:
        ModelError: another number of rows than inputs.
    """
    import torch

    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, value in enumerate(inputs):
        by_shape.setdefault(value.shape, []).append(i)
    rows: dict[int, NDArray[np.float32]] = {}
    with torch.inference_mode():
        for positions in by_shape.values():
            for low in range(0, len(positions), batch):
                part = positions[low : low + batch]
                found = network(torch.from_numpy(np.stack([inputs[i] for i in part])).to(device)).float().cpu().numpy()
                if found.ndim != 2 or len(found) != len(part):
                    raise ModelError(
                        f"The {what} network gave an output of shape {found.shape} for {len(part)} images."
                    )
                rows.update(zip(part, found, strict=True))
    return np.stack([rows[i] for i in range(len(inputs))]).astype(np.float32)
