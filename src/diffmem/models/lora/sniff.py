"""Tell files of weights by their content, and LoRAs by the names of their weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from diffmem.models.lora.choice import FILES
from diffmem.models.lora.entries import kind_of_key


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


def is_lora(path: Path) -> bool:
    """Whether a file, or a folder's file, is a LoRA by the names of its weights; reads the header only."""
    files = [path] if path.is_file() else [*map(path.joinpath, FILES), *sorted(path.glob("*.safetensors"))]
    for file in files:
        if not file.is_file() or sniff(file) != "safetensors":
            continue
        with file.open("rb") as opened:
            header = opened.read(struct.unpack("<Q", opened.read(8))[0])
        try:
            names = [name for name in json.loads(header) if isinstance(name, str) and name != "__metadata__"]
        except (ValueError, RecursionError, TypeError):
            continue
        if any(key.startswith(("lora_unet_", "lora_te")) or kind_of_key(key) for key in names):
            return True
    return False
