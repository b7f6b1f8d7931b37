"""The digest of a run: built from its rows and facts alone, in memory that the number of prompts bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffmem.atomic import write_atomic
from diffmem.copies.statistics import RISING
from diffmem.evaluation.chance import LEVEL
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.report.case import Circumstances
from diffmem.report.columns import (
    ERROR,
    OK,
    SKIPPED,
    PromptColumns,
    ScoreColumn,
    joint_spread,
    read_problems,
    read_prompts,
    read_score_rows,
    read_texts,
    score_columns,
)  # fmt: skip
from diffmem.report.control import control_check, read_control
from diffmem.report.decide import decide
from diffmem.report.evidence import collect, read_gallery
from diffmem.report.intervals import Separation, read_labelled, separation
from diffmem.report.matches import Matches, PerPrompt, judge, read_match_rows
from diffmem.report.measures.shape import MeasuresDigest
from diffmem.report.measures.summary import read_measures
from diffmem.report.methods import used_methods
from diffmem.report.next_steps import next_steps
from diffmem.report.pairs import Again, choose, galleries
from diffmem.report.prose import Texts, shorten
from diffmem.report.rates import RATES, finite, histogram, roc
from diffmem.report.review.summary import read_reviewed, summarize
from diffmem.report.shape import Digest, ModelFacts, PromptCounts
from diffmem.report.shapes.copies import CopiesDigest, ImageCounts, Threshold
from diffmem.report.shapes.scores import ScoreDigest, TopPrompt
from diffmem.report.table import prompt_table, table_places
from diffmem.report.verdict import checks, limits
from diffmem.report.waived import without_waived
from diffmem.report.waivers import Waivers
from diffmem.runs.asked import asked_rows
from diffmem.runs.facts import read_fact
from diffmem.runs.looks import level_of
from diffmem.runs.manifest import read_manifest
from diffmem.runs.store import RunStore

FILE = "digest.json"
"""Name of the summary in 0.1.0, still written in this release."""
TOP = 20
LONGEST_REASON = 500


def build_digest(run_path: str | Path, methods: bool = True, waivers: Waivers | None = None) -> Digest:
    """Read a run directory into one object.

    Args:
        run_path: the folder given to --out.
        methods: whether the methods are described too; this imports them, and with them torch.
        waivers: of pairs that do not count.

    Raises:
        DataError: there is no run, or a file of it is damaged.
        IncompatibleRun: a newer diffmem wrote it.
    """
    folder = Path(run_path)
    manifest, store = read_manifest(folder), RunStore(folder)
    match_rows = read_match_rows(store)
    score_rows, reasons = read_score_rows(store)
    prompts = read_prompts(store, score_rows, match_rows)
    scores = score_columns(score_rows, reasons, prompts)
    fact, matches = judge(folder, match_rows, prompts)
    images = _images(store)
    waived = 0
    reviewed = None if fact is None or matches is None else read_reviewed(folder, fact, matches)
    review, refuted = None, set()
    if fact is not None and matches is not None:
        if reviewed is not None:
            review = summarize(folder, fact, matches, reviewed)
            called = matches.place[matches.copy]
            matches = matches.reviewed(reviewed.flags(matches, "copy"), reviewed.flags(matches, "no copy"))
            refuted = {prompts.id_of(int(place)) for place in {*called} - {*matches.place[matches.copy]}}
        if waivers is not None:
            matches, waived = without_waived(folder, fact, matches, waivers)
    # Of a waived pair nobody knows on which side of the control it lay.
    gallery = read_gallery(folder, partial(read_texts, store), refuted) if waivers is None else None
    matches = None if images is None else matches  # images that are not in this run cannot be shown or counted
    per_prompt = None if matches is None else matches.per_prompt(len(prompts.ids))
    copies, seen = None, None
    if fact is not None and matches is not None and per_prompt is not None:
        seen = collect(fact, matches, per_prompt, prompts, partial(read_texts, store))
        copies = _copies(fact, matches, per_prompt, prompts)

    chosen = {} if matches is None else choose(matches, prompts)
    table = table_places(scores, per_prompt, len(prompts.ids))
    tops = {label: _top_places(column) for label, column in scores.items()}
    claims = [prompts.id_of(int(matches.place[i])) for _, _, rows in chosen.values() for i in rows] if matches else []
    claims += [prompts.id_of(i) for places in [*tops.values(), table] for i in places]
    texts = Texts(read_texts(store, set(claims)), claims)
    shown = {prompts.id_of(i) for places in tops.values() for i in places}
    spread = joint_spread(store, [label for label, column in scores.items() if column.joint], shown)

    problems = read_problems(store, [prompts.id_of(i) for i in table]) if reasons else {}

    check, model = read_fact(folder, "check"), read_fact(folder, "model") or {}
    notes = tuple(model.get("notes") or ())
    model = {"fingerprint": manifest.fingerprints.get("model")} | {
        key: value for key, value in model.items() if key in ModelFacts.model_fields
    }
    counted = PromptCounts(
        total=prompts.listed, labelled=int((prompts.label >= 0).sum()), truncated=int(prompts.truncated.sum())
    )
    labelled = read_labelled(store, scores, prompts)
    described = tuple(
        _score(label, scores[label], tops[label], spread, prompts, texts, partial(
            separation, label, scores[label], score_rows, prompts, labelled, RATES
        ))
        for label in scores
    )  # fmt: skip
    measures = read_measures(folder)
    unfinished = tuple(
        name for name, stage in manifest.stages.items() if name in ("generate", "match") and stage.state != "done"
    )
    fit = read_fact(folder, "fit")
    failed = next((made for made in (check, fit) if made is not None and made["passed"] is False), check)
    control = read_control(folder)
    verdict = decide(copies, seen, Circumstances(
        failed, unfinished, images, gallery, waived, control, review, level_of(folder, LEVEL)
    ))  # fmt: skip
    problem = () if reviewed is None or reviewed.problem is None else (reviewed.problem,)
    verdict = verdict.model_copy(update={"steps": next_steps(verdict, folder, manifest, copies)})
    headline = verdict.sentence if measures is None or prompts.listed else measures.headline
    return Digest(
        run=str(folder), created=manifest.created, diffmem=manifest.diffmem_version, headline=headline, verdict=verdict,
        control=control,
        model=ModelFacts(**model), check=check, plan=manifest.plan, stages=manifest.stages, commands=manifest.commands,
        fingerprints=manifest.fingerprints, provenance=manifest.provenance, prompts=counted, scores=described,
        images=images, copies=copies,
        galleries=() if matches is None else galleries(
            chosen, matches, prompts, texts, store, Again(manifest, model), reviewed
        ),
        measures=measures,
        table=prompt_table(table, scores, per_prompt, prompts, texts, problems),
        checks=checks(
            check, fit, read_fact(folder, "refused") or {}, manifest, counted, described, images, copies
        ) + (() if control is None else (control_check(control),)),
        methods=used_methods(list(scores), copies, measures) if methods else (),
        limits=(*store.damage(), *limits(copies, images, measures, bool(prompts.listed))),
        notes=(*notes, *problem), review=review, against=read_fact(folder, "against"),
        nothing=_nothing(fact, copies, images, described, measures),
    )  # fmt: skip


def write_digest(run_path: Path, digest: Digest) -> Path:
    """Write `summary.json` into a run directory, and for this release the same as `digest.json`, its name in 0.1.0."""
    path = digest.write(run_path)
    write_atomic(run_path / FILE, path.read_bytes())
    return path


def _nothing(
    fact: dict[str, Any] | None,
    copies: CopiesDigest | None,
    images: ImageCounts | None,
    scores: Sequence[ScoreDigest],
    measures: MeasuresDigest | None,
) -> str | None:
    """Why no value says anything of the model; None where one does."""
    searched = fact is not None and fact["threshold"] is not None
    if searched and images is not None and (copies is None or not copies.prompts_matched):
        whole = images.made + images.errors
        return (
            f"none of the {whole:,} generated images could be compared with a training image; {images.errors:,} failed, "
            f"{images.degenerate:,} are black or constant."
        )
    if images is not None and images.made:
        return None
    if not scores and measures is None:
        return None
    if any(score.prompts for score in scores) or (measures and any(score.images for score in measures.scores)):
        return None
    reasons = [score.reason for score in scores] + [score.reason for score in (measures.scores if measures else ())]
    return f"no score has a value: {next((reason for reason in reasons if reason), 'every row is an error')}"


def _score(
    label: str,
    column: ScoreColumn,
    top: list[int],
    spread: dict[tuple[str, str], list[float]],
    prompts: PromptColumns,
    texts: Texts,
    intervals: Callable[[], Separation],
) -> ScoreDigest:
    known = column.value[column.status == OK]
    with np.errstate(invalid="ignore"):  # between two infinities there is no quantile
        quantiles = [finite(q) for q in np.quantile(known, [0.05, 0.5, 0.95])] if len(known) else [None] * 3
    best = []
    for place in top:
        key = prompts.id_of(place)
        draws = spread.get((label, key), [])
        sd = float(np.std(draws, ddof=1)) if len(draws) > 1 else float(column.sd[place])
        text = texts.shown(key).text if texts.whole(key) is not None else None
        best.append(TopPrompt(prompt_id=key, prompt=text, value=float(column.value[place]), sd=finite(sd)))
    return ScoreDigest(
        score=label,
        prompts=len(known),
        errors=int((column.status == ERROR).sum()),
        skipped=int((column.status == SKIPPED).sum()),
        reason=shorten(column.reason, LONGEST_REASON) if column.reason else None,
        p05=quantiles[0],
        median=quantiles[1],
        p95=quantiles[2],
        calibrated=False,
        top=tuple(best),
        histogram=histogram(column.value, prompts.label),
        roc=roc(column.value, prompts.label, intervals),
    )


def _top_places(column: ScoreColumn) -> list[int]:
    """Positions of the prompts with the highest finite values, falling."""
    known = np.flatnonzero(np.isfinite(column.value))
    return [int(i) for i in known[np.argsort(-column.value[known], kind="stable")[:TOP]]]


def _images(store: RunStore) -> ImageCounts | None:
    made = errors = degenerate = 0
    for table in asked_rows(store.path, "images", ["degenerate", "status"]):
        ok = np.asarray(table["status"]) == "ok"
        made, errors = made + int(ok.sum()), errors + int((~ok).sum())
        degenerate += int((ok & np.asarray(table["degenerate"].is_valid())).sum())
    if not made and not errors:
        return None
    kept = store.read("images", ["key"]).num_rows - made - errors
    return ImageCounts(made=made, errors=errors, degenerate=degenerate, uncounted=kept)


def _copies(fact: dict[str, Any], matches: Matches, per_prompt: PerPrompt, prompts: PromptColumns) -> CopiesDigest:
    judged, flagged = per_prompt.matched > 0, per_prompt.copied > 0

    def count(label: int) -> tuple[int, int]:
        mine = judged & (prompts.label == label)
        return int(mine.sum()), int((mine & flagged).sum())

    (planted, found), (negatives, false), (unlabelled, loose) = count(1), count(0), count(-1)
    total, called = int(judged.sum()), int(flagged.sum())
    threshold, descriptor = fact["threshold"], fact["descriptor"]
    return CopiesDigest(
        descriptor=descriptor["name"], misses=descriptor.get("misses"), searched=descriptor["images"],
        unreadable=len(fact["problems"]), threshold=_as_read(threshold), calibrated=threshold["calibrated"],
        nominal_fpr=threshold["nominal_fpr"], images_matched=matches.rows.num_rows,
        images_copied=int(matches.copy.sum()), prompts_matched=total, prompts_copied=called,
        prompts_copied_interval=clopper_pearson(called, total) if total else None,
        training_images_copied=len(np.unique(matches.group[matches.copy])),
        planted=planted, found=found, found_interval=clopper_pearson(found, planted) if planted else None,
        negatives=negatives, false=false, realised_fpr=false / negatives if negatives else None,
        realised_fpr_interval=clopper_pearson(false, negatives) if negatives else None,
        unlabelled=unlabelled, unlabelled_copied=loose,
    )  # fmt: skip


def _as_read(threshold: dict[str, Any]) -> Threshold:
    """The stored threshold, whose distances are negated, as people read it."""
    rising = threshold["statistic"] in RISING
    return Threshold(**threshold | {"value": threshold["value"] if rising else -threshold["value"]})
