"""The generation stage: k images per prompt from the user's own pipeline, with recorded seeds, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from pydantic import ConfigDict, Field

from diffmem.copies.degenerate import is_degenerate
from diffmem.data.png import png_bytes
from diffmem.data.prompts import Prompt, PromptList
from diffmem.errors import DiffmemError
from diffmem.keys import row_key
from diffmem.models.elsewhere import ModelElsewhere
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.notebook import ShownInNotebooks, is_silent
from diffmem.randomness import seed_of
from diffmem.renamed import RenamedFields
from diffmem.runs.directory import RunDirectory, in_shard
from diffmem.runs.microbatch import MicroBatches, describe
from diffmem.runs.progress import Progress
from diffmem.runs.runners import as_runner, require_folder
from diffmem.runs.store import RowWriter, RunStore
from diffmem.runs.units import Report, Runner, Work
from diffmem.stages.samples import prompts_or_samples


class Generation(RenamedFields):
    """How many images, from which noises, sampled how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    new_names: ClassVar[Mapping[str, str]] = {"draws": "images_per_prompt"}

    images_per_prompt: int = Field(4, ge=1, description="images generated of each prompt")
    seed: int = Field(0, description="root seed")
    batch: int = Field(32, ge=1, description="images per call of the pipeline at first; halved when memory runs out")
    sampling: Sampling = Sampling()


@dataclass
class GenerationResult(ShownInNotebooks):
    """What the generation stage did.

    Attributes:
        run: the run directory.
        made: images made by this command.
        failed: images that ended in an error row instead.
        nfe: network evaluations spent, or None where they cannot be known.
        notes: what a reader must know (halved batches, prompts set aside).
    """

    run: RunDirectory
    made: int = 0
    failed: int = 0
    nfe: int | None = None
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"GenerationResult({self.made} images made{failed}, in {str(self.run.path)!r})"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "made": self.made, "failed": self.failed, "network evaluations": self.nfe, "run": str(self.run.path),
            "notes": self.notes,
        }  # fmt: skip


def generate(
    target: Target,
    prompts: PromptList | str | Path | Sequence[str] | None = None,
    settings: Generation | None = None,
    *,
    samples: int | None = None,
    out: str | Path | None = None,
    shard: tuple[int, int] | None = None,
    runner: Runner | str | None = None,
    retry_errors: bool = False,
    silent: bool | None = None,
) -> GenerationResult:
    """Generate images per prompt and keep them in the run directory.

    Args:
        target: the model; its own pipeline makes the images.
        prompts: a list of prompts, a file, or a PromptList; None for a model that takes none.
        settings: images per prompt, seed, sampling; by default 4 images of each prompt, 1 of each sample.
        samples: for a model that takes no prompts: how many images to make.
        out: run directory; the same command resumes it.
        shard: (i, n): only this part of the prompts.
        runner: who does the work, see `score`.
        retry_errors: make images again that ended in an error.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Examples:
        >>> import diffmem as dm
        >>> network = dm.Target.from_callable(lambda x, t, cond: x * 0, (1, 8, 8), steps=2, device="cpu")
        >>> dm.generate(network, samples=3, out="runs/generated")
        GenerationResult(3 images made, in 'runs/generated')
    """
    silent = is_silent(silent)
    prompt_list, runner = prompts_or_samples(target, prompts, samples), require_folder(runner, out)
    settings = settings or (Generation() if samples is None else Generation(images_per_prompt=1))
    fingerprints = {"model": target.fingerprint, "prompts": prompt_list.fingerprint}
    run = RunDirectory(out, {"generate": settings.model_dump(mode="json")}, fingerprints)
    return generate_stage(target, prompt_list, settings, run, shard, retry_errors, silent, runner=runner)


def image_key(target: Target, prompt: Prompt, draw: int, settings: Generation) -> bytes:
    """The content key of one generated image."""
    return row_key(
        stage="images", model=target.fingerprint, prompt=[prompt.id, prompt.text], draw=draw, seed=settings.seed,
        sampling=settings.sampling.model_dump(mode="json"),
    )  # fmt: skip


def generate_stage(
    target: Target,
    prompts: Sequence[Prompt],
    settings: Generation,
    run: RunDirectory,
    shard: tuple[int, int] | None = None,
    retry_errors: bool = False,
    silent: bool = True,
    work: Sequence[tuple[Prompt, int]] | None = None,
    runner: Runner | str | None = None,
) -> GenerationResult:
    """The stage itself, in an open run directory; `work` names (prompt, draw) pairs in place of all images of each prompt."""
    mine = [p for p in prompts if in_shard(p, shard)]
    run.record_prompts(mine)
    done = run.store.finished("images", retry_errors)
    whole = [(p, d) for p in mine for d in range(settings.images_per_prompt)]
    work = whole if work is None else [(p, d) for p, d in work if in_shard(p, shard)]
    todo = [(p, d) for p, d in work if image_key(target, p, d, settings) not in done]
    result, runner = GenerationResult(run), as_runner(runner)
    sound, tried = [(p, d) for p, d in todo if p.problem is None], 0
    maker = _Maker(target, settings, result.notes)
    with (
        run.stage("generate", len(work), len(work) - len(todo), () if shard else ("prompts", "images")) as clock,
        run.store.writer("images") as writer,
        Progress(len(work), "generating", unit="images", done=clock.done, silent=silent or not todo) as bar,
    ):
        for prompt, draw in [(p, d) for p, d in todo if p.problem is not None]:
            writer.write(_row(target, prompt, draw, settings, status="error", error=prompt.problem))
            result.failed += 1
        for report in (
            maker.make(sound, writer) if runner is None else _spread(runner, target, settings, run, sound, retry_errors)
        ):
            result.failed += report.failed
            result.made += report.done - report.failed
            result.notes += report.notes
            tried += report.done
            clock.done += report.done
            bar.advance(report.done)
        clock.done = len(work)
    per_image = target.generation_nfe(settings.sampling)
    result.nfe = None if per_image is None else per_image * tried
    return result


class _Maker:
    """Makes images in batches that fit and keeps them as rows."""

    def __init__(self, target: Target, settings: Generation, notes: list[str]) -> None:
        self.target, self.settings, self.notes = target, settings, notes
        self.batches = MicroBatches(
            settings.batch, lambda size: notes.append(f"out of memory: images per call were halved to {size}")
        )

    def make(self, items: Sequence[tuple[Prompt, int]], writer: RowWriter) -> Iterator[Report]:
        """Make these images; one report per call of the pipeline."""
        for batch, images in self.batches.run(items, self._images):
            rows = list(_rows(self.target, batch, images, self.settings))
            writer.write_many(rows)
            yield Report(len(rows), sum(row["status"] == "error" for row in rows))

    def _images(self, items: Sequence[tuple[Prompt, int]]) -> list[Image.Image]:
        texts, draws = [p.text for p, _ in items], [d for _, d in items]
        return self.target.generate(texts, draws, self.settings.seed, self.settings.sampling)


CALLS = 4
"""Calls of the pipeline per unit of work."""

Unit = tuple[tuple[Prompt, int], ...]


@dataclass
class GenerationWork(Work[Unit]):
    """Images for the workers of a runner, which open the model themselves."""

    model: ModelElsewhere
    settings: Generation
    path: Path
    retry_errors: bool
    here: Target | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"here": None}

    def open(self) -> Callable[[Unit], Report]:
        """Open the model; the function that makes the images of a unit."""
        store, notes = RunStore(self.path), list[str]()
        maker = _Maker(self.model.open(), self.settings, notes)

        def make(unit: Unit) -> Report:
            told = len(notes)
            with store.writer("images") as writer:
                reports = list(maker.make(unit, writer))
            return Report(
                sum(r.done for r in reports), sum(r.failed for r in reports), notes=tuple(notes[told:])
            )  # fmt: skip

        return make

    def left(self, unit: Unit) -> Unit | None:
        """The images that the store lacks."""
        assert self.here is not None
        done = RunStore(self.path).finished("images", self.retry_errors)
        return tuple((p, d) for p, d in unit if image_key(self.here, p, d, self.settings) not in done) or None

    def halves(self, unit: Unit) -> Sequence[Unit]:
        """Half the images each."""
        middle = len(unit) // 2
        return (unit[:middle], unit[middle:]) if middle else ()

    def fail(self, unit: Unit, reason: str) -> Report:
        """Error rows."""
        assert self.here is not None
        rows = [_row(self.here, p, d, self.settings, status="error", error=reason) for p, d in unit]
        RunStore(self.path).append("images", rows)
        return Report(len(rows), len(rows))


def _spread(
    runner: Runner, target: Target, settings: Generation, run: RunDirectory, items: Sequence[tuple[Prompt, int]], retry: bool,
) -> Iterator[Report]:  # fmt: skip
    work = GenerationWork(ModelElsewhere.of(target), settings, run.path, retry, target)
    size = CALLS * settings.batch
    return runner.run(work, (tuple(items[start : start + size]) for start in range(0, len(items), size)))


def _rows(
    target: Target, items: Sequence[tuple[Prompt, int]], images: list[Image.Image] | Exception, settings: Generation
) -> Iterator[dict[str, Any]]:
    if isinstance(images, Exception):
        for prompt, draw in items:
            yield _row(target, prompt, draw, settings, status="error", error=describe(images))
        return
    if len(images) != len(items):
        raise DiffmemError(f"The model returned {len(images)} images for {len(items)} prompts.")
    for (prompt, draw), image in zip(items, images, strict=True):
        yield _row(
            target, prompt, draw, settings, status="ok", png=png_bytes(image), width=image.width, height=image.height,
            degenerate=is_degenerate(image),
        )  # fmt: skip


def _row(target: Target, prompt: Prompt, draw: int, settings: Generation, **more: Any) -> dict[str, Any]:
    return {
        "key": image_key(target, prompt, draw, settings), "prompt_id": prompt.id, "draw": draw,
        "seed": seed_of(settings.seed, "generation", prompt.text, draw),
        "settings": json.dumps(settings.sampling.model_dump(mode="json")), **more,
    }  # fmt: skip
