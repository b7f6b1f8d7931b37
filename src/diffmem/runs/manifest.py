"""`run.json`: what a run directory belongs to, and how far its stages are."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from diffmem import __version__
from diffmem.atomic import locked, sweep
from diffmem.errors import DataError, IncompatibleRun
from diffmem.runs.identity import plan_differences
from diffmem.runs.provenance import Provenance
from diffmem.runs.schemas import SCHEMA_VERSION
from diffmem.runs.sealed import read_sealed, write_sealed

FILE = "run.json"


class StageStatus(BaseModel):
    """How far a stage is: `done` of `total` rows, whoever computed them; seconds add up over all commands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["running", "done", "stopped"]
    done: int
    total: int | None = None
    seconds: float = 0.0


class Manifest(BaseModel):
    """Everything about a run but its rows.

    Attributes:
        schema_version: of this file and of the parts; a reader refuses newer ones.
        diffmem_version: the version that wrote the file last.
        created: UTC, ISO 8601.
        commands: the command lines that worked on the run, in order.
        plan: what the numbers depend on, apart from the fingerprints; a mapping in it is the section of one stage.
        fingerprints: of the model, the prompts, the training set.
        provenance: of the process that worked on the run last.
        stages: name to status.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    diffmem_version: str
    created: str
    commands: tuple[tuple[str, ...], ...]
    plan: dict[str, JsonValue]
    fingerprints: dict[str, str]
    provenance: Provenance
    stages: dict[str, StageStatus] = {}


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of a run directory.

    Raises:
        DataError: there is no run, or its `run.json` is damaged.
        IncompatibleRun: a newer diffmem wrote it.
    """
    file = Path(path) / FILE
    try:
        raw = read_sealed(file)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"'{path}' is no run directory: it has no {FILE}. Name the folder given to --out.") from None
    except ValueError as error:
        raise DataError(f"'{file}' is damaged ({error}). {_ANOTHER}") from error
    found = raw.get("schema_version")
    if not isinstance(found, int):
        raise DataError(f"'{file}' is not the manifest of a run: it names no schema version. {_ANOTHER}")
    if found > SCHEMA_VERSION:
        writer = raw.get("diffmem_version", "a newer version")
        raise IncompatibleRun(
            f"'{path}' was written by diffmem {writer} with schema {found}; this is diffmem {__version__}, which reads "
            f"schemas up to {SCHEMA_VERSION}. Run: pip install 'diffmem>={writer}', or give another --out."
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"'{file}' is damaged: {place}: {first['msg']}. {_ANOTHER}") from error


def update_manifest(path: str | Path, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Read, change and write the manifest of an existing run under a lock, so that no process undoes another's change."""
    with locked(_lock_file(Path(path))):
        changed = change(read_manifest(path))
        _write(Path(path), changed)
    return changed


def record_stage(
    path: str | Path,
    stage: str,
    *,
    state: Literal["running", "done", "stopped"],
    done: int,
    total: int | None = None,
    seconds: float = 0.0,
) -> Manifest:
    """Set a stage's status; `done` and `total` replace the old numbers, `seconds` is added to them."""

    def change(manifest: Manifest) -> Manifest:
        before = manifest.stages.get(stage)
        spent = seconds + (before.seconds if before else 0.0)
        status = StageStatus(state=state, done=done, total=total, seconds=spent)
        return manifest.model_copy(update={"stages": {**manifest.stages, stage: status}})

    return update_manifest(path, change)


def open_run(
    path: str | Path,
    plan: Mapping[str, JsonValue],
    fingerprints: Mapping[str, str],
    provenance: Provenance,
    command: Sequence[str] = (),
    *,
    may_change: Collection[str] = (),
) -> Manifest:
    """Create a run directory, or open it again for the same model and plan.

    A plan's mappings are sections: one that only the stored or only the new plan has belongs to another stage and is
    kept or added. Everything else must be equal, and so must the model's fingerprint if both sides know it. Other
    fingerprints (prompts, training set) may change: rows are keyed by content, so a longer list is only more work.

    Args:
        path: the run directory.
        plan: JSON values.
        fingerprints: name to text; "model" is the one that must not change.
        provenance: of this process.
        command: the command line, for the record.
        may_change: dotted names of plan fields ("score.micro_batch") that may differ; the new value is recorded.

    Returns:
        The manifest as it now is on the disk.

    Raises:
        IncompatibleRun: another model, another plan (every differing field is named) or a newer schema.
        DataError: the path is a file, or its manifest is damaged.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"'{path}' is a file; a run needs a folder. Give another --out.")
    new_plan: dict[str, JsonValue] = json.loads(json.dumps(dict(plan), allow_nan=False))  # tuples as lists, as stored
    with locked(_lock_file(folder)):
        sweep(folder)
        if (folder / FILE).exists():
            old = read_manifest(folder)
            differences = _differences(old, new_plan, fingerprints, may_change)
            if differences:
                raise IncompatibleRun(
                    f"'{path}' belongs to another run: {'; '.join(differences)}. Give another --out, or the values of "
                    "the run."
                )
            stages, created, commands = old.stages, old.created, old.commands
            new_plan = {**old.plan, **new_plan}
            fingerprints = {**old.fingerprints, **fingerprints}
        else:
            stages, created, commands = {}, datetime.now(UTC).isoformat(timespec="seconds"), ()
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            diffmem_version=__version__,
            created=created,
            commands=(*commands, tuple(command)) if command else commands,
            plan=new_plan,
            fingerprints=dict(fingerprints),
            provenance=provenance,
            stages=stages,
        )
        _write(folder, manifest)
    return manifest


_ANOTHER = "Give another --out, or restore the file."


def _differences(
    old: Manifest, plan: dict[str, JsonValue], fingerprints: Mapping[str, str], may_change: Collection[str]
) -> list[str]:
    """The fields that keep a new command out of an old run, each with both values."""
    found: list[str] = []
    old_model, new_model = old.fingerprints.get("model"), fingerprints.get("model")
    if old_model is not None and new_model is not None and old_model != new_model:
        found.append(f"model fingerprint is {old_model} there, {new_model} here")
    other = {
        name
        for name, section in {**old.plan, **plan}.items()
        if isinstance(section, dict) and (name not in old.plan or name not in plan)
    }
    found += [d.in_words() for d in plan_differences(old.plan, plan, {*may_change, *other})]
    return found


def _lock_file(folder: Path) -> Path:
    return folder / f".{FILE}.lock"


def _write(folder: Path, manifest: Manifest) -> None:
    write_sealed(folder / FILE, manifest.model_dump(mode="json"), indent=2)
