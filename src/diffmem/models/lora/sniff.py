"""Tell files of weights by their content, and LoRAs by the names of their weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from diffmem.models.lora.choice import FILES
from diffmem.models.lora.entries import kind_of_key

INTEGERS = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL"})
"""Types of tensors in .safetensors files that are no weights."""


def sniff(file: Path) -> str:
    """What a file is by its content: "safetensors", "pickle", or words for anything else."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(64)
    if size == 0:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in place of the file (git lfs pull fetches it)"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not the file that a link on it leads to"
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        return "pickle"
    if start.startswith(b"GGUF"):
        return "a GGUF file"
    if len(start) > 8 and start[8:9] in b"{ ":
        length = struct.unpack("<Q", start[:8])[0]
        return "safetensors" if 8 + length <= size else "a .safetensors file that was cut off"
    return "no file of weights that is known here"


def dtypes(file: Path) -> Iterator[tuple[str, str]]:
    """(name, type) of every tensor of a .safetensors file, from its header; nothing where it is none."""
    if sniff(file) != "safetensors":
        return
    with file.open("rb") as opened:
        header = opened.read(struct.unpack("<Q", opened.read(8))[0])
    try:
        read = json.loads(header)
    except (ValueError, RecursionError):
        return  # its loader says what is wrong with it
    for name, tensor in read.items() if isinstance(read, dict) else ():
        if name != "__metadata__" and isinstance(tensor, dict):
            yield name, str(tensor.get("dtype"))


def is_lora(path: Path) -> bool:
    """Whether a file, or a folder's file, is a LoRA by the names of its weights; reads the header only."""
    files = [path] if path.is_file() else [*map(path.joinpath, FILES), *sorted(path.glob("*.safetensors"))]
    for file in files:
        if not file.is_file():
            continue
        names = [name for name, _ in dtypes(file)]
        if any(key.startswith(("lora_unet_", "lora_te")) or kind_of_key(key) for key in names):
            return True
    return False
