"""Seal a run into one file, and verify such a file: nothing of it was changed, and chosen images are made again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmem import __version__
from diffmem.copies import index_files
from diffmem.errors import DataError, UsageError
from diffmem.experiments._run import Run, as_run
from diffmem.notebook import ShownInNotebooks
from diffmem.runs.bundle import RUN, Checked, check_bundle, write_bundle
from diffmem.runs.manifest import FILE as MANIFEST
from diffmem.runs.manifest import read_manifest

if TYPE_CHECKING:
    from diffmem.experiments.seal.replay import Replay
    from diffmem.models.target import Target

SUFFIX = ".sealed"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
_OF_WRITERS = (".tmp", ".lock", ".corrupt", ".recomputed")


@dataclass(frozen=True)
class Sealed(ShownInNotebooks):
    """A bundle that was written.

    Attributes:
        path: the file.
        seal: its SHA-256 as far as its last 64 bytes, to be kept elsewhere.
        files: in it.
        left_out: file of the run -> why it is not in it.
    """

    path: Path
    seal: str
    files: int
    left_out: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Sealed({str(self.path)!r}, {self.files} files, seal {self.seal})"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "file": str(self.path), "seal": self.seal, "files": self.files,
            "left out": [f"{file}: {reason}" for file, reason in self.left_out.items()],
        }  # fmt: skip


@dataclass(frozen=True)
class Verified(ShownInNotebooks):
    """What `verify` found.

    Attributes:
        checked: what the file says of itself.
        expected: the seal that was kept elsewhere; None: none was given.
        replays: images that were made again.
        problems: everything that speaks against the bundle; empty: it is as it was sealed, and every replay agrees.
    """

    checked: Checked
    expected: str | None
    replays: tuple[Replay, ...]
    problems: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Verified({len(self.problems)} problems, {len(self.replays)} images made again)"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "problems": self.problems or "none", "expected seal": self.expected, "images made again": len(self.replays),
        }  # fmt: skip


def seal(run: Run | str | Path, out: str | Path | None = None) -> Sealed:
    """Write a run into one file that shows every later edit: protocol, rows, facts, pages, with a chain of their hashes.

    Args:
        run: a run or its folder, of any verb.
        out: the file; by default beside the folder, with ".sealed" behind its name.

    Raises:
        DataError: there is no run, or a file of it is damaged or changes meanwhile.
        UsageError: `out` lies in the run.

    Examples:
        >>> import diffmem as dm
        >>> network = dm.Target.from_callable(lambda x, t, cond: x * 0, (1, 8, 8), steps=2, device="cpu")
        >>> run = dm.audit(network, samples=4, out="runs/sealed")
        >>> sealed = dm.seal(run)
        >>> sealed.path.name, len(sealed.seal)
        ('sealed.sealed', 64)
    """
    opened = as_run(run)
    folder = opened.path
    file = folder.with_name(folder.resolve().name + SUFFIX) if out is None else Path(out)
    if file.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"'{file}' lies in the run that it would hold; give a file elsewhere (--out).")
    files, left_out = _files(folder)
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else None
    summary: dict[str, Any] = opened.summary.as_dict()
    protocol = {
        "sealed": datetime.now(UTC).isoformat(timespec="seconds"), "diffmem": __version__, "verb": opened.verb,
        "headline": opened.summary.headline, "verdict": (summary.get("verdict") or {}).get("state"),
        "limits": list(opened.summary.limits), "left_out": left_out,
        "run": None if manifest is None else manifest.model_dump(mode="json"),
    }  # fmt: skip
    return Sealed(file, write_bundle(file, protocol, files), len(files), left_out)


def _files(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Name in the bundle -> file, and what is left out -> why."""
    files: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    for place, folders, names in os.walk(folder):
        here = Path(place)
        for name in sorted(folders):
            inner = here / name
            if inner.is_symlink() or index_files.exists(inner):
                why = "a link" if inner.is_symlink() else "an index of training images, which is made again from them"
                left_out[f"{inner.relative_to(folder).as_posix()}/"] = why
                folders.remove(name)
        for name in sorted(names):
            file = here / name
            relative = file.relative_to(folder).as_posix()
            if name.endswith(_OF_WRITERS):
                continue  # locks and remains of writers that were stopped
            reason = _reason(file, relative)
            if reason is None:
                files[RUN + relative] = file
            else:
                left_out[relative] = reason
    return files, left_out


def _reason(file: Path, relative: str) -> str | None:
    if file.is_symlink() or not file.is_file():
        return "a link" if file.is_symlink() else "no plain file"
    if file.suffix.lower() in _WEIGHTS:
        return "weights"
    if not relative.isprintable() or any(sign in relative for sign in "\\:"):
        return "a name that not every system can hold"
    return None


def verify(
    bundle: str | Path, *, expected: str | None = None, target: Target | None = None, replays: int = 3
) -> Verified:
    """Compare a sealed run with its hashes, and make images of it again where the model is given.

    Nothing in the file is run, unpickled or unpacked to disk. Which images are made again follows from the seal, those called
    copies first, so that nobody picks them.

    Args:
        bundle: what `seal` wrote.
        expected: the seal that was kept elsewhere; without it a file that was rewritten with a new seal is not noticed.
        target: the model of the run.
        replays: how many images to make again.

    Raises:
        DataError: there is no such file.
        UsageError: `expected` is no seal, or there is nothing to make again.

    Examples:
        >>> import diffmem as dm
        >>> network = dm.Target.from_callable(lambda x, t, cond: x * 0, (1, 8, 8), steps=2, device="cpu")
        >>> sealed = dm.seal(dm.audit(network, samples=4, out="runs/verified"))
        >>> dm.verify(sealed.path, expected=sealed.seal).problems
        ()
    """
    if target is not None and replays < 1:
        raise UsageError(f"{replays} images cannot be made again; give at least 1, or no model.")
    if expected is not None and (len(expected) != 64 or not set(expected.lower()) <= set("0123456789abcdef")):
        raise UsageError(f"{expected!r} is no seal; expected the 64 hexadecimal digits that `diffmem seal` printed.")
    path = Path(bundle)
    checked = check_bundle(path)
    problems = list(checked.problems)
    if expected is not None and checked.seal != expected.lower():
        problems.append(
            f"this is not the file that was sealed: its seal is {checked.seal}, expected {expected.lower()}"
        )
    made: tuple[Replay, ...] = ()
    if target is not None and not problems:
        from diffmem.experiments.seal.replay import replay

        try:
            made = replay(path, checked, target, replays)
        except DataError as problem:
            problems.append(f"no image could be made again: {problem}")
        problems += [f"prompt '{one.prompt_id}', draw {one.draw}: {one.text}" for one in made if not one.agrees]
    return Verified(checked, expected, made, tuple(problems))
