"""A block of prompts and what is missing of it: the unit of work of the scoring stage, done here or by a runner's worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from diffmem.data.prompts import Prompt
from diffmem.errors import ScoreRefused
from diffmem.models.conditioning import Conditioning
from diffmem.models.elsewhere import ModelElsewhere
from diffmem.models.meter import Nfe
from diffmem.models.target import Target
from diffmem.runs.directory import RunDirectory
from diffmem.runs.microbatch import MicroBatches, describe
from diffmem.runs.store import RunStore
from diffmem.runs.units import Report, Work
from diffmem.scores.base import DenoiserScore, Score
from diffmem.stages.score.executor import Executor, Noises, ScoredRow
from diffmem.stages.score.plan import row_scores
from diffmem.stages.score.rows import ScoreRows, Scoring

BLOCK = 256
"""Prompts that are encoded together; bounds the memory that encodings take."""


@dataclass(frozen=True)
class Block:
    """Prompts with the draws that some score lacks, and the keys of theirs that are finished all the same."""

    prompts: tuple[Prompt, ...]
    draws: Mapping[str, Sequence[int]]
    done: frozenset[bytes] = frozenset()

    @property
    def size(self) -> int:
        """Rows of one score."""
        return sum(len(self.draws[prompt.id]) for prompt in self.prompts)


class BlockScorer:
    """Scores blocks by the row-wise scores that this model takes.

    Args:
        target: the model.
        scores: all scores of the run.
        settings: draws, seed, noises.
        prompts: how many prompts the run has.
        run: where truncated prompts are recorded.
        noises: given noises, and their name.

    Attributes:
        rows: the scores that are computed prompt by prompt.
        refused: label -> why a score cannot run.
        executor: None where no score looks into the network.
        notes: what the user must know.
    """

    def __init__(
        self, target: Target, scores: Sequence[Score], settings: Scoring, prompts: int, run: RunDirectory,
        noises: torch.Tensor | None = None, noises_name: str | None = None,
    ) -> None:  # fmt: skip
        self.target, self.settings, self.run, self.denoiser = target, settings, run, target.denoiser
        self.refused: dict[str, str] = {}
        self.notes: list[str] = []
        self.maker = ScoreRows(target, settings, scores, prompts, noises_name)
        self.rows = [score for score in row_scores(scores) if self._accepts(score)]
        self.executor: Executor | None = None
        if self.denoiser is not None and self.rows:
            bank = Noises(self.denoiser.sample_shape, settings.seed, settings.noise, noises)
            self.executor = Executor(self.denoiser, self.rows, bank, settings.micro_batch, self._halved)

    def _accepts(self, score: DenoiserScore) -> bool:
        if self.denoiser is None:
            self.refused[score.label] = f"'{self.target.name}' only generates; there is no network to score with"
            return False
        try:
            score.needs(self.denoiser)
        except ScoreRefused as reason:
            self.refused[score.label] = str(reason)
            return False
        return True

    def _halved(self, size: int) -> None:
        self.notes.append(f"out of memory: the micro-batch was halved to {size}")

    @property
    def nfe(self) -> Nfe:
        """Evaluations so far."""
        return Nfe() if self.executor is None else self.executor.nfe

    def missing(self, prompt: Prompt, done: set[bytes] | frozenset[bytes]) -> list[int]:
        """Draws of a prompt for which some row score has no row yet."""
        draws = range(self.settings.draws)
        if prompt.problem is not None:
            # One error row says it; draw 0 stands for it so that a resumed run does not write it again.
            return [] if done and self.maker.key(prompt, self.rows[0], 0) in done else [0]
        if not done:
            return list(draws)
        return [d for d in draws if any(self.maker.key(prompt, s, d) not in done for s in self.rows)]

    def block(self, prompts: Sequence[Prompt], draws: Mapping[str, Sequence[int]], done: set[bytes]) -> Block:
        """A block with those of its keys that are finished."""
        mine = {p.id: draws[p.id] for p in prompts}
        keys = (self.maker.key(p, s, d) for p in prompts for s in self.rows for d in mine[p.id]) if done else ()
        return Block(tuple(prompts), mine, frozenset(key for key in keys if key in done))

    def score(self, block: Block, advance: Callable[[int], None]) -> Iterator[dict[str, Any]]:
        """The rows of a block; `advance` is told how many draws of prompts are done."""
        assert self.executor is not None
        good, encodings, problems = self._encode(block.prompts)
        for prompt, problem in problems:
            yield from self.error_rows(prompt, block.draws[prompt.id], problem, block.done)
            advance(self.settings.draws)
        if encodings is None:
            return
        cut = {p.id: t for p, t in zip(good, encodings.truncated or (None,) * len(good), strict=True) if t is not None}
        if cut:
            self.run.record_prompts([p for p in good if p.id in cut], cut)
            self.notes.append(f"{len(cut)} prompts are longer than the tokenizer takes; what it cut off is recorded")
        pairs = [(i, draw) for i, prompt in enumerate(good) for draw in block.draws[prompt.id]]
        for scored in self.executor.run([p.text for p in good], encodings, pairs):
            yield from self._rows_of(good[scored.prompt], scored, block.done)
            advance(1)

    def _encode(self, prompts: Sequence[Prompt]) -> tuple[list[Prompt], Conditioning | None, list[tuple[Prompt, str]]]:
        """The prompts that can be encoded, their encodings, and those that cannot with the reason; equal texts once."""
        assert self.denoiser is not None
        encode = self.denoiser.encode_prompts
        failed = {p.text: p.problem for p in prompts if p.problem is not None}
        texts = list(dict.fromkeys(p.text for p in prompts if p.problem is None))
        parts: list[Conditioning] = []
        row: dict[str, int] = {}
        with torch.no_grad():
            for part, result in MicroBatches(self.settings.micro_batch).run(texts, encode):
                if isinstance(result, Exception):
                    failed |= {text: describe(result) for text in part}
                else:
                    row |= {text: len(row) + i for i, text in enumerate(part)}
                    parts.append(result)
        problems = [(p, p.problem or failed[p.text]) for p in prompts if p.problem is not None or p.text not in row]
        good = [p for p in prompts if p.problem is None and p.text in row]
        if not good:
            return [], None, problems
        joined = parts[0] if len(parts) == 1 else Conditioning.cat(parts)
        repeated = len(good) > len(row)
        return good, joined.select([row[p.text] for p in good]) if repeated else joined, problems

    def _rows_of(self, prompt: Prompt, scored: ScoredRow, done: frozenset[bytes]) -> Iterator[dict[str, Any]]:
        if scored.error is not None:
            yield from self.error_rows(prompt, [scored.draw], scored.error, done)
            return
        for score in self.rows:
            row = self.maker.row(
                prompt, score, scored.draw, value=scored.values[score.label],
                components=json.dumps(scored.components[score.label]), seconds=scored.seconds,
                micro_batch=scored.micro_batch,
            )  # fmt: skip
            if row["key"] not in done:
                yield row

    def error_rows(
        self, prompt: Prompt, draws: Sequence[int], text: str, done: frozenset[bytes] | set[bytes]
    ) -> Iterator[dict[str, Any]]:
        """One error row per score and draw that has no row."""
        for score in self.rows:
            for draw in draws:
                row = self.maker.row(prompt, score, draw, status="error", error=text)
                if row["key"] not in done:
                    yield row


@dataclass
class ScoringWork(Work[Block]):
    """Blocks for the workers of a runner, which open the model themselves.

    Attributes:
        model: as workers open it.
        scores, settings, prompts, path: of the run.
        noises: given noises, and their name.
        here: the scorer of this process, which knows what is missing; it stays here.
    """

    model: ModelElsewhere
    scores: Sequence[Score]
    settings: Scoring
    prompts: int
    path: Path
    noises: torch.Tensor | None
    noises_name: str | None
    here: BlockScorer | None = None
    retry_errors: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"here": None}

    def open(self) -> Callable[[Block], Report]:
        """Open the model; the function that scores a block into a part of its own."""
        target = self.model.open()
        run = RunDirectory.attach(self.path)
        scorer = BlockScorer(target, self.scores, self.settings, self.prompts, run, self.noises, self.noises_name)
        return lambda block: _score_block(scorer, block)

    def left(self, unit: Block) -> Block | None:
        """The draws that the store lacks."""
        assert self.here is not None
        done = RunStore(self.path).finished("scores", self.retry_errors)
        missing = {p.id: self.here.missing(p, done) for p in unit.prompts}
        prompts = [p for p in unit.prompts if missing[p.id]]
        return self.here.block(prompts, missing, done) if prompts else None

    def halves(self, unit: Block) -> Sequence[Block]:
        """Half the prompts each."""
        middle = len(unit.prompts) // 2
        parts = (unit.prompts[:middle], unit.prompts[middle:]) if middle else ()
        return [replace(unit, prompts=part, draws={p.id: unit.draws[p.id] for p in part}) for part in parts]

    def fail(self, unit: Block, reason: str) -> Report:
        """Error rows of its prompts."""
        assert self.here is not None
        rows = [
            row for p in unit.prompts for row in self.here.error_rows(p, unit.draws[p.id], reason, unit.done)
        ]  # fmt: skip
        RunStore(self.path).append("scores", rows)
        return Report(done=unit.size, failed=unit.size)


def _score_block(scorer: BlockScorer, block: Block) -> Report:
    """Score a block, its rows as parts of this process, and say what it took."""
    before, notes, failed, done = scorer.nfe.as_dict(), len(scorer.notes), 0, 0

    def advance(count: int) -> None:
        nonlocal done
        done += count

    with scorer.run.store.writer("scores") as writer:
        for row in scorer.score(block, advance):
            failed += row["status"] == "error"
            writer.write(row)
    spent = Nfe(*(getattr(scorer.nfe, name) - before[name] for name in ("forward", "tangent", "backward")))
    return Report(done, failed, spent, tuple(scorer.notes[notes:]))
