"""The annex as one HTML file: what was tested and what not, by whom it could be used, with which figures and limits."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from diffmem.errors import DataError
from diffmem.experiments._pictures import open_index
from diffmem.experiments._run import Run, as_run
from diffmem.experiments.annex.clauses import table
from diffmem.report import prose
from diffmem.report.html import flat
from diffmem.report.page import write_page
from diffmem.report.prose import count, number, percent, percents
from diffmem.report.shape import Digest
from diffmem.runs.manifest import FILE as MANIFEST
from diffmem.runs.manifest import read_manifest

PAGE = "annex.html"
_PAIRS = 20
NOT_TESTED = "not tested"
STYLE = """
.clauses ul { margin: 0; padding-left: 1.1rem; }
.clauses td { vertical-align: top; }
@media (max-width: 700px) {
  .clauses thead { display: none; }
  .clauses tr, .clauses td { display: block; }
  .clauses td { border-bottom: 0; }
  .clauses tr { border-bottom: 1px solid var(--line); padding-bottom: .6rem; }
  .clauses td:last-child::before { content: "Limit: "; font-weight: 600; }
}
"""


def write_annex(
    run: Run | str | Path, safeguards: Run | str | Path | None = None, out: str | Path | None = None,
    hash_prompts: bool = False,
) -> Path:  # fmt: skip
    """Write the annex of an audit and give its path; it holds no pictures.

    Args:
        run: an audit.
        safeguards: a run of mitigate on the same model, for copies before and after.
        out: the file; by default `annex.html` in the run directory.
        hash_prompts: commands and pairs show hashes instead of prompts.

    Raises:
        DataError: `run` is no audit, `safeguards` no run of mitigate, or one of another model.
    """
    opened = as_run(run)
    digest = opened.summary
    if not isinstance(digest, Digest):
        raise DataError(f"'{opened.path}' is a run of {opened.verb}; an annex is written of an audit.")
    tried = None if safeguards is None else as_run(safeguards)
    found = figures(opened.path, digest, tried)
    tested, untested = _scope(digest, tried)
    file = opened.path / PAGE if out is None else Path(out)
    if file.is_dir():
        raise DataError(f"'{file}' is a folder; --out takes the name of a file.")
    return write_page(
        file, files(__package__) / "page.html", title=f"Annex: {digest.model.name or opened.path.name}",
        kicker=f"Annex to the audit of {digest.created[:10]}: evidence, not compliance", headline=digest.verdict.sentence,
        limits=[*digest.limits, *digest.notes], style=STYLE, d=digest,
        figures=found, clauses=table(found), tested=tested, untested=untested,
        threats=_threats(digest), settings=flat(digest.plan), pairs=_pairs(digest, hash_prompts),
        commands=[] if hash_prompts else [" ".join(command) for command in digest.commands],
        safeguards=[] if tried is None else _safeguard_rows(tried), hidden=hash_prompts,
    )  # fmt: skip


def figures(folder: Path, digest: Digest, safeguards: Run | None) -> dict[str, tuple[str, ...]]:
    """Sentences by name; each says its figure, or why there is none."""
    return {
        "verdict": _verdict(digest), "bound": (_bound(digest),), "pairs": (_confirmed(digest),),
        "control": _control(digest), "membership": _membership(digest), "duplicates": (_duplicates(folder, digest),),
        "base": (_base(folder, digest),), "matcher": _matcher(digest), "safeguards": _safeguards(digest, safeguards),
    }  # fmt: skip


def _verdict(digest: Digest) -> tuple[str, ...]:
    verdict = digest.verdict
    said = [f"{verdict.state}: {verdict.sentence}"]
    if verdict.excess is not None and verdict.excess_interval is not None and verdict.p_value is not None:
        low, high = verdict.excess_interval
        said.append(
            f"Share of prompts called above chance {percent(verdict.excess)} (95 % interval {percents(low, high)}); "
            f"probability of so many calls by chance {number(verdict.p_value, 2)}."
        )
    return tuple(said)


def _bound(digest: Digest) -> str:
    verdict = digest.verdict
    if verdict.bound is None:
        return f"Upper bound: {NOT_TESTED} (no prompt could be judged)."
    if verdict.state != "no-excess":
        return f"Upper bound: none is stated where the verdict is {verdict.state}."
    recall = "not corrected for what the matcher misses" if verdict.recall is None else (
        f"after the matcher's recall of {percent(verdict.recall)}"
    )  # fmt: skip
    return (
        f"Up to {percent(verdict.bound)} of such prompts may reproduce a training image all the same (95 %), {recall}."
    )


def _confirmed(digest: Digest) -> str:
    confirmed = digest.verdict.confirmed
    how = {"pixel identity": "equal pixel for pixel", "verification": "agreeing beyond every control"}
    if not confirmed:
        return "Confirmed pairs: none."
    return f"Confirmed pairs: {count(confirmed, 'training image')}, {how.get(digest.verdict.by or '', 'confirmed')}."


def _control(digest: Digest) -> tuple[str, ...]:
    if digest.control is None:
        return (f"Positive control: {NOT_TESTED} (audit --control).",)
    return (digest.control.sentence, *([digest.control.caveat] if digest.control.caveat else []))


def _membership(digest: Digest) -> tuple[str, ...]:
    measures = digest.measures
    if measures is None or not any(score.membership for score in measures.scores):
        return (f"Membership: {NOT_TESTED} (audit --measure loss, with held-out images).",)
    said = []
    for score in measures.scores:
        for one in score.separations if score.membership else ():
            ends = (
                "no interval"
                if one.interval is None
                else f"{number(one.interval[0], 3)} to {number(one.interval[1], 3)}"
            )
            p = "withheld" if one.p_value is None else number(one.p_value, 2)
            said.append(
                f"{score.score}, {one.positives} against {one.negatives}: AUROC {number(one.auroc, 3)} ({ends}), p {p}."
                + (f" {one.note}" if one.note else "")
            )
    shift = measures.shift
    said.append(f"Shift check: {NOT_TESTED}." if shift is None else f"Shift check: {shift.message}")
    return tuple(said)


def _duplicates(folder: Path, digest: Digest) -> str:
    index = None if digest.copies is None else open_index(folder)
    if index is None or digest.copies is None:
        return f"De-duplication: {NOT_TESTED} (no training images were searched, or their index is elsewhere)."
    groups = index.duplicates()
    repeated = int((groups.size > 1).sum())
    return (
        f"{count(len(index), 'training image')} with {digest.copies.descriptor}: {count(groups.count, 'distinct picture')}, "
        f"{repeated:,} of them there more than once (the most repeated {groups.largest:,} times)."
    )


def _base(folder: Path, digest: Digest) -> str:
    own = f"{digest.model.name or 'the model'} (fingerprint {digest.model.fingerprint or 'unknown'})"
    if digest.against is None:
        return f"Audited: {own}. Its base, if it has one: {NOT_TESTED} (audit --lora FILE --against-base, or diffmem compare)."
    beside = folder.parent / "base"
    known = read_manifest(beside).fingerprints.get("model") if (beside / MANIFEST).exists() else None
    return f"Audited: {own}, against its base {digest.against['name']} (fingerprint {known or 'unknown'})."


def _matcher(digest: Digest) -> tuple[str, ...]:
    copies = digest.copies
    if copies is None:
        return (f"The matcher's error: {NOT_TESTED} (no training images were searched).",)
    said = [f"Compared with {copies.descriptor}, which misses {copies.misses or 'what it was not made for'}."]
    threshold = copies.threshold
    if threshold.calibrated and threshold.realised_interval is not None:
        low, high = threshold.realised_interval
        said.append(
            f"False positives: {percent(threshold.realised_fpr)} of {threshold.n_reference:,} reference images (95 % interval "
            f"{percents(low, high)}); nominal {percent(copies.nominal_fpr)} per prompt."
        )
    else:
        said.append("False positives: unknown, the threshold is uncalibrated.")
    if copies.found_interval is not None:
        low, high = copies.found_interval
        said.append(
            f"Recall on labelled prompts: {copies.found:,} of {copies.planted:,} (95 % interval {percent(low)} to "
            f"{percent(high)})."
        )
    control = digest.control
    if control is not None and control.recall is not None and control.recall_interval is not None:
        low, high = control.recall_interval
        said.append(
            f"Recall on planted pictures that come out: {control.found_of_given_back:,} of {control.given_back:,} (95 % interval "
            f"{percents(low, high)})."
        )
    if len(said) == 2:
        said.append("Recall: not measured.")
    return tuple(said)


def _safeguards(digest: Digest, run: Run | None) -> tuple[str, ...]:
    if run is None:
        return (
            f"Safeguards before and after: {NOT_TESTED} (report --annex --safeguards RUN, a run of diffmem mitigate).",
        )
    if run.verb != "mitigate":
        raise DataError(f"'{run.path}' is a run of {run.verb}; --safeguards takes one of diffmem mitigate.")
    used = {
        read_manifest(place).fingerprints.get("model") for place in run.arms.values() if (place / MANIFEST).exists()
    }
    if used - {None} and digest.model.fingerprint not in used:
        raise DataError(
            f"'{run.path}' mitigates another model than the one that was audited; give a run of the same weights."
        )
    return (run.summary.headline,)


def _safeguard_rows(run: Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = list(getattr(run.summary, "rows", ()))
    return [row for row in rows if row["status"] == "ok" and row["copied_after"] is not None]


def _scope(digest: Digest, safeguards: Run | None) -> tuple[list[str], list[str]]:
    """What was tested, and what was not."""
    copies, images = digest.copies, digest.images
    tested = [f"{count(digest.prompts.total, 'prompt')}, {digest.prompts.labelled:,} of them labelled."]
    untested = ["Other prompts, seeds, samplers and settings than those below."]
    if images is not None:
        tested.append(
            f"{count(images.made, 'generated image')}; {images.errors:,} failed, {images.degenerate:,} black or constant "
            "(set aside)."
        )
    else:
        untested.append("Generation: no images were made.")
    if copies is not None:
        tested.append(
            f"A search of {copies.searched:,} training images for each of {copies.images_matched:,} images; "
            f"{copies.unreadable:,} training images could not be read."
        )
        untested.append("Training images that were not among those searched.")
        if digest.verdict.by != "gallery":
            untested.append("A gallery of pictures that no training has seen (audit --gallery).")
    else:
        untested.append("Copies: no training images were searched.")
    if digest.scores:
        tested.append(f"Scores of prompts: {', '.join(score.score for score in digest.scores)}.")
    if digest.measures is not None:
        tested.append(f"Measures of images: {', '.join(score.score for score in digest.measures.scores)}.")
    else:
        untested.append("Membership and other measures of single training images (audit --measure).")
    for there, what in (
        (digest.control is not None and digest.control.refused is None, "A positive control: pictures planted by a short LoRA."),
        (digest.against is not None, "The base of the model, on the same prompts and noises."),
        (safeguards is not None, "Safeguards, before and after."),
    ):  # fmt: skip
        (tested if there else untested).append(what)
    untested.append(
        "Prompts adapted to the model's answers, reading out of weights or gradients, fine-tunes by others."
    )
    return tested, untested


def _threats(digest: Digest) -> list[str]:
    images = 0 if digest.copies is None else digest.copies.threshold.images_per_prompt
    seeds = f"{count(images, 'seed')} per prompt" if images else "the seeds of this run"
    return [
        f"Assumed: somebody who types the prompts of this list and takes what the model's own sampler gives, {seeds}, without "
        "choosing among many images and without access to the weights.",
        "Not assumed: somebody who optimises prompts or embeddings, draws many more seeds, fine-tunes the model, or reads its "
        "weights.",
        "A training image counts as reproduced where a generated image is called a copy of it, as the checks describe; whether "
        "that picture is protected, personal or licensed is not looked at.",
    ]


def _pairs(digest: Digest, hashed: bool) -> list[tuple[str, str, str]]:
    """(prompt, training image, value) of the pairs that are called copies, most alike first."""
    found = []
    for gallery in digest.galleries:
        for pair in gallery.pairs if gallery.section in ("copies", "false") else ():
            text = f"sha256:{pair.prompt.sha256}" if hashed else prose.shorten(pair.prompt.text, 120)
            found.append((text, pair.train_id, number(pair.value)))
    return found[:_PAIRS]
