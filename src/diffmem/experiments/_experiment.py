"""One experiment: make images in several arms, match them, compare the arms. Every verb that does this is built on it."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from diffmem.errors import DiffmemError, IncompatibleRun, IncompleteRun, MitigationRefused, UsageError
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.experiments._arm import Arm, Made, Options, Reference, cost_of, make_arm
from diffmem.experiments._run import Run
from diffmem.experiments._table import ArmTable, read_arm
from diffmem.notebook import ShownInNotebooks
from diffmem.runs.directory import RunDirectory
from diffmem.runs.facts import read_fact
from diffmem.runs.summary import ArmPlace, Summary

S = TypeVar("S", bound=Summary)


@dataclass(frozen=True)
class ArmResult(ShownInNotebooks):
    """What became of an arm.

    Attributes:
        arm: as it was planned.
        status: "ok"; "refused" where this model does not allow it; "error" where it failed.
        reason: why not.
        made: its run directory and what the stages did; None where it was not made.
        table: its images; None where it was not made.
        cost: evaluations, seconds per image and memory, see `cost_of`.
    """

    arm: Arm
    status: str = "ok"
    reason: str | None = None
    made: Made | None = None
    table: ArmTable | None = None
    cost: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        return f"ArmResult({self.arm!r}: {self.status}{'' if self.reason is None else ', ' + self.reason})"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "status": self.status, "reason": self.reason, "folder": None if self.made is None else str(self.made.run.path),
            **{name.replace("_", " "): value for name, value in (self.cost or {}).items() if isinstance(value, int | float)},
        }  # fmt: skip


Results = Mapping[str, ArmResult]


class Experiment(ABC, Generic[S]):
    """A verb that makes images in arms and compares them.

    Attributes:
        reference: what images are compared with; None: they are not matched.
        judge: of text alignment, or None.
        describes: whether arms are compared by their images' descriptors.
        summarize_at_end: whether the summary may change after the last arm, or there may be no arm to make.
        refusals: errors that end one arm and not the experiment.
    """

    refusals: ClassVar[tuple[type[DiffmemError], ...]] = (MitigationRefused,)
    describes: ClassVar[bool] = True
    summarize_at_end: ClassVar[bool] = False
    reference: Reference | None = None
    judge: TextAlignment | None = None

    @abstractmethod
    def identity(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """The experiment's own section of the plan and the fingerprints: rows of another are refused with exit code 4.

        Called only where the arms have folders of their own.
        """

    @abstractmethod
    def arms(self, results: Results) -> Iterator[Arm]:
        """The arms in order; `results` holds those that are done, for arms that depend on earlier ones."""

    @abstractmethod
    def summarize(self, results: Results, arms: tuple[ArmPlace, ...]) -> S:
        """What the arms show; called after every arm, so that nothing computed is lost."""


def run_experiment(experiment: Experiment[S], out: str | Path | None, options: Options | None = None) -> Run:
    """Make every arm that is not made yet, one after the other, and write `summary.json`; the same call resumes.

    Args:
        experiment: what to make and how to read it.
        out: its folder; None makes a temporary one that lives as long as the run that is given back.
        options: how the work is done; with a shard the arms are made in part, and nothing is compared or summarized.

    Returns:
        The run, with the results of all arms.

    Raises:
        IncompatibleRun: the folder belongs to another experiment or model.
        IncompleteRun: stopped; everything made is kept.
        UsageError: a shard without a folder.
    """
    options = options or Options()
    folder = None if out is None else Path(out)
    if options.shard is not None:
        return _run_shard(experiment, folder, options, options.shard)
    results: dict[str, ArmResult] = {}
    directory: RunDirectory | None = None
    summary: S | None = None
    for number, arm in enumerate(experiment.arms(results), start=1):
        if arm.place and number == 1:
            plan, fingerprints = experiment.identity()
            directory = RunDirectory(folder, plan, fingerprints)  # a temporary one lives as long as the run
            folder = directory.path
        if not options.silent and (arm.place or number > 1):
            print(f"diffmem: arm {number}: {arm.name}", file=sys.stderr, flush=True)
        results[arm.name] = _result(experiment, arm, folder, options)
        made = results[arm.name].made
        if folder is None and made is not None:
            folder = made.run.path
        if folder is not None:
            places = tuple(
                ArmPlace(name=name, place=one.arm.place or ".") for name, one in results.items() if one.made is not None
            )
            summary = _with_notes(experiment.summarize(results, places), results)
            summary.write(folder)
    if experiment.summarize_at_end and folder is not None:
        if directory is None:
            directory = RunDirectory(folder, *experiment.identity())
        summary = _with_notes(experiment.summarize(results, ()), results)
        summary.write(folder)
    if summary is None or folder is None:
        raise ValueError("an experiment needs at least one arm")
    return Run(folder, summary.verb, summary, results, directory)


class ShardSummary(Summary):
    """What a process says that has made its shard; it is not written, for the command without a shard writes the whole."""

    verb: ClassVar[str] = "shard"


def _run_shard(experiment: Experiment[S], folder: Path | None, options: Options, shard: tuple[int, int]) -> Run:
    """Make one shard of every arm that depends on no other arm's results."""
    if folder is None:
        raise UsageError("The processes that do the shards of a command share a folder: give it (--out).")
    results: dict[str, ArmResult] = {}
    directory: RunDirectory | None = None
    for number, arm in enumerate(experiment.arms({}), start=1):
        if arm.place and number == 1:
            directory = RunDirectory(folder, *experiment.identity())
        try:
            results[arm.name] = ArmResult(arm, made=make_arm(arm, folder, experiment.reference, options))
        except experiment.refusals as problem:
            results[arm.name] = ArmResult(arm, "refused", str(problem))
    made = [one.made.generation.made for one in results.values() if one.made is not None and one.made.generation]
    headline = (
        f"Shard {shard[0]}/{shard[1]} is done: {sum(made)} images made now in {len(results)} arm{'s' * (len(results) != 1)}. "
        "Once all shards are done, the same command without --shard finishes."
    )
    return Run(folder, ShardSummary.verb, ShardSummary(headline=headline), results, directory)


def _with_notes(summary: S, results: Results) -> S:
    """A summary with what was found while the models of its arms were opened."""
    models = [read_fact(one.made.run.path, "model") or {} for one in results.values() if one.made is not None]
    found = [text for model in models for text in model.get("notes") or ()]
    return summary.model_copy(update={"notes": tuple(dict.fromkeys((*summary.notes, *found)))})


def _result(experiment: Experiment[S], arm: Arm, folder: Path | None, options: Options) -> ArmResult:
    try:
        made = make_arm(arm, folder, experiment.reference, options)
    except (IncompleteRun, IncompatibleRun):
        raise
    except experiment.refusals as problem:
        status = "refused" if isinstance(problem, MitigationRefused) else "error"
        if not options.silent:
            print(f"diffmem: {arm.name}: {status}: {problem}", file=sys.stderr, flush=True)
        return ArmResult(arm, status, str(problem))
    index = experiment.reference.index if experiment.reference is not None and experiment.describes else None
    table = read_arm(made.run.path, list(arm.prompts), index, experiment.judge)
    return ArmResult(arm, made=made, table=table, cost=cost_of(made.run.path))
