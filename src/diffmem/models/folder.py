"""Look at a model's folder before any library opens it: what its files are, what its index names, which weights there are.

Nothing is imported, no pickle is read, and a file that is no plain file (a FIFO, a device) is never opened.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmem.errors import ModelError
from diffmem.models.config_types import check_counts

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
_CONFIG_BYTES = 4 << 20
_TABLE_BYTES = 256 << 20
_TABLES = re.compile(r"^(tokenizer|vocab|added_tokens|.*\.index)\.json$")
_MOST_FILES = 20_000
_VARIANT = re.compile(r"^[\w]+\.(?P<variant>\w+?)(-\d+-of-\d+)?\.safetensors$")


@dataclass(frozen=True)
class Part:
    """One component that model_index.json names.

    Attributes:
        name: of the component ("unet").
        package: "diffusers", "transformers" or one of diffusers' pipeline modules.
        class_name: its class in there.
        folder: where its files are.
        variant: of the weights to open ("fp16"), None for the plain ones.
        weights: the weights' .safetensors files; empty for parts without weights and for pickles.
    """

    name: str
    package: str
    class_name: str
    folder: Path
    variant: str | None
    weights: tuple[Path, ...]


def read_json(file: Path) -> dict[str, Any]:
    """A config as an object; ModelError for what is no plain file, too large, no JSON or no object."""
    check_file(file)
    try:
        value = json.loads(file.read_text(encoding="utf-8"), parse_constant=_constant)
    except RecursionError as problem:
        raise ModelError(f"{file} is nested too deeply for a config; copy the model again.") from problem
    except (ValueError, OSError) as problem:
        raise ModelError(f"{file} is not valid JSON ({problem}); copy the model again.") from problem
    if not isinstance(value, dict):
        raise ModelError(f"{file} holds a JSON {type(value).__name__}; a config is an object {{...}}.")
    return value


def check_file(file: Path) -> None:
    """Refuse what is not a plain file of a size that its kind can have."""
    try:
        found = file.stat()
    except OSError as problem:
        raise ModelError(f"{file} cannot be read: {problem.strerror or problem}.") from problem
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{file} is {_kind(found.st_mode)}, not a plain file; it is not opened.")
    most = _TABLE_BYTES if _TABLES.match(file.name) else _CONFIG_BYTES
    if file.suffix == ".json" and found.st_size > most:
        raise ModelError(
            f"{file} has {found.st_size / 2**20:.0f} MiB; a file of its kind has at most {most / 2**20:.0f}. "
            "It is not opened."
        )


def read_index(folder: Path) -> dict[str, Any]:
    """The folder's model_index.json, with a class name that is a name."""
    file = folder / "model_index.json"
    if not file.exists() and not file.is_symlink():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        single = (folder / "config.json").exists()
        kind = " This looks like a single component; give the folder above it." if single else ""
        inside = sorted(p.parent.name for p in folder.glob("*/model_index.json"))
        if inside:
            kind = f" There are pipelines in it; give one: {folder / inside[0]}."
        raise ModelError(f"{folder} has no model_index.json (found: {found}), so it is no diffusers pipeline.{kind}")
    index = read_json(file)
    name = index.get("_class_name")
    if isinstance(name, list):
        raise ModelError(f"{folder} asks for a pipeline class of its own (remote code), which diffmem never runs.")
    if not isinstance(name, str):
        raise ModelError(f"{file} names no pipeline class: _class_name is {name!r}; expected a class of diffusers.")
    return index


def parts_of(
    folder: Path, index: Mapping[str, Any], allow_pickle: bool, variant: str | None, weights: bool = True
) -> list[Part]:
    """The components to open.

    Args:
        folder: the pipeline's.
        index: its model_index.json.
        allow_pickle: whether weights may be pickles.
        variant: of the weights that is asked for.
        weights: whether weights must be there; not for configs beside a single-file checkpoint.

    Raises:
        ModelError: a component of another library than diffusers and transformers, one whose files are missing, a
            pickle, a weight variant that was not asked for, or a file that is no plain file.
    """
    _check_files(folder)
    parts = []
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or entry == [None, None]:
            continue
        if len(entry) != 2 or not all(isinstance(item, str) for item in entry) or not name.isidentifier():
            raise ModelError(
                f"{folder / 'model_index.json'} describes the component {name!r} as {_short(entry)}; expected "
                "[library, class], or [null, null] for none."
            )
        library, class_name = entry
        if not _allowed(library):
            raise ModelError(
                f"The component '{name}' is of the library {library!r}; diffmem opens classes of diffusers and "
                "transformers only, for any other could be code of the model's own."
            )
        place = _place(folder, name)
        if place is None and not weights:
            continue
        if place is None:
            raise ModelError(
                f"The component '{name}' named in {folder / 'model_index.json'} is missing: no folder {folder / name}. "
                f'Copy the model again, or write "{name}": [null, null] there if it is to be opened without.'
            )
        config = _config(place, name)
        needed = weights and config is not None and config.name == "config.json"
        files, chosen = _weights(place, name, allow_pickle, variant, needed)
        parts.append(Part(name, library, class_name, place, chosen, files))
    if variant is not None and not any(part.variant for part in parts):
        raise ModelError(f"{folder} holds no weights of the variant {variant!r}; leave --variant out.")
    return parts


def _constant(text: str) -> float:
    if text == "NaN":
        raise ValueError("NaN is no value of a config")
    return float(text)  # a sampler's config may hold an infinite bound


def _kind(mode: int) -> str:
    kinds = {stat.S_ISFIFO: "a FIFO", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device", stat.S_ISSOCK: "a socket",
             stat.S_ISDIR: "a folder"}  # fmt: skip
    return next((words for test, words in kinds.items() if test(mode)), "no file")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _allowed(library: str) -> bool:
    """Whether a library's name means diffusers, transformers or a pipeline module inside diffusers."""
    if library in ("diffusers", "transformers"):
        return True
    from diffusers import pipelines

    return library.isidentifier() and hasattr(pipelines, library)


def _walk(folder: Path, depth: int = 4) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.is_dir():
            if depth and not entry.name.startswith("."):
                yield from _walk(entry, depth - 1)
        else:
            yield entry


def _check_files(folder: Path) -> None:
    for count, file in enumerate(_walk(folder)):
        if count >= _MOST_FILES:
            raise ModelError(f"{folder} holds more than {_MOST_FILES} files; that is no model's folder.")
        check_file(file)


def _place(folder: Path, name: str) -> Path | None:
    if (folder / name).is_dir():
        return folder / name
    # The flat layout of early diffusers: the files of all components beside model_index.json.
    flat = any((folder / config).exists() for config in ("config.json", "scheduler_config.json"))
    return folder if flat else None


def _config(place: Path, name: str) -> Path | None:
    """Read every config of a part; the one that describes it."""
    found = None
    for file in sorted(place.glob("*.json")):
        if _TABLES.match(file.name):
            continue
        values = read_json(file)
        if file.name in ("config.json", "scheduler_config.json"):
            check_counts(values, str(file))
            found = found or file
        if file.name == "scheduler_config.json":
            from diffmem.models.families._schedulers import check_config

            check_config(values, str(file))
    return found


def _weights(
    place: Path, name: str, allow_pickle: bool, variant: str | None, needed: bool
) -> tuple[tuple[Path, ...], str | None]:
    """A part's .safetensors files and the variant that they are of."""
    for file in place.glob("*.index.json"):
        _check_shards(place, name, file, allow_pickle)
    files = sorted(place.glob("*.safetensors"))
    variants: dict[str | None, list[Path]] = {}
    for file in files:
        found = _VARIANT.match(file.name)
        variants.setdefault(found["variant"] if found else None, []).append(file)
    if variant in variants:
        return tuple(variants[variant]), variant
    if None in variants:
        return tuple(variants[None]), None
    if not needed:
        return (), None
    if variants:
        there = sorted(v for v in variants if v)
        raise ModelError(
            f"The weights of '{name}' are there only as the variant {' and '.join(there)}: pass "
            f"variant={there[0]!r} (--variant {there[0]})."
        )
    pickles = sorted(p.name for p in place.iterdir() if p.suffix in PICKLES)
    if pickles and not allow_pickle:
        raise ModelError(
            f"The weights of '{name}' are a pickle ({pickles[0]}), which can run code when opened. Convert them to "
            "safetensors, or pass allow_pickle=True (--allow-pickle) if you trust their source."
        )
    if not pickles:
        others = ", ".join(sorted(p.name for p in place.iterdir() if p.suffix not in (".json", ".txt"))[:4]) or "none"
        raise ModelError(
            f"The component '{name}' in {place} has a config but no weights (*.safetensors); other files there: {others}. "
            "Weights of other programs (Flax, ONNX, OpenVINO) have to be converted."
        )
    return (), None


def _check_shards(place: Path, name: str, file: Path, allow_pickle: bool) -> None:
    """Every file that an index of shards points to is a .safetensors file beside it."""
    if ".safetensors" not in file.name:
        return  # the index of pickles is read only where pickles are allowed
    shards = read_json(file).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ModelError(f"{file} has no weight_map of names to files; copy the model again.")
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard:
            raise ModelError(f"{file} points to {shard!r} outside its folder; it is not opened.")
        if not shard.endswith(".safetensors") and not allow_pickle:
            raise ModelError(
                f"{file} points to the pickle {shard}: the weights of '{name}' can run code when opened. Convert them "
                "to safetensors, or pass allow_pickle=True (--allow-pickle) if you trust their source."
            )
        if not (place / shard).exists():
            raise ModelError(f"The weights of '{name}' are incomplete: {place / shard} is missing. Copy it again.")
