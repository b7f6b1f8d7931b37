"""Mitigations compared: the same prompts from the same noises without and with each, copies and side effects counted."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffmem.atomic import write_atomic
from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.index import CopyIndex
from diffmem.data.images import ImageSet, load_images
from diffmem.data.prompts import Prompt, PromptList
from diffmem.errors import MitigationRefused, UsageError
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.experiments.mitigate.compare import OTHER, Seen, compared, look
from diffmem.keys import row_key
from diffmem.mitigation.base import Mitigation
from diffmem.mitigation.calibrate import calibrated
from diffmem.mitigation.spec import parse_mitigation
from diffmem.models.generation import Sampling, steps_of
from diffmem.models.loading import quiet_libraries
from diffmem.models.target import Target
from diffmem.runs.directory import RunDirectory, record_model
from diffmem.runs.facts import read_fact, write_fact
from diffmem.runs.peak import peak_memory
from diffmem.stages.generate import Generation, generate_stage
from diffmem.stages.match.stage import Matching, build_index, match_stage

PLAIN, SETTINGS, ROWS = "plain", "settings", "rows.json"


@dataclass
class MitigateResult:
    """What each mitigation did.

    Attributes:
        folder: `plain/` and one folder per setting in `settings/` are run directories; `rows.json` holds the rows.
        index: of the training images.
        prompts: those of both sides.
        rows: the first without mitigation, then one per setting, see `diffmem.experiments.mitigate.compare.compared`; status
            "refused" with the reason where a mitigation cannot work on this model.
        plain: what was seen without mitigation.
        seen: what was seen under each setting, by label.
        places: run directory of each setting, "none" without mitigation.
        notes: what a reader must know.
    """

    folder: Path
    index: CopyIndex
    prompts: PromptList
    rows: list[dict[str, Any]] = field(default_factory=list)
    plain: Seen | None = None
    seen: dict[str, Seen] = field(default_factory=dict)
    places: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def mitigate(
    target: Target,
    prompts: PromptList,
    methods: Sequence[str | Mitigation],
    train: ImageSet | CopyIndex | str | Path,
    *,
    out: str | Path,
    others: PromptList | None = None,
    reference: PromptList | None = None,
    heldout: ImageSet | str | Path | None = None,
    settings: Generation | None = None,
    matching: Matching | None = None,
    descriptor_options: Mapping[str, Any] | None = None,
    alignment: TextAlignment | None = None,
    pictures: ImageSet | str | Path | None = None,
    retry_errors: bool = False,
    silent: bool = True,
) -> MitigateResult:
    """Generate the same images without and with each mitigation and compare them in pairs; the same call resumes.

    Args:
        target: the model; mitigations take hold of its own pipeline and leave nothing behind.
        prompts: prompts to be mitigated; where they carry labels, those labelled false are `others`.
        methods: mitigations with their parameters, as text or objects.
        train: the training images, or an index of them with its descriptor.
        out: folder.
        others: prompts that are not memorized, to see what a mitigation does to bystanders.
        reference: ordinary prompts, at least 20, other than `others`: their median sets the targets that nobody has set
            (wen, low-noise-norm, han-sample, anisotropy); without, targets are those published for other models.
        heldout: images that no training saw, to calibrate the threshold of a copy.
        settings: images per prompt, seed, sampling.
        matching: descriptor, statistic, false-positive rate of a copy.
        descriptor_options: of the descriptor's class.
        alignment: judges images against their prompts; None: alignment is not judged.
        pictures: the training images themselves, for a mitigation that keeps away from them (amg); `train` by default,
            unless that is an index, which holds none.
        retry_errors: make images again that ended in an error.
        silent: no progress on stderr.

    Raises:
        UsageError: no prompts to mitigate, a method twice.

    Cost: (1 + settings) x prompts x images, each with the mitigation's own evaluations on top; the rows say how many.
    """
    listed = _sides(prompts, others)
    settings, judged = settings or Generation(), matching or Matching()
    known = pictures if pictures is not None else None if isinstance(train, CopyIndex) else train
    made = [parse_mitigation(one).with_images(known) for one in methods]
    if reference is not None:
        made = [_on_reference(one, target, reference, settings.sampling) for one in made]
    labels = [one.label for one in made]
    if len(set(labels)) != len(labels):
        raise UsageError(
            f"A mitigation is given twice: {', '.join(sorted({x for x in labels if labels.count(x) > 1}))}."
        )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    index = _index(train, judged, descriptor_options, folder, silent)
    held = None if heldout is None else load_images(heldout)
    result = MitigateResult(folder, index, listed)
    work = _Work(target, listed, settings, judged, index, held, retry_errors, silent)
    result.plain = look(work.run(folder / PLAIN, None), listed, index, alignment)
    result.places["none"] = folder / PLAIN
    cost = read_fact(folder / PLAIN, "cost") or {}
    result.rows.append(compared("none", "none", result.plain, result.plain, index) | _cost(cost))
    for number, (label, one) in enumerate(zip(labels, made, strict=True), start=1):
        if not silent:
            _say(f"mitigation {number} of {len(made)}: {label}")
        place = folder / SETTINGS / f"{one.name}-{row_key(label=label, version=one.version).hex()[:8]}"
        try:
            done = work.run(place, one)
        except MitigationRefused as reason:
            result.rows.append({"method": one.name, "setting": label, "status": "refused", "reason": str(reason)})
            continue
        result.seen[label] = look(done, listed, index, alignment)
        result.places[label] = place
        row = compared(one.name, label, result.plain, result.seen[label], index)
        result.rows.append(row | _cost(read_fact(place, "cost") or {}))
        write_atomic(folder / ROWS, json.dumps(result.rows, indent=1, allow_nan=False).encode())
    write_atomic(folder / ROWS, json.dumps(result.rows, indent=1, allow_nan=False).encode())
    return result


@dataclass
class _Work:
    """What all settings share."""

    target: Target
    prompts: PromptList
    settings: Generation
    matching: Matching
    index: CopyIndex
    heldout: ImageSet | None
    retry_errors: bool
    silent: bool

    def run(self, place: Path, mitigation: Mitigation | None) -> RunDirectory:
        """Generate and match one setting in a run directory of its own."""
        if mitigation is not None:
            mitigation.check(self.target.need_denoiser())
        about = None if mitigation is None else [mitigation.label, mitigation.version]
        run = RunDirectory(
            place,
            {"generate": self.settings.model_dump(mode="json"), "match": self.matching.model_dump(mode="json"),
             "mitigate": {"mitigation": about}},
            {"model": self.target.fingerprint, "prompts": self.prompts.fingerprint, "training": self.index.fingerprint},
        )  # fmt: skip
        record_model(self.target, run.path)
        spent, started = 0.0, time.perf_counter()
        with ExitStack() as stack:
            record = None if mitigation is None else stack.enter_context(mitigation.apply(self.target))
            peak = stack.enter_context(peak_memory(self.target.need_denoiser().device))
            stack.enter_context(quiet_libraries())  # a notice for every prompt that a mitigation makes too long
            made = generate_stage(
                self.target, self.prompts, self.settings, run, None, self.retry_errors, self.silent
            ).made  # fmt: skip
            seconds = time.perf_counter() - started
            spent = 0.0 if record is None else record.nfe.total
        own = self.target.generation_nfe(self.settings.sampling)
        if made:
            before = read_fact(run.path, "cost") or {"images": 0, "seconds": 0.0, "nfe": 0.0, "peak_memory_mb": None}
            peaks = [value for value in (before["peak_memory_mb"], peak.megabytes) if value is not None]
            fact = {
                "images": before["images"] + made, "seconds": before["seconds"] + seconds,
                "nfe": None if own is None else before["nfe"] + spent + own * made,
                "peak_memory_mb": max(peaks, default=None), "peak_memory_is": peak.what,
            }  # fmt: skip
            write_fact(run.path, "cost", fact)
        match_stage(run, self.matching, self.index, self.heldout, self.settings.draws, self.silent)
        return run


def _sides(prompts: PromptList, others: PromptList | None) -> PromptList:
    """One list whose groups say which side a prompt is on; ids are made unique, texts stay, and with them all noises."""
    sides: list[tuple[str, Prompt]] = [(OTHER if p.label is False and others is None else "", p) for p in prompts]
    sides += [(OTHER, p) for p in others or ()]
    if not any(side != OTHER for side, _ in sides):
        raise UsageError("None of the prompts is to be mitigated: all of them are labelled as not memorized.")
    rows = [
        Prompt(f"{side or 'prompt'}/{p.id}", p.text, p.label, side or None, p.extra, p.problem) for side, p in sides
    ]
    return PromptList(tuple(rows), prompts.source)


def _on_reference(mitigation: Mitigation, target: Target, reference: PromptList, sampling: Sampling) -> Mitigation:
    """The mitigation with a target from ordinary prompts, where it has one that nobody has set."""
    if not mitigation.has_open_target:
        return mitigation
    try:
        texts = [prompt.text for prompt in reference if prompt.problem is None]
        return calibrated(mitigation, target.need_denoiser(), texts, steps=steps_of(target.pipeline, sampling))
    except MitigationRefused:
        return mitigation  # its row will say why


def _index(
    train: Any, matching: Matching, options: Mapping[str, Any] | None, folder: Path, silent: bool
) -> CopyIndex:  # fmt: skip
    if isinstance(train, CopyIndex):
        return train
    images = load_images(train)
    descriptor = make_descriptor(matching.descriptor, images, **(options or {}))
    return build_index(images, descriptor, folder / "index" / descriptor.name, silent)


def _cost(fact: Mapping[str, Any]) -> dict[str, Any]:
    images = fact.get("images") or 0
    per = {
        f"{name}_per_image": fact[name] / images if images and fact[name] is not None else None
        for name in ("nfe", "seconds")
    }
    return per | {"peak_memory_mb": fact.get("peak_memory_mb"), "peak_memory_is": fact.get("peak_memory_is")}


def _say(text: str) -> None:
    import sys

    print(f"diffmem: {text}", file=sys.stderr, flush=True)
