"""Which checkpoints of a training there are: in folders, by patterns, one by one, or built by a function of the user's."""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from glob import glob, has_magic
from itertools import pairwise
from pathlib import Path
from typing import Literal

from diffmem.atomic import user_path
from diffmem.data.notes import count, named
from diffmem.errors import UsageError
from diffmem.experiments.monitor.steps import read_steps, recorded_step
from diffmem.models.bundled import PREFIX
from diffmem.models.functions import FORM, is_function
from diffmem.models.loading import HUB_ID
from diffmem.models.lora.choice import FILES, PICKLED
from diffmem.models.lora.files import COMPONENTS
from diffmem.models.lora.sniff import is_lora, sniff

Kind = Literal["pipeline", "lora", "components", "file", "function", "model", "base"]
WRITTEN = (".safetensors", ".ckpt", ".json", ".bin", ".pt")


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of a training.

    Attributes:
        name: of its file or folder.
        step: at which it was saved; 0 for the base.
        kind: a whole pipeline, a LoRA over the base, components over the base (unet/ in checkpoint-500), a single file, a
            function's, a model in memory, or the base itself.
        source: path, or `module:function(...)`.
        stamp: size and time of its files, by which a changed one is known; "" where there are none.
    """

    name: str
    step: int
    kind: Kind
    source: str
    stamp: str = ""


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        checkpoints: by step.
        unit: what the steps count.
        notes: what lies there and is no checkpoint, or whose step is not known, named.
    """

    checkpoints: tuple[Checkpoint, ...]
    unit: str
    notes: tuple[str, ...] = ()


def find_checkpoints(sources: str | Path | Sequence[str | Path], step_pattern: str | None = None) -> Found:
    """The checkpoints of one training, sorted by step.

    Args:
        sources: folders that hold checkpoints, checkpoints, patterns with `*`, `module:function(weights-*.pt)`; each may end
            with `=STEP`.
        step_pattern: a regular expression whose group is the step, for names that leave it open.

    Raises:
        UsageError: nothing there, a step that is ambiguous, or two checkpoints of one step.
    """
    asked = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if not asked:
        raise UsageError("No checkpoints are given; name the folder that a training saves them in.")
    found: list[Checkpoint] = []
    notes: list[str] = []
    for source in map(str, asked):
        for text, step in _expanded(source):
            some, said = _at(text, step)
            found += some
            notes += said
    open_steps = [one for one in found if one.step < 0]
    unit = "step"
    if open_steps:
        recorded = {one: recorded_step(Path(one.source)) for one in open_steps if one.kind in ("lora", "file")}
        if step_pattern is None and len(recorded) == len(open_steps) and None not in recorded.values():
            steps = {one: int(value or 0) for one, value in recorded.items()}
        else:
            read = read_steps([_stem(one) for one in open_steps], step_pattern)
            unit = read.unit
            notes += [f"{name} is left out: {why}" for name, why in read.unread.items()]
            steps = {one: read.of[_stem(one)] for one in open_steps if _stem(one) in read.of}
        found = [one for one in found if one.step >= 0] + [replace(one, step=step) for one, step in steps.items()]
    if not found:
        also = f" {' '.join(notes)}" if notes else ""
        raise UsageError(f"There are no checkpoints in {', '.join(map(str, asked))}.{also}")
    found.sort(key=lambda one: one.step)
    for before, after in pairwise(found):
        if before.step == after.step:
            raise UsageError(
                f"{before.source} and {after.source} are both of {unit} {after.step}; name one of them, or say the steps: "
                "PATH=STEP."
            )
    return Found(tuple(found), unit, tuple(dict.fromkeys(notes)))


def _expanded(source: str) -> Iterable[tuple[str, int]]:
    """(path or function, step or -1): `=STEP` at the end is read, patterns become what they match."""
    stated = re.fullmatch(r"(.+)=(\d+)", source)
    step = -1
    if stated and not user_path(source).exists():
        source, step = stated[1], int(stated[2])
    form = FORM.fullmatch(source)
    if form is not None and form["given"] and has_magic(form["given"]):
        parts = form["given"].split(",")
        place = next(i for i, part in enumerate(parts) if has_magic(part))
        files = sorted(glob(str(user_path(parts[place].strip()))))  # noqa: PTH207 - of a whole path
        if not files:
            raise UsageError(f"{parts[place].strip()} in {source} matches no file.")
        start = source[: form.start("given")]
        return [(f"{start}{','.join([*parts[:place], file, *parts[place + 1 :]])})", -1) for file in files]
    if has_magic(source) and not user_path(source).exists():
        matched = sorted(glob(str(user_path(source))))  # noqa: PTH207 - of a whole path
        if not matched:
            raise UsageError(f"{source} matches nothing.")
        return [(path, -1) for path in matched]
    return [(source, step)]


def _at(text: str, step: int) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints at a path, and what else is there."""
    if is_function(text) and not text.startswith(PREFIX):
        return [Checkpoint(_function_name(text), step, "function", text)], []
    path = user_path(text)
    if not path.exists():
        if step >= 0 and (text.startswith(PREFIX) or HUB_ID.match(text)):
            return [Checkpoint(text, step, "pipeline", text)], []
        raise UsageError(
            f"There is no '{text}'; expected a folder of checkpoints, a checkpoint, a pattern, module:function(...), or a hub id "
            "with its step (owner/name=STEP)."
        )
    kind = kind_of(path)
    if path.is_file() or step >= 0:
        if kind is None:
            raise UsageError(f"'{path}' is no checkpoint: {_why_none(path)}.")
        return [Checkpoint(path.name, step, kind, str(path), stamp_of(path))], []
    inside, notes = _inside(path)
    if not inside:
        return ([Checkpoint(path.name, step, kind, str(path), stamp_of(path))], []) if kind else ([], notes)
    if kind is not None:
        notes.append(
            f"{path.name} is itself a {kind} beside its checkpoints and is left out: nothing says its step "
            f"({path}=STEP says it)"
        )
    return inside, notes


def _inside(folder: Path) -> tuple[list[Checkpoint], list[str]]:
    found, others = [], []
    whole = kind_of(folder) in ("pipeline", "components")
    own = {*COMPONENTS, "vae", "tokenizer", "tokenizer_2", "scheduler", "safety_checker", "feature_extractor", "logs"}
    for child in sorted(folder.iterdir()):
        if child.name.startswith(".") or (whole and child.name in own):
            continue
        if child.is_file() and (child.name in FILES or child.suffix not in (".safetensors", ".ckpt", *PICKLED)):
            continue  # logs, samples, a README; a LoRA under its usual name is the folder's own
        kind = kind_of(child)
        if kind is None:
            others.append(f"{child.name} ({_why_none(child)})")
        else:
            found.append(Checkpoint(child.name, -1, kind, str(child), stamp_of(child)))
    notes = (
        [f"{count(len(others), 'entry', 'entries')} of {folder.name} are no checkpoints: {named(others)}"]
        if others
        else []
    )
    return found, notes


def kind_of(path: Path) -> Kind | None:
    """What kind of checkpoint lies at a path, None for anything else; reads names and headers only."""
    if path.is_file():
        if path.suffix == ".ckpt":
            return "file"
        if path.suffix != ".safetensors" or sniff(path) == "pickle":
            return None
        return "lora" if is_lora(path) else "file"
    if (path / "model_index.json").exists():
        return "pipeline"
    parts = [path / name for name in COMPONENTS if (path / name).is_dir()]
    if any((path / name).is_file() for name in FILES) or any(is_lora(part) for part in parts):
        return "lora"
    if any((part / "config.json").exists() for part in parts):
        return "components"
    return None


def _why_none(path: Path) -> str:
    if path.is_file():
        return "a pickle" if path.suffix in PICKLED else "no file of weights that is read"
    if any(path.glob("*.safetensors")) or any(path.glob("*.bin")):
        return "a state for going on with the training, without a pipeline, a LoRA or a component of one"
    return "no weights in it"


def _stem(checkpoint: Checkpoint) -> str:
    name = checkpoint.name
    if checkpoint.kind == "function":
        return re.sub(r"\.(pt|pth|safetensors|ckpt|bin)\b", "", name)
    return name.removesuffix(Path(name).suffix) if Path(name).suffix in WRITTEN else name


def _function_name(text: str) -> str:
    """What names a function's checkpoint: what stands in its brackets, files without their folders."""
    form = FORM.fullmatch(text)
    given = (form["given"] if form is not None else None) or text
    return ", ".join(part.strip().strip("'\"").rpartition("/")[2] for part in given.split(","))


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]


def stamp_of(path: Path) -> str:
    """Sizes and times of a checkpoint's files of weights, as one short text: another one once any of them changes."""
    from diffmem.keys import row_key

    files = [file for file in _files(path) if file.suffix in (*WRITTEN, *PICKLED)]
    told = [[str(file.relative_to(path.parent)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return row_key(stamp=told).hex()[:16]


def is_complete(checkpoint: Checkpoint, settled: float) -> bool:
    """Whether all of a checkpoint is on the disk: every .safetensors file as long as its header says, and nothing in it
    changed for `settled` seconds.
    """
    path = user_path(checkpoint.source)
    if not path.exists():
        return True  # nothing of ours to wait for
    try:
        files = _files(path)
        newest = max((file.stat().st_mtime for file in files), default=0.0)
        return time.time() - newest >= settled and all(_whole(file) for file in files if file.suffix == ".safetensors")
    except FileNotFoundError:  # a temporary name that was there a moment ago
        return False


def _whole(file: Path) -> bool:
    size = file.stat().st_size
    if size < 8:
        return False
    with file.open("rb") as opened:
        length = struct.unpack("<Q", opened.read(8))[0]
        if 8 + length > size:
            return False
        try:
            header = json.loads(opened.read(length))
        except ValueError:
            return False
    ends = [
        value["data_offsets"][1] for key, value in header.items() if key != "__metadata__" and "data_offsets" in value
    ]
    return bool(size >= 8 + length + max(ends, default=0))
