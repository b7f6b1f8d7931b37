"""diffmem match: find the nearest training images of generated images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from diffmem.cli.options import DescriptorOptions, HeldoutOption, StatisticOption, between_0_and_1
from diffmem.cli.runner import SPREAD, RunnerOptions
from diffmem.cli.verbs import RARE
from diffmem.errors import NothingJudged, UsageError

if TYPE_CHECKING:
    from diffmem.copies.index import CopyIndex
    from diffmem.stages.match.folders import FolderMatches


COPIES = DescriptorOptions()


def match(
    images: str,
    *,
    train: Annotated[Path | None, Parameter(help="training images, or an index made by diffmem index")] = None,
    heldout: HeldoutOption = None,
    statistic: StatisticOption = None,
    copies: DescriptorOptions = COPIES,
    allow_pickle: Annotated[
        bool, Parameter(group=RARE, negative="", help="open descriptor weights that can run code")
    ] = False,
    fpr: Annotated[
        float,
        Parameter(
            validator=between_0_and_1, help="false-positive rate: share of innocent images that may be called copies"
        ),
    ] = 0.01,
    top: Annotated[int, Parameter(help="how many pairs are printed")] = 20,
    search: Annotated[
        Literal["exact", "faiss"] | None,
        Parameter(
            group=RARE,
            help="search method; default: exact; above 10 million training images faiss, where it is installed (diffmem[faiss])",
        ),
    ] = None,
    metrics: Annotated[
        bool, Parameter(negative="", help="also print copying metrics of the whole set, with intervals")
    ] = False,
    text_alignment: Annotated[
        str | None,
        Parameter(
            help="with --metrics: judge whether images show what their captions say: clip:FOLDER, digits or photos"
        ),
    ] = None,
    above: Annotated[
        float | None,
        Parameter(help="with --metrics: count images above this similarity; default: the descriptor's customary one"),
    ] = None,
    parts: Annotated[
        int,
        Parameter(
            help="with --metrics: also compare by split-product similarity, with descriptors cut into this many parts"
        ),
    ] = 1,
    across: Annotated[
        bool,
        Parameter(
            group=RARE,
            negative="",
            help="with --parts: compare every part with every part (for descriptors made of patches)",
        ),
    ] = False,
    seed: Annotated[int, Parameter(help="with --metrics: seed of the resampling")] = 0,
    out: Annotated[
        Path | None, Parameter(help="with --metrics: folder for a page (histograms, pairs, figures) and summary.json")
    ] = None,
    redact: Annotated[
        Literal["none", "blur", "hash"], Parameter(help="with --out: pictures on the page: shown, blurred, or left out")
    ] = "none",
    stream: Annotated[
        Path | None,
        Parameter(
            group=RARE,
            help="read the training images shard by shard (archives, tables, folders); keeps vectors and results in this folder",
        ),
    ] = None,
    shard: Annotated[
        str | None, Parameter(group=RARE, help="I/N: with --stream, do only part I of N of the shards, counted from 0")
    ] = None,
    backend: Annotated[
        str | None,
        Parameter(
            group=RARE,
            help="with --stream: what computes the similarities: numpy, torch or torch:DEVICE; default: numpy",
        ),
    ] = None,
    spread: RunnerOptions = SPREAD,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
    quiet: Annotated[bool, Parameter(negative="", help="show no progress")] = False,
) -> int:
    """Find the nearest training image of every image of a folder, a parquet file or a run.

    Args:
        images: generated images: a folder, a file, or the folder of a run.
    """
    from dataclasses import asdict

    from diffmem.cli.output import emit_json, emit_table, note, percent, say
    from diffmem.copies.approximate import choose_search
    from diffmem.copies.copying_metrics import copying_metrics
    from diffmem.data.images import load_images
    from diffmem.data.shards import as_address
    from diffmem.evaluation.text_alignment import parse_alignment
    from diffmem.experiments._verdict import of_matches
    from diffmem.report.copying import copying_rows
    from diffmem.runs.directory import parse_shard
    from diffmem.runs.images import images_of
    from diffmem.stages.match.folders import match_images
    from diffmem.stages.match.stage import Matching
    from diffmem.stages.match.streamed import stream_index

    if train is None:
        raise UsageError("--train is missing: give the training images or an index of them.")
    if not metrics and (parts > 1 or any(option is not None for option in (text_alignment, above, out))):
        raise UsageError("--text-alignment, --above, --parts and --out belong to --metrics; add it.")
    choose_search(search, 0)  # before anything is described
    judge = None if text_alignment is None else parse_alignment(text_alignment)
    if stream is None:
        if any(option is not None for option in (shard, backend, spread.runner)):
            raise UsageError("--shard, --backend and --runner belong to --stream: give the folder for its vectors.")
        index = open_or_build_index(train, copies, allow_pickle, quiet or json)
    else:
        if search == "faiss":
            raise UsageError("--stream searches exactly; leave --search faiss out.")
        near = stream_index(
            images, as_address(train), stream,
            heldout=heldout, descriptor=copies.descriptor, descriptor_options=copies.options(allow_pickle), backend=backend,
            shard=parse_shard(shard), runner=spread.open(), silent=quiet or json,
        )  # fmt: skip
        if near is None:
            say("This part of the shards is done. Once all are, the same command without --shard finishes.")
            return 0
        index = near
    index.use_search(search)
    settings = Matching(descriptor=copies.descriptor, statistic=statistic, fpr=fpr)
    held = None if heldout is None else load_images(heldout)
    listed = images_of(images)
    found = match_images(listed, index, settings, held, quiet or json)
    measured = (
        copying_metrics(listed, index, alignment=judge, threshold=above, parts=parts, across=across, seed=seed)
        if metrics
        else None
    )
    page = None
    if out is not None and measured is not None:
        from diffmem.experiments.match.page import keep

        page = keep(out, listed, index, found, measured).report(redact)
    verdict = of_matches(found.rows, asdict(found.threshold), index.metric.kind == "tiled-rms")
    if index.chosen_from is not None:
        note(
            f"{index.chosen_from:,} training images were searched; the {len(index)} near these images are in {index.path}"
        )
    called = sum(row["copy"] is True for row in found.rows)
    undecided = sum(row["copy"] is None for row in found.rows)
    if json:
        extra = {"verdict": verdict.model_dump(mode="json")} | (
            {} if measured is None else {"metrics": measured.as_dict()}
        )
        emit_json(found.as_dict() | extra)
        return _conclude(called, undecided, found)
    say(f"Verdict  {verdict.state.upper()}")
    for text in (verdict.sentence, verdict.plain, verdict.needs or ""):
        say(f"         {text}" if text else "")
    shown = [{key: value for key, value in row.items() if key != "alignment"} for row in found.rows[:top]]
    emit_table(shown, title=f"{called} of {len(found.rows)} images are called copies; most alike first")
    if undecided:
        note(f"{undecided} images cannot be judged: the statistic '{found.threshold.statistic}' is undefined for them")
    for item in found.set_aside[:10]:
        note(f"set aside {item['image']}: {item['reason']}")
    if measured is not None:
        title = f"Copying metrics of {measured.generated} images against {measured.training}; 95 % intervals"
        emit_table(copying_rows(measured), title=title)
        for text in measured.notes:
            note(text)
    if found.recall is not None and found.recall.value is not None:
        recall = found.recall
        note(
            f"searched through FAISS: it finds the nearest training image of {percent(recall.value)} of {recall.n} images "
            f"that were searched exactly too (recall@1, 95 % interval {percent(recall.low)} to {percent(recall.high)}); "
            "of the others a farther one is shown"
        )
    note(_threshold_text(found.threshold.calibrated, found.threshold.note, fpr))
    if page is not None:
        note(f"the page is {page}")
    return _conclude(called, undecided, found)


def _conclude(called: int, undecided: int, found: FolderMatches) -> int:
    if called == 0 and undecided == len(found.rows):
        reason = next(
            (row["reason"] for row in found.set_aside), f"the statistic '{found.threshold.statistic}' is undefined"
        )
        raise NothingJudged(f"None of the images could be judged: {reason}.")
    return 0


def open_or_build_index(train: Path, copies: DescriptorOptions, allow_pickle: bool, silent: bool) -> CopyIndex:
    """The index at this place, or one of the images there, in memory."""
    from diffmem.copies import index_files
    from diffmem.copies.descriptors import make_descriptor
    from diffmem.data.images import load_images
    from diffmem.stages.match.stage import build_index, open_index

    if index_files.exists(train):
        return open_index(train, copies.options(allow_pickle))
    listed = load_images(train)
    descriptor = make_descriptor(copies.descriptor, listed, **copies.options(allow_pickle))
    return build_index(listed, descriptor, None, silent)


def _threshold_text(calibrated: bool, text: str, rate: float) -> str:
    head = f"The threshold is calibrated at {rate:.2%} false positives per image." if calibrated else "UNCALIBRATED."
    return f"{head} {text}".strip()
