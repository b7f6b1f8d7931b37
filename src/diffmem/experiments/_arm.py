"""An arm: one set of images that an experiment makes, and how it is made, matched and metered. Resumes image by image."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.index import CopyIndex
from diffmem.data.images import ImageSet, as_images
from diffmem.data.prompts import Prompt
from diffmem.errors import IncompatibleRun, UsageError
from diffmem.mitigation.base import Mitigation
from diffmem.models.loading import quiet_libraries
from diffmem.models.target import Target
from diffmem.notebook import ShownInNotebooks
from diffmem.runs.asked import record_asked
from diffmem.runs.directory import RunDirectory, in_shard, record_model
from diffmem.runs.facts import read_fact, update_fact
from diffmem.runs.peak import peak_memory
from diffmem.runs.units import Runner
from diffmem.stages.fit import fit_once
from diffmem.stages.generate import Generation, GenerationResult, generate_stage
from diffmem.stages.match.stage import Matching, MatchResult, build_index, match_stage, training_of

Hook = Callable[[RunDirectory, Target], Any]
"""A stage of an arm; what it gives back is kept in `Made`."""


@dataclass(frozen=True)
class Arm(ShownInNotebooks):
    """Whatever distinguishes one set of images from another.

    Attributes:
        name: unique within the experiment; the key of its table.
        open: gives the model; called when the arm's turn comes, so that one model is in memory.
        prompts: what is asked for.
        generation: images per prompt, seed, sampling.
        place: folder of the arm below the experiment's own; "" is that folder itself.
        section: sections of the plan beside "generate" and "match"; rows of another plan are refused.
        mitigations: applied together while the images are made.
        conditioning: a context in which the images are made (embeddings handed over in place of the prompts').
        work: (prompt, draw) pairs in place of `generation.images_per_prompt` of each prompt.
        judged_together: images that share one false-positive rate; default: those of a prompt. 1: the rate is per image.
        fingerprints: beside those of the model and the training set.
        reference: in place of the experiment's; its index lies in the arm's own folder.
        before, after: other stages of this arm (scoring, measuring), run in its directory with its model.
    """

    name: str
    open: Callable[[], Target]
    prompts: Sequence[Prompt]
    generation: Generation
    place: str = ""
    section: Mapping[str, Any] = field(default_factory=dict)
    mitigations: Sequence[Mitigation] = ()
    conditioning: Callable[[Target], AbstractContextManager[Any]] | None = None
    work: Sequence[tuple[Prompt, int]] | None = None
    judged_together: int | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    reference: Reference | None = None
    before: Hook | None = None
    after: Hook | None = None

    def __repr__(self) -> str:
        settings = "".join(f", {mitigation.label}" for mitigation in self.mitigations)
        return f"Arm({self.name!r}: {len(self.prompts)} prompts, {self.generation.images_per_prompt} images each{settings})"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "prompts": len(self.prompts), "images per prompt": self.generation.images_per_prompt,
            "sampling": str(self.generation.sampling), "mitigations": [mitigation.label for mitigation in self.mitigations],
            "folder": self.place,
        }  # fmt: skip


@dataclass
class Reference(ShownInNotebooks):
    """What all arms' images are compared with; the training images are described once, at the first use.

    Attributes:
        train: the training images, or an index of them with its descriptor.
        heldout: images that no training saw, for the threshold of a copy; None: it stays uncalibrated.
        matching: descriptor, statistic and false-positive rate.
        options: of the descriptor's class.
        silent: no progress on stderr.
    """

    train: ImageSet | CopyIndex
    heldout: ImageSet | None
    matching: Matching
    options: Mapping[str, Any] = field(default_factory=dict)
    silent: bool = True
    _index: CopyIndex | None = None

    def __repr__(self) -> str:
        return f"Reference({self.train!r}, held out: {self.heldout!r}, by {self.matching.descriptor})"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "training images": repr(self.train), "held-out images": repr(self.heldout), "matching": str(self.matching),
        }  # fmt: skip

    @classmethod
    def of(
        cls, train: Any, heldout: Any = None, matching: Matching | None = None,
        options: Mapping[str, Any] | None = None, silent: bool = True,
    ) -> Reference:  # fmt: skip
        """The reference from whatever `as_images` takes, or from an index, which says itself by what it was described."""
        matching = matching or Matching()
        images = training_of(train, options)
        if isinstance(images, CopyIndex):
            matching = matching.model_copy(update={"descriptor": images.about["name"]})
        return cls(images, None if heldout is None else as_images(heldout), matching, options or {}, silent)

    def index_in(self, folder: Path | None) -> CopyIndex:
        """The index; made in `folder`/index, and read from there when the same call comes again."""
        if self._index is None and isinstance(self.train, CopyIndex):
            self._index = self.train
        elif self._index is None and not isinstance(self.train, CopyIndex):
            descriptor = make_descriptor(self.matching.descriptor, self.train, **self.options)
            place = None if folder is None else folder / "index" / descriptor.name
            self._index = build_index(self.train, descriptor, place, self.silent)
        assert self._index is not None
        return self._index

    @property
    def index(self) -> CopyIndex:
        """The index, wherever it was made."""
        return self.index_in(None)


@dataclass(frozen=True)
class Options:
    """How the work is done; none of it changes a number.

    Attributes:
        retry_errors: make images again that ended in an error.
        silent: no progress on stderr.
        shard: (i, n): only this part of the prompts; what needs all of them waits for the call without it.
        runner: who scores and generates; None for this process.
    """

    retry_errors: bool = False
    silent: bool = True
    shard: tuple[int, int] | None = None
    runner: Runner | None = None


@dataclass(frozen=True)
class Made:
    """An arm that is done.

    Attributes:
        run: its directory.
        generation: what the generation stage did in this call; None for a model that makes no images.
        matching: what the matching stage did; None without a reference or images.
        before, after: what the arm's other stages gave back.
    """

    run: RunDirectory
    generation: GenerationResult | None = None
    matching: MatchResult | None = None
    before: Any = None
    after: Any = None


def make_arm(arm: Arm, folder: Path | None, reference: Reference | None, options: Options) -> Made:
    """Generate, match and meter one arm in a run directory of its own; what is there is kept.

    Args:
        arm: what to make.
        folder: of the experiment; None makes a temporary directory.
        reference: what the images are compared with; None: they are not.
        options: how the work is done.

    Raises:
        MitigationRefused: a mitigation cannot work on this model.
        IncompatibleRun: the directory belongs to another model, plan or training set.
        UsageError: the model makes no images, and the arm has no other stages.
    """
    target = arm.open()
    reference, shared = arm.reference or reference, arm.reference is None
    for mitigation in arm.mitigations:
        mitigation.check(target.need_denoiser())
    if not target.can_generate and arm.before is None and arm.after is None:
        raise UsageError(f"'{target.name}' makes no images: give a pipeline, or a callable with generate=...")
    plan: dict[str, Any] = {"generate": arm.generation.model_dump(mode="json")}
    if reference is not None:
        plan["match"] = reference.matching.model_dump(mode="json")
    run = RunDirectory(
        None if folder is None else folder / arm.place, plan | dict(arm.section),
        {"model": target.fingerprint, **arm.fingerprints},
    )  # fmt: skip
    record_model(target, run.path)
    index = None
    if reference is not None and target.can_generate:
        index = reference.index_in(folder if folder is not None and shared else run.path)
        _refuse_other_images(index, run.path)
    if target.is_function and reference is not None and isinstance(reference.train, ImageSet):
        fit_once(target, reference.train, run)  # pipelines declare themselves; they are checked against their own runs
    before = None if arm.before is None else arm.before(run, target)
    made = matching = None
    if target.can_generate:
        if arm.work is None:
            record_asked(run.path, arm.generation.images_per_prompt)
        made = _generate(arm, target, run, options)
        if reference is not None and index is not None:
            matching = match_stage(
                run,
                reference.matching,
                index,
                reference.heldout,
                arm.judged_together or arm.generation.images_per_prompt,
                options.silent,
                None if options.shard is None else {p.id for p in arm.prompts if in_shard(p, options.shard)},
            )
    after = None if arm.after is None or options.shard is not None else arm.after(run, target)
    return Made(run, made, matching, before, after)


def _refuse_other_images(index: CopyIndex, run: Path) -> None:
    """Raise IncompatibleRun if the run's images were compared with other training images than these."""
    known = (read_fact(run, "copies") or {}).get("train")  # runs of 0.1.0 do not know
    if known not in (None, index.images_fingerprint):
        raise IncompatibleRun(
            f"'{run}' was matched with other training images (fingerprint {known[:12]} there, "
            f"{index.images_fingerprint[:12]} here). Give another --out, or the training images of the run (--train)."
        )


def _generate(arm: Arm, target: Target, run: RunDirectory, options: Options) -> GenerationResult:
    """The images, and what they cost: own evaluations of the pipeline, those of the mitigations, seconds, memory."""
    spent, started = 0.0, time.perf_counter()
    with ExitStack() as stack:
        records = [stack.enter_context(mitigation.apply(target)) for mitigation in arm.mitigations]
        if arm.conditioning is not None:
            stack.enter_context(arm.conditioning(target))
        device = None if target.denoiser is None else target.denoiser.device
        peak = None if device is None else stack.enter_context(peak_memory(device))
        stack.enter_context(quiet_libraries())  # a notice for every prompt that a mitigation makes too long
        made = generate_stage(
            target,
            arm.prompts,
            arm.generation,
            run,
            options.shard,
            options.retry_errors,
            options.silent,
            arm.work,
            options.runner,
        )
        seconds = time.perf_counter() - started
        spent = sum(record.nfe.total for record in records)
    if made.made:
        own = target.generation_nfe(arm.generation.sampling)
        megabytes = None if peak is None else peak.megabytes

        def added(before: dict[str, Any] | None) -> dict[str, Any]:
            before = before or {"images": 0, "seconds": 0.0, "nfe": 0.0, "peak_memory_mb": None}
            return {
                "images": before["images"] + made.made, "seconds": before["seconds"] + seconds,
                "nfe": None if own is None or before["nfe"] is None else before["nfe"] + spent + own * made.made,
                "peak_memory_mb": max((v for v in (before["peak_memory_mb"], megabytes) if v is not None), default=None),
                "peak_memory_is": "not measured" if peak is None else peak.what,
            }  # fmt: skip

        update_fact(run.path, "cost", added)
    return made


def cost_of(run: Path) -> dict[str, Any]:
    """Evaluations and seconds per image of an arm, and the most memory that it held."""
    fact = read_fact(run, "cost") or {}
    images = fact.get("images") or 0
    per = {
        f"{name}_per_image": fact[name] / images if images and fact[name] is not None else None
        for name in ("nfe", "seconds")
    }
    return per | {"peak_memory_mb": fact.get("peak_memory_mb"), "peak_memory_is": fact.get("peak_memory_is")}
