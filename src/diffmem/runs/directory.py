"""A run directory in use: store, manifest and the bookkeeping that every stage shares."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffmem.data.prompts import Prompt, PromptList
from diffmem.errors import UsageError
from diffmem.keys import row_key
from diffmem.runs.completeness import record_rows, row_changes
from diffmem.runs.facts import write_fact
from diffmem.runs.manifest import Manifest, open_run, read_manifest, record_stage
from diffmem.runs.provenance import provenance
from diffmem.runs.store import RunStore

if TYPE_CHECKING:
    from diffmem.models.target import Target

_log = logging.getLogger(__name__)

MAY_CHANGE = (
    "score.scores", "score.draws", "score.micro_batch", "generate.draws", "generate.batch", "match.images",
    "measure.scores", "measure.batch", "measure.limit",
)  # fmt: skip
"""Plan fields that may differ when a run is opened again: they only add work or do not change any number."""


class RunDirectory:
    """Store and manifest of one run directory.

    Args:
        path: the folder; None makes a temporary one that lives as long as this object.
        plan: the sections of the stages that this command works on.
        fingerprints: of the model, the prompts, the training set.
    """

    def __init__(self, path: str | Path | None, plan: Mapping[str, Any], fingerprints: Mapping[str, str]) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="diffmem-") if path is None else None
        self.path = Path(self._temporary.name if self._temporary is not None else str(path))
        self.manifest: Manifest = open_run(
            self.path, plan, fingerprints, provenance(), _command_line(), may_change=MAY_CHANGE
        )
        self.store = RunStore(self.path)
        for text in row_changes(self.store):
            _log.warning(text)

    @classmethod
    def attach(cls, path: Path) -> RunDirectory:
        """A run that another process has opened: for its workers, which write rows and change nothing else."""
        run = cls.__new__(cls)
        run._temporary, run.path = None, path
        run.manifest, run.store = read_manifest(path), RunStore(path)
        return run

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @contextmanager
    def stage(self, name: str, total: int, done: int, parts: Sequence[str] = ()) -> Iterator[StageClock]:
        """Record a stage as running, then as done or stopped, with the time it took.

        Args:
            name: of the stage.
            total: its rows.
            done: those that exist already.
            parts: the kinds of rows that are complete once the stage is done; none where this process does a share of it.
        """
        clock = StageClock(done)
        started = time.monotonic()
        record_stage(self.path, name, state="running", done=done, total=total)
        try:
            yield clock
        except BaseException:
            seconds = time.monotonic() - started
            record_stage(self.path, name, state="stopped", done=clock.done, total=total, seconds=seconds)
            raise
        finished: Literal["done", "stopped"] = "done" if clock.done >= total else "stopped"
        if finished == "done":
            self.complete(*parts)
        record_stage(
            self.path, name, state=finished, done=clock.done, total=total, seconds=time.monotonic() - started
        )  # fmt: skip

    def complete(self, *parts: str) -> None:
        """Say that the rows of these kinds are all there: rows that are lost, or come from elsewhere, are said from now on."""
        self.store.settle(*parts)
        record_rows(self.store, parts)

    def record_prompts(self, prompts: Sequence[Prompt], notes: Mapping[str, str] | None = None) -> None:
        """Keep the prompts themselves, with what the tokenizer cut off (`notes` by id), so that a run explains itself."""
        rows = []
        known = self.store.finished("prompts")
        for prompt in prompts:
            extra = dict(prompt.extra)
            if notes is not None and prompt.id in notes:
                extra["truncated"] = notes[prompt.id]
            key = row_key(stage="prompts", prompt=[prompt.id, prompt.text], label=prompt.label, extra=_plain(extra))
            if key not in known:
                rows.append(
                    {"key": key, "prompt_id": prompt.id, "text": prompt.text, "label": prompt.label,
                     "text_sha": row_key(text=prompt.text).hex(), "group": prompt.group,
                     "extra": json.dumps(_plain(extra), ensure_ascii=False)}
                )  # fmt: skip
        self.store.append("prompts", rows)


def record_model(target: Target, folder: Path) -> None:
    """Write the fact `model`: what the run is about."""
    denoiser = target.denoiser
    fact: dict[str, Any] = {"name": target.name, "fingerprint": target.fingerprint, "notes": list(target.notes)}
    if denoiser is not None:
        fact |= {
            "family": denoiser.family, "prediction": denoiser.prediction, "space": denoiser.space,
            "dtype": str(denoiser.dtype).removeprefix("torch."), "device": str(denoiser.device),
        }  # fmt: skip
    write_fact(folder, "model", fact)


class StageClock:
    """How many rows of a stage exist so far."""

    def __init__(self, done: int) -> None:
        self.done = done


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """`I/N` -> (I, N), 0 <= I < N; None for no sharding."""
    if text is None:
        return None
    left, slash, right = text.partition("/")
    if not slash or not left.isdigit() or not right.isdigit() or not int(left) < int(right):
        raise UsageError(f"--shard takes I/N with 0 <= I < N (the first of four is 0/4), but got {text!r}.")
    return int(left), int(right)


def in_shard(prompt: Prompt, shard: tuple[int, int] | None) -> bool:
    """Whether a prompt belongs to a shard: by content, so that every process agrees without talking."""
    if shard is None:
        return True
    return int.from_bytes(row_key(prompt=[prompt.id, prompt.text])[:8], "big") % shard[1] == shard[0]


def usable(prompts: PromptList) -> list[Prompt]:
    """The prompts without a problem."""
    return [prompt for prompt in prompts if prompt.problem is None]


def _plain(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Extra columns as strict JSON values: numbers that are not finite become null, texts stay as they are."""
    values: dict[str, Any] = json.loads(json.dumps(dict(extra), default=str), parse_constant=lambda _: None)
    return values


def _command_line() -> list[str]:
    return ["diffmem", *sys.argv[1:]] if Path(sys.argv[0]).name == "diffmem" else ["python"]
