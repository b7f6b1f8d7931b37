"""Networks in TorchScript files: checked before they are opened, because opening one can run code."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

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
