"""One wrong thing in a model folder: what configs.py changes in it, by kind."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path

import torch


def keys_of(value, path=()):
    """The paths of all entries of a config."""
    for key, inner in value.items():
        if not str(key).startswith("_") or key == "_class_name":
            yield (*path, key)
            if isinstance(inner, dict) and len(path) < 2:
                yield from keys_of(inner, (*path, key))


def changed(config, path, value):
    """A config with one entry set, or without it (value `...`)."""
    copy = json.loads(json.dumps(config))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copy


def values_for(before):
    """(kind, value) that an entry may be replaced by."""
    found = [("deleted", ...), ("null", None), ("type", {"a": 1}), ("type", [[]])]
    if isinstance(before, bool):
        return [*found, ("flipped", not before), ("type", "yes"), ("type", 7.5)]
    if isinstance(before, int | float):
        impossible = [-1, -before - 1, 10**9, 1e308, math.nan, math.inf]
        other = [0, before * 2, before + 1, before / 2 + 0.25, 1]
        return [*found, ("type", str(before)), ("type", [before, "x"]), ("type", True),
                *(("impossible", v) for v in impossible), *(("number", v) for v in other)]  # fmt: skip
    if isinstance(before, str):
        return [*found, ("name", "nope"), ("name", ""), ("name", "../../x"), ("type", 3)]
    if isinstance(before, list):
        return [*found, ("type", "nope"), ("length", before[:-1]), ("length", before * 2), ("length", []),
                ("type", [{}] * len(before)), ("impossible", [-3 for _ in before])]  # fmt: skip
    return found


def mutations(folder, rng):
    """Endless (kind, description, function that changes a copy of the folder)."""
    configs = [p.relative_to(folder) for p in sorted(folder.rglob("*.json")) if p.stat().st_size < 100_000]
    weights = [p.relative_to(folder) for p in sorted(folder.rglob("*.safetensors"))]
    files = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file()]
    parts = [p.name for p in sorted(folder.iterdir()) if p.is_dir()]
    index = json.loads((folder / "model_index.json").read_text())
    while True:
        what = rng.choices(("key", "weights", "file", "index", "swap", "stranger"), (10, 3, 2, 2, 1, 1))[0]
        if what == "key":
            name = rng.choice(configs)
            config = json.loads((folder / name).read_text())
            paths = list(keys_of(config)) if isinstance(config, dict) else []
            if not paths:
                continue
            path = rng.choice(paths)
            before = config
            for key in path:
                before = before[key]
            kind, value = rng.choice(values_for(before))
            if kind == "impossible" and "shift" in path[-1]:
                kind = "number"  # which may be negative
            if value == before and type(value) is type(before):
                continue
            after = changed(config, path, value)
            yield (
                kind,
                f"{name}: {'.'.join(path)} = {'(deleted)' if value is ... else repr(value)[:40]}",
                write(name, after),
            )
        elif what == "weights":
            name = rng.choice(weights)
            how = rng.choice(sorted(WEIGHTS))
            yield "weights", f"{name}: {how}", on_file(name, WEIGHTS[how], rng.random())
        elif what == "file":
            name = rng.choice(files)
            how = rng.choice(sorted(FILES))
            yield "file", f"{name}: {how}", on_file(name, FILES[how], rng.random())
        elif what == "index":
            entry = rng.choice(ENTRIES)
            part = rng.choice([*parts, "_class_name", "novel", "_diffusers_version", "../evil"])
            index = json.loads((folder / "model_index.json").read_text())
            yield (
                "index",
                f"model_index.json: {part} = {entry!r}",
                write(Path("model_index.json"), index | {part: entry}),
            )
        elif what == "stranger":
            name, more = rng.choice(configs), rng.choice(STRANGERS)
            config = json.loads((folder / name).read_text())
            if isinstance(config, dict):
                yield "stranger", f"{name}: with {next(iter(more))}", write(name, config | more)
        elif len(parts) > 1:
            one, other = rng.sample(parts, 2)
            if index[one] == index[other]:
                continue  # as CLIP and CLIP: another model that is as good
            yield "swap", f"{one} and {other} change places", swapped(one, other)


def write(name, value):
    return lambda folder: (folder / name).write_text(json.dumps(value))


def swapped(one, other):
    def change(folder):
        (folder / one).rename(folder / "between")
        (folder / other).rename(folder / one)
        (folder / "between").rename(folder / other)

    return change


def on_file(name, change, at):
    return lambda folder: change(folder / name, at)


def tensors(change):
    def rewrite(file, at):
        from safetensors.torch import load_file, save_file

        found = load_file(file)
        names = sorted(k for k, v in found.items() if v.ndim > 1) or sorted(found)
        key = names[int(at * len(names))]
        found = change(found, key)
        save_file({k: v.contiguous().clone() for k, v in found.items()}, file, metadata={"format": "pt"})

    return rewrite


def garbled(file, at):
    raw = bytearray(file.read_bytes())
    place = int(at * (8 + int.from_bytes(raw[:8], "little")))  # the header
    raw[place] ^= 0xFF
    file.write_bytes(raw)


def fifo(file, _):
    file.unlink()
    os.mkfifo(file)


class Payload:
    """What a pickle of somebody else may do when it is read: here it leaves a file beside the folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (self.mark, "w")


def pickled(file, name):
    """A pickle in place of weights, under a name; whoever reads it leaves the mark."""
    file.unlink()
    file.with_name(name).write_bytes(pickle.dumps(Payload(str(file.parents[2] / "executed"))))


def indexed(file, place):
    """An index in place of weights, that says they lie elsewhere."""
    from safetensors import safe_open

    with safe_open(file, "pt") as found:
        names = list(found.keys())
    content = file.read_bytes()
    if place.endswith(".bin"):
        pickled(file, place)
    else:
        file.unlink()
        (file.parent / place).resolve().write_bytes(content)
    listed = {"metadata": {}, "weight_map": dict.fromkeys(names, place)}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(listed))


def replaced(file, content):
    file.unlink()
    file.write_bytes(content)


def huge(file, _):
    replaced(file, b"{")
    os.truncate(file, 3 << 30)


def folder_of_its_name(file, _):
    file.unlink()
    file.mkdir()


WEIGHTS = {
    "a pickle under its name": lambda file, _: pickled(file, file.name),
    "a pickle beside": lambda file, _: pickled(file, file.name.replace(".safetensors", ".bin")),
    "an index to a pickle": lambda file, _: indexed(file, "pytorch_model.bin"),
    "an index to elsewhere": lambda file, _: indexed(file, "../../elsewhere.safetensors"),
    "a header of 2^62 bytes": lambda file, _: replaced(file, (1 << 62).to_bytes(8, "little") + file.read_bytes()[8:]),
    "cut": lambda file, at: file.write_bytes(file.read_bytes()[: int(at * file.stat().st_size)]),
    "garbled header": garbled,
    "NaN": tensors(lambda t, k: t | {k: torch.full_like(t[k], math.nan)}),
    "infinite": tensors(lambda t, k: t | {k: torch.full_like(t[k], math.inf)}),
    "tensor lost": tensors(lambda t, k: {n: v for n, v in t.items() if n != k}),
    "tensor renamed": tensors(lambda t, k: {n + ("_" if n == k else ""): v for n, v in t.items()}),
    "all renamed": tensors(lambda t, k: {"module." + n: v for n, v in t.items()}),
    "transposed": tensors(lambda t, k: t | {k: torch.cat([t[k], t[k]], -1).transpose(0, -1)}),
    "flat": tensors(lambda t, k: t | {k: torch.cat([t[k].reshape(-1), t[k].reshape(-1)])}),
    "integers": tensors(lambda t, k: t | {k: torch.ones_like(t[k], dtype=torch.int8)}),
    "tensor too many": tensors(lambda t, k: t | {"novel.weight": t[k]}),
    "empty": tensors(lambda t, k: {"x": torch.zeros(1)}),
}
FILES = {
    "missing": lambda file, _: file.unlink(),
    "nothing in it": lambda file, _: file.write_bytes(b""),
    "web page": lambda file, _: file.write_text("<!DOCTYPE html><html>404</html>"),
    "pointer of Git LFS": lambda file, _: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "zeros": lambda file, _: file.write_bytes(b"\0" * file.stat().st_size),
    "a FIFO": fifo,
    "a link to nothing": lambda file, _: (file.unlink(), file.symlink_to("/nonexistent/x")),
    "a list": lambda file, _: file.write_text("[1, 2]"),
    "a device": lambda file, _: (file.unlink(), file.symlink_to("/dev/zero")),
    "a folder": folder_of_its_name,
    "nested deeply": lambda file, _: file.write_text('{"a":' * 100_000),
    "3 GB": huge,
    "UTF-16": lambda file, _: file.write_bytes("{}".encode("utf-16")),
}
STRANGERS = [
    {"auto_map": {"AutoConfig": "helper.Thing", "AutoModel": "helper.Thing", "AutoTokenizer": ["helper.Thing", None]}},
    {"trust_remote_code": True, "auto_map": {"AutoModel": "someone/else--helper.Thing"}}, {"custom_pipeline": "helper"},
    {"_attn_implementation": "helper/Thing"}, {"architectures": ["helper.Thing"]}, {"_class_name": "helper.Thing"},
    {"quantization_config": {"quant_method": "helper"}}, {"_name_or_path": "../helper"}, {"model_type": "helper"},
    {"tokenizer_class": "helper.Thing"}, {"torch_dtype": "helper.Thing"}, {"chat_template": "{{ cycler.__init__ }}"},
]  # fmt: skip
"""Entries by which configs name code that lies elsewhere."""
ENTRIES = [
    ["helper", "Thing"], ["diffusers", "UNet2DModel"], ["transformers", "CLIPTextModel"], ["diffusers", "AutoencoderKL"],
    ["os", "system"], ["diffusers.loaders", "X"], ["", ""], [], [None, None], None, 3, "unet", {"a": [1]}, [["a"], ["b"]],
    ["diffusers", "StableDiffusionPipeline"], ["transformers", "AutoModel"], ["diffusers", "DDIMScheduler"], True,
    ["stable_diffusion", "helper"], ["pipelines", "x"], ["diffusers_modules.local", "Thing"], "helper.Thing",
    ["helper", "Thing", "more"],
]  # fmt: skip
