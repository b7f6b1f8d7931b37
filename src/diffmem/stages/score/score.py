"""The scoring stage: prompts x draws x scores -> rows, resumable, each network evaluation run once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from diffmem.data.prompts import Prompt, PromptList, as_prompts
from diffmem.errors import ScoreRefused
from diffmem.keys import row_key
from diffmem.models.conditioning import Conditioning
from diffmem.models.meter import Nfe
from diffmem.models.target import Target
from diffmem.notebook import ShownInNotebooks, is_silent
from diffmem.runs.directory import RunDirectory, StageClock, in_shard, record_model
from diffmem.runs.microbatch import MicroBatches, describe
from diffmem.runs.progress import Progress
from diffmem.scores import DEFAULT_SCORES
from diffmem.scores.base import DenoiserScore, Score
from diffmem.scores.spec import parse_scores
from diffmem.stages.refused import record_refused
from diffmem.stages.score.executor import Executor, Noises, ScoredRow
from diffmem.stages.score.plan import row_scores
from diffmem.stages.score.rows import ScoreRows, Scoring
from diffmem.stages.score.sets import score_sets

BLOCK = 256
"""Prompts that are encoded together; bounds the memory that encodings take."""


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
    found: dict[str, list[float]] = {}
    for row in table.to_pylist():
        if row["score"] == label and row["status"] == "ok":
            parts = json.loads(row["components"] or "{}") if row["draw"] is None else {}
            found.setdefault(row["prompt_id"], []).extend(parts.get("per_draw", [row["value"]]))
    return {prompt: np.array(values) for prompt, values in found.items()}


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
        retry_errors: compute rows again that ended in an error.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Returns:
        A ScoreResult; rows are in its run directory. Cost: see ScoreResult.nfe.

    Example:
        >>> import diffmem as dm
        >>> network = dm.Target.from_callable(
        ...     lambda x, t, cond: x * 0, (1, 8, 8), prediction="epsilon", schedule="linear", device="cpu"
        ... )
        >>> scored = dm.score(network, ["A RED fox", "a hen"], "text-uppercase")
        >>> [round(float(value.mean()), 2) for value in scored.values("text-uppercase").values()]
        [0.57, 0.0]
    """
    silent = is_silent(silent)
    prompt_list = as_prompts(prompts)
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
        shard, retry_errors, silent
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
        self.scores = list(scores)
        self.refused: dict[str, str] = {}
        self.maker = ScoreRows(target, settings, self.scores, len(prompts), noises_name)
        self.denoiser = target.denoiser
        self.rows = [s for s in row_scores(scores) if self._accepts(s)]
        self.executor = self._executor(noises) if self.denoiser is not None and self.rows else None
        self.notes: list[str] = []

    def _accepts(self, score: DenoiserScore) -> bool:
        if self.target.denoiser is None:
            self.refused[score.label] = f"'{self.target.name}' only generates; there is no network to score with"
            return False
        try:
            score.needs(self.target.denoiser)
        except ScoreRefused as reason:
            self.refused[score.label] = str(reason)
            return False
        return True

    def _executor(self, noises: torch.Tensor | None) -> Executor:
        assert self.denoiser is not None
        bank = Noises(self.denoiser.sample_shape, self.settings.seed, self.settings.noise, noises)
        return Executor(self.denoiser, self.rows, bank, self.settings.micro_batch, self._halved)

    def _halved(self, size: int) -> None:
        self.notes.append(f"out of memory: the micro-batch was halved to {size}")

    def score(self, shard: tuple[int, int] | None, retry_errors: bool, silent: bool) -> ScoreResult:
        """Do what is not done yet."""
        mine = [p for p in self.prompts if in_shard(p, shard)]
        record_model(self.target, self.run.path)
        self.run.record_prompts(mine)
        done = self.run.store.finished("scores", retry_errors)
        total = len(mine) * self.settings.draws
        todo = {p.id: self._missing(p, done) for p in mine} if self.executor is not None else {}
        missing = sum(len(rows) for rows in todo.values())
        with (
            self.run.stage("score", total, total - missing, () if shard else ("prompts", "scores")) as clock,
            self.run.store.writer("scores") as writer,
            Progress(total, "scoring", unit="prompt draws", done=total - missing, silent=silent or not missing) as bar,
        ):
            for block in _blocks([p for p in mine if todo.get(p.id)], BLOCK):
                for row in self._score_block(block, todo, done, clock, bar):
                    writer.write(row)
            writer.write_many(self._text_rows(mine, done))
            clock.done = total
        if shard is None:
            with self.run.store.writer("scores") as writer:
                writer.write_many(score_sets(self.maker, self.run.store, self.prompts, self.rows, self.refused))
        elif any(s.reads == "set" for s in self.scores):
            self.notes.append("scores over the whole set of prompts wait for the same command without a shard")
        record_refused(self.run.path, self.refused)
        return ScoreResult(
            self.run, self.prompts, [s.label for s in self.scores], self.refused,
            self.executor.nfe if self.executor else Nfe(), self.maker.costs,
            self.executor.batches.size if self.executor else 0, self.notes,
        )  # fmt: skip

    def _missing(self, prompt: Prompt, done: set[bytes]) -> list[int]:
        """Draws of a prompt for which some row score has no row yet."""
        if prompt.problem is not None:
            # One error row says it; draw 0 stands for it so that a resumed run does not write it again.
            return [] if self.maker.key(prompt, self.rows[0], 0) in done else [0]
        draws = range(self.settings.draws)
        return [d for d in draws if any(self.maker.key(prompt, s, d) not in done for s in self.rows)]

    def _score_block(
        self, block: Sequence[Prompt], todo: dict[str, list[int]], done: set[bytes], clock: StageClock, bar: Progress
    ) -> Iterator[dict[str, Any]]:
        assert self.executor is not None and self.denoiser is not None
        good, cond = [], []
        for prompt, encoded in self._encode(block):
            if isinstance(encoded, str):
                yield from self._error_rows(prompt, todo[prompt.id], encoded, done)
                clock.done += self.settings.draws
                bar.advance(self.settings.draws)
            else:
                good.append(prompt)
                cond.append(encoded)
        if not good:
            return
        encodings = Conditioning.cat(cond)
        cut = {p.id: t for p, t in zip(good, encodings.truncated or (None,) * len(good), strict=True) if t is not None}
        if cut:
            self.run.record_prompts([p for p in good if p.id in cut], cut)
            self.notes.append(f"{len(cut)} prompts are longer than the tokenizer takes; what it cut off is recorded")
        pairs = [(i, draw) for i, prompt in enumerate(good) for draw in todo[prompt.id]]
        for scored in self.executor.run([p.text for p in good], encodings, pairs):
            yield from self._rows_of(good[scored.prompt], scored, done)
            clock.done += 1
            bar.advance(1)

    def _encode(self, block: Sequence[Prompt]) -> Iterator[tuple[Prompt, Conditioning | str]]:
        """Each prompt with its encoding (one row), or with what is wrong with it."""
        assert self.denoiser is not None
        encode = self.denoiser.encode_prompts
        yield from ((p, p.problem) for p in block if p.problem is not None)
        sound = [p for p in block if p.problem is None]
        with torch.no_grad():
            for part, result in MicroBatches(self.settings.micro_batch).run(
                sound, lambda b: encode([p.text for p in b])
            ):
                for i, prompt in enumerate(part):
                    yield prompt, describe(result) if isinstance(result, Exception) else result.select([i])

    def _rows_of(self, prompt: Prompt, scored: ScoredRow, done: set[bytes]) -> Iterator[dict[str, Any]]:
        if scored.error is not None:
            yield from self._error_rows(prompt, [scored.draw], scored.error, done)
            return
        for score in self.rows:
            if self.maker.key(prompt, score, scored.draw) not in done:
                yield self.maker.row(
                    prompt, score, scored.draw, value=scored.values[score.label],
                    components=json.dumps(scored.components[score.label]), seconds=scored.seconds,
                    micro_batch=scored.micro_batch,
                )  # fmt: skip

    def _error_rows(
        self, prompt: Prompt, draws: Sequence[int], text: str, done: set[bytes]
    ) -> Iterator[dict[str, Any]]:
        for score in self.rows:
            for draw in draws:
                if self.maker.key(prompt, score, draw) not in done:
                    yield self.maker.row(prompt, score, draw, status="error", error=text)

    def _text_rows(self, prompts: Sequence[Prompt], done: set[bytes]) -> Iterator[dict[str, Any]]:
        for score in self.scores:
            if score.reads != "text":
                continue
            fresh = [p for p in prompts if self.maker.key(p, score, None) not in done]
            for prompt, value in zip(fresh, score.values_of_texts([p.text for p in fresh]), strict=True):
                sound = prompt.problem is None
                state = {"value": float(value)} if sound else {"status": "error", "error": prompt.problem}
                yield self.maker.row(prompt, score, None, **state)


def _blocks(items: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
