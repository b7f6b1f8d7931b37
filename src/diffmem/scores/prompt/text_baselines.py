"""Baselines that read no model at all: what they reach, a detector's AUROC on the same list does not prove."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from diffmem.scores.base import About, DenoiserScore, Parameters, PromptSet, SetScore, TextScore
from diffmem.scores.prompt.combine import folds


class NoParameters(Parameters):
    """These baselines have none."""


class TextUppercase(TextScore):
    """Share of upper-case letters among the letters of the prompt."""

    about: ClassVar[About] = About(
        name="text-uppercase",
        summary="share of upper-case letters in the prompt: a control that reads no model",
        formula="upper-case letters / letters",
        reference="control; web titles against written captions differ in letter case",
        access="prompts",
        cost="0",
        sign="none: it knows no model",
        fails_when="always, as a detector: it shows how much of a benchmark is letter case",
        unit="share of letters",
    )
    settings: NoParameters

    def compute(self, texts: Sequence[str]) -> np.ndarray:
        """[P] in [0, 1]; 0 for a prompt without letters."""
        return np.array([uppercase_share(text) for text in texts])


def uppercase_share(text: str) -> float:
    """Upper-case letters divided by letters; 0 without letters."""
    letters = [character for character in text if character.isalpha()]
    return sum(c.isupper() for c in letters) / len(letters) if letters else 0.0


class TextNgram(SetScore):
    """Character n-gram logistic regression, cross-fitted over near-duplicate groups: needs labels."""

    needs_labels: ClassVar[bool] = True
    about: ClassVar[About] = About(
        name="text-ngram",
        summary="character n-gram logistic regression on the prompt, cross-fitted: a control that reads no model",
        formula="log-odds of memorized given character 1-4-gram TF-IDF, fitted on the other folds",
        reference="control",
        access="labels",
        cost="0",
        sign="none: it knows no model",
        fails_when="always, as a detector: it shows how far the texts of both classes differ",
        unit="log-odds",
    )
    settings: NoParameters

    def component_scores(self) -> tuple[DenoiserScore, ...]:
        """None: it reads text and labels."""
        return ()

    def compute(self, prompts: PromptSet) -> tuple[np.ndarray, dict[str, Any]]:
        """Log-odds per prompt from the folds that do not hold it, [P, 1]; the folds' mean for unlabelled prompts."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        known = np.array([label is not None for label in prompts.labels])
        inside, outside = np.flatnonzero(known), np.flatnonzero(~known)
        truth = np.array([bool(label) for label in prompts.labels])[known]
        texts = [prompts.texts[int(i)] for i in inside]
        values = np.zeros((len(prompts.labels), 1))
        parts = folds(truth, texts)
        for train, test in parts:
            # Letter case is kept on purpose: it is one of the shortcuts that this baseline is there to expose.
            model = make_pipeline(
                TfidfVectorizer(analyzer="char", ngram_range=(1, 4), lowercase=False, sublinear_tf=True),
                LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000),
            ).fit([texts[i] for i in train], truth[train])
            values[inside[test], 0] = model.decision_function([texts[i] for i in test])
            if len(outside):
                values[outside, 0] += model.decision_function([prompts.texts[int(i)] for i in outside]) / len(parts)
        return values, {"folds": len(parts), "labelled": int(known.sum())}
