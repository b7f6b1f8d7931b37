"""What text alone reaches on prompt lists: no model is read, so a detector's AUROC there proves only what lies above."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffmem.bench.rows import separation
from diffmem.data.prompts import Prompt, PromptList, load_prompts
from diffmem.errors import DataError, ScoreRefused
from diffmem.evaluation.text_groups import near_duplicate_groups
from diffmem.scores.base import PromptSet
from diffmem.scores.prompt.text_baselines import TextNgram, TextUppercase

SUFFIXES = (".txt", ".csv", ".jsonl", ".parquet")
NEGATIVE_WORDS = ("unmem", "nmem", "nonmem", "non-mem", "negative")
POSITIVE_WORDS = ("mem", "positive")


def text_shortcut_suite(
    data: Path | None = None, draws: int = 1, seed: int = 0, silent: bool = False
) -> list[dict[str, Any]]:
    """AUROC and TPR at 1 % FPR of the text-only baselines, for every list of positives against every list of negatives.

    Lists are told apart by their file names: "unmem", "nmem" or "negative" in it means negatives, "mem" or "positive"
    otherwise positives. A prompt that stands in both lists of a pair is left out of both.

    Args:
        data: folder with prompt lists (txt, csv, jsonl, parquet).
        draws: without effect, there is no noise.
        seed: of the resampling.
        silent: without effect.

    Returns:
        Rows {"score", "positives", "negatives", "n_positives", "n_negatives", "auroc", "auroc_low", "auroc_high",
        "tpr_at_1fpr", "tpr_low", "tpr_high", "realised_fpr", "clusters", "n_eff"}.
    """
    positives, negatives = _lists(data)
    rows = []
    for name, texts in positives.items():
        for other, others in negatives.items():
            common = set(texts) & set(others)
            one, two = ([t for t in part if t not in common] for part in (texts, others))
            rows += list(_pair(name, other, one, two, seed))
    return rows


def _pair(name: str, other: str, one: list[str], two: list[str], seed: int) -> Iterator[dict[str, Any]]:
    texts = one + two
    labels = [True] * len(one) + [False] * len(two)
    groups = near_duplicate_groups(texts)
    parts = groups[: len(one)], groups[len(one) :]
    for label, values in (
        ("text-uppercase", TextUppercase().compute(texts)[:, None]),
        ("text-ngram", _ngram(texts, labels)),
    ):
        head = {"score": label, "positives": name, "negatives": other}
        if values is None:
            yield head | {"n_positives": len(one), "n_negatives": len(two), "auroc": None}
        else:
            yield head | separation(values[: len(one)], values[len(one) :], parts, seed)


def _ngram(texts: list[str], labels: list[bool]) -> np.ndarray | None:
    try:
        return TextNgram().compute(PromptSet(texts, labels, {}))[0]
    except ScoreRefused:
        return None


def _lists(data: Path | None) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    if data is None:
        raise DataError("The suite text-shortcut reads prompt lists of yours: give their folder with --data DIR.")
    if not data.is_dir():
        raise DataError(f"{data} is no folder; expected one with prompt lists ({', '.join(SUFFIXES)}).")
    positives, negatives = {}, {}
    for path in sorted(p for p in data.iterdir() if p.suffix.lower() in SUFFIXES):
        texts = _texts(load_prompts(path))
        stem = path.stem.lower()
        if any(word in stem for word in NEGATIVE_WORDS):
            negatives[path.name] = texts
        elif any(word in stem for word in POSITIVE_WORDS):
            positives[path.name] = texts
    if not positives or not negatives:
        raise DataError(
            f"{data} has {len(positives)} lists of memorized and {len(negatives)} of other prompts; expected at least one of "
            'each, told apart by their names ("mem" for memorized; "unmem", "nmem" or "negative" for others).'
        )
    return positives, negatives


def _texts(prompts: PromptList) -> list[str]:
    def usable(prompt: Prompt) -> bool:
        return prompt.problem is None

    return list(dict.fromkeys(p.text for p in prompts if usable(p)))
