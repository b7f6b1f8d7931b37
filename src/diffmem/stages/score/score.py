"""The scoring stage: prompts x draws x scores -> rows, resumable, each network evaluation run once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch

from diffmem.data.prompts import Prompt, PromptList, as_prompts
from diffmem.keys import row_key
from diffmem.models.elsewhere import ModelElsewhere
from diffmem.models.meter import Nfe
from diffmem.models.target import Target
from diffmem.notebook import ShownInNotebooks, is_silent
from diffmem.runs.directory import RunDirectory, StageClock, in_shard, record_model
from diffmem.runs.progress import Progress
from diffmem.runs.runners import as_runner, require_folder
from diffmem.runs.store import RowWriter
from diffmem.runs.units import Runner
from diffmem.scores import DEFAULT_SCORES
from diffmem.scores.base import Score
from diffmem.scores.spec import parse_scores
from diffmem.stages.refused import record_refused
from diffmem.stages.score.block import BLOCK, Block, BlockScorer, ScoringWork
from diffmem.stages.score.rows import Scoring
from diffmem.stages.score.sets import score_sets


@dataclass
class ScoreResult(ShownInNotebooks):
    """What the scoring stage did.

    Attributes:
        run: the run directory (temporary if no `out` was given).
        prompts: as loaded.
        labels: labels of the scores that have rows.
        refused: score label -> why it did not run.
        nfe: network evaluations of this command (not of earlier ones that were resumed).
        nfe_per_prompt_seed: score label -> its cost when run alone, shared passes included.
        micro_batch: the size that fitted.
        network_share: share of the stage's time that was spent on rows' evaluations.
    """

    run: RunDirectory
    prompts: PromptList
    labels: list[str]
    refused: dict[str, str]
    nfe: Nfe
    nfe_per_prompt_seed: dict[str, float]
    micro_batch: int
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        refused = f", refused: {', '.join(self.refused)}" if self.refused else ""
        return (
            f"ScoreResult({', '.join(self.labels)} of {len(self.prompts)} prompts in {str(self.run.path)!r}{refused})"
        )

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "scores": self.labels, "refused": [f"{label}: {reason}" for label, reason in self.refused.items()],
            "prompts": len(self.prompts), "network evaluations": self.nfe.total, "run": str(self.run.path), "notes": self.notes,
        }  # fmt: skip

    def values(self, label: str) -> dict[str, np.ndarray]:
        """Prompt id -> values per draw of one score; prompts with errors are absent."""
        return score_values(self.run, label)


def score_values(run: RunDirectory, label: str) -> dict[str, np.ndarray]:
    """Prompt id -> values per draw (one value for scores without draws), in the order of the draws."""
    table = run.store.read("scores", ["prompt_id", "score", "draw", "value", "components", "status"])
    table = table.filter(pc.and_(pc.equal(table["score"], label), pc.equal(table["status"], "ok")))
    of_draws = pc.is_valid(table["draw"])
    by_draw, whole = table.filter(of_draws), table.filter(pc.invert(of_draws))
    ids, values = np.asarray(by_draw["prompt_id"]), by_draw["value"].to_numpy()
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]]) if len(ids) else np.zeros(0, np.int64)  # rows are sorted
    found = dict(zip(ids[starts].tolist(), np.split(values, starts[1:]), strict=len(ids) > 0))
    for row in whole.select(["prompt_id", "value", "components"]).to_pylist():
        draws = json.loads(row["components"] or "{}").get("per_draw", [row["value"]])
        found[row["prompt_id"]] = np.append(found.get(row["prompt_id"], np.zeros(0)), draws)
    return found


def score(
    target: Target,
    prompts: PromptList | str | Path | Sequence[str],
    scores: Sequence[str | Score] = DEFAULT_SCORES,
    *,
    draws: int = 4,
    seed: int = 0,
    noise: Literal["bank", "per-prompt"] = "bank",
    noises: torch.Tensor | None = None,
    micro_batch: int = 64,
    out: str | Path | None = None,
    shard: tuple[int, int] | None = None,
    runner: Runner | str | None = None,
    retry_errors: bool = False,
    silent: bool | None = None,
) -> ScoreResult:
    """Score prompts for memorization.

    Args:
        target: the model.
        prompts: a list of prompts, a file, or a PromptList.
        scores: names (`score-difference:over=steps`) or Score objects.
        draws: noises per prompt.
        seed: root seed.
        noise: "bank" (the same noises for all prompts; unconditional passes are shared) or "per-prompt".
        noises: noises to use instead, [draws, *sample_shape].
        micro_batch: rows per network call at first.
        out: run directory; the same command resumes it. None keeps rows in a temporary one.
        shard: (i, n): only this part of the prompts; n processes together do all.
        runner: who does the work: None for this process, "ray" for a Ray cluster of its own on this machine, "ray:ADDRESS" for
            one that is there, or a `RayRunner`. Workers open the model themselves and need to see `out`.
        retry_errors: compute rows again that ended in an error.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Returns:
        A ScoreResult; rows are in its run directory. Cost: see ScoreResult.nfe.

    Examples:
        >>> import diffmem as dm
        >>> network = dm.Target.from_callable(
        ...     lambda x, t, cond: x * 0, (1, 8, 8), prediction="epsilon", schedule="linear", device="cpu"
        ... )
        >>> scored = dm.score(network, ["A RED fox", "a hen"], "text-uppercase")
        >>> [round(float(value.mean()), 2) for value in scored.values("text-uppercase").values()]
        [0.57, 0.0]
    """
    silent = is_silent(silent)
    prompt_list, runner = as_prompts(prompts), require_folder(runner, out)
    settings = Scoring(
        scores=tuple(s if isinstance(s, str) else s.label for s in scores),
        draws=draws if noises is None else len(noises), seed=seed, noise=noise, micro_batch=micro_batch,
    )  # fmt: skip
    section = settings.model_dump(mode="json")
    if noises is not None:
        section["noises"] = row_key(noises=noises.double().flatten().tolist()).hex()
    fingerprints = {"model": target.fingerprint, "prompts": prompt_list.fingerprint}
    run = RunDirectory(out, {"score": section}, fingerprints)
    return Scorer(target, prompt_list, parse_scores(scores), settings, run, noises, section.get("noises")).score(
        shard, retry_errors, silent, runner
    )


class Scorer:
    """One scoring stage at work."""

    def __init__(
        self,
        target: Target,
        prompts: PromptList,
        scores: Sequence[Score],
        settings: Scoring,
        run: RunDirectory,
        noises: torch.Tensor | None = None,
        noises_name: str | None = None,
    ) -> None:
        self.target, self.prompts, self.settings, self.run = target, prompts, settings, run
        self.scores, self.noises, self.noises_name = list(scores), noises, noises_name
        self.here = BlockScorer(target, self.scores, settings, len(prompts), run, noises, noises_name)
        self.notes = self.here.notes

    def score(
        self,
        shard: tuple[int, int] | None,
        retry_errors: bool,
        silent: bool,
        runner: Runner | str | None = None,
    ) -> ScoreResult:
        """Do what is not done yet."""
        here, runner = self.here, as_runner(runner)
        mine = [p for p in self.prompts if in_shard(p, shard)]
        record_model(self.target, self.run.path)
        self.run.record_prompts(mine)
        done = self.run.store.finished("scores", retry_errors)
        total = len(mine) * self.settings.draws
        todo = {p.id: here.missing(p, done) for p in mine} if here.executor is not None else {}
        missing = sum(len(rows) for rows in todo.values())
        blocks = (here.block(part, todo, done) for part in _blocks([p for p in mine if todo.get(p.id)], BLOCK))
        spent, size = here.nfe, here.executor.batches.size if here.executor else 0
        with (
            self.run.stage("score", total, total - missing, () if shard else ("prompts", "scores")) as clock,
            self.run.store.writer("scores") as writer,
            Progress(total, "scoring", unit="prompt draws", done=total - missing, silent=silent or not missing) as bar,
        ):
            if runner is None:
                self._score_here(blocks, writer, clock, bar)
                size = here.executor.batches.size if here.executor else 0
            else:
                spent = self._spread(runner, blocks, retry_errors, clock, bar)
            writer.write_many(self._text_rows(mine, done))
            clock.done = total
        if shard is None:
            with self.run.store.writer("scores") as writer:
                writer.write_many(score_sets(here.maker, self.run.store, self.prompts, here.rows, here.refused))
            self.run.complete("scores")
        elif any(s.reads == "set" for s in self.scores):
            self.notes.append("scores over the whole set of prompts wait for the same command without a shard")
        record_refused(self.run.path, here.refused)
        return ScoreResult(
            self.run,
            self.prompts,
            [s.label for s in self.scores],
            here.refused,
            spent,
            here.maker.costs,
            size,
            self.notes,
        )

    def _score_here(self, blocks: Iterator[Block], writer: RowWriter, clock: StageClock, bar: Progress) -> None:
        def advance(count: int) -> None:
            clock.done += count
            bar.advance(count)

        for block in blocks:
            for row in self.here.score(block, advance):
                writer.write(row)

    def _spread(
        self, runner: Runner, blocks: Iterator[Block], retry_errors: bool, clock: StageClock, bar: Progress
    ) -> Nfe:
        """Have blocks done by a runner's workers; the evaluations they spent."""
        work = ScoringWork(
            ModelElsewhere.of(self.target), self.scores, self.settings, len(self.prompts), self.run.path, self.noises,
            self.noises_name, self.here, retry_errors,
        )  # fmt: skip
        spent = Nfe()
        for report in runner.run(work, blocks):
            spent.add(report.nfe.forward, report.nfe.tangent, report.nfe.backward)
            self.notes += report.notes
            clock.done += report.done
            bar.advance(report.done)
        return spent

    def _text_rows(self, prompts: Sequence[Prompt], done: set[bytes]) -> Iterator[dict[str, Any]]:
        maker = self.here.maker
        for score in self.scores:
            if score.reads != "text":
                continue
            fresh = [p for p in prompts if maker.key(p, score, None) not in done]
            for prompt, value in zip(fresh, score.values_of_texts([p.text for p in fresh]), strict=True):
                sound = prompt.problem is None
                state = {"value": float(value)} if sound else {"status": "error", "error": prompt.problem}
                yield maker.row(prompt, score, None, **state)


def _blocks(items: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
