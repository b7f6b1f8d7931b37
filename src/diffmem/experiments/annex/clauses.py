"""Which figure of an audit speaks to which clause, and where it ends. Facts at second hand (November 2026), no legal advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Clause:
    """A clause that a provider may have to answer.

    Attributes:
        name: the document and the place in it.
        asks: what it asks, in a sentence.
        figures: names of figures that speak to it, see `annex.page.figures`.
        limit: what these figures are not.
    """

    name: str
    asks: str
    figures: tuple[str, ...]
    limit: str


CLAUSES = (
    Clause(
        "Code of practice for general-purpose AI, copyright chapter, measure 1.4",
        "Proportionate safeguards against output that reproduces protected training content in an infringing way.",
        ("verdict", "bound", "safeguards"),
        "The measure sets no test and no threshold. Whether a reproduced picture infringes is a legal question that no figure "
        "here answers; the safeguard was tried on the prompts of its run only.",
    ),
    Clause(
        "EDPB opinion 28/2024 (personal data in models)",
        "A model counts as anonymous only if extracting personal data, from the weights or by queries, is insignificantly likely "
        "by all means reasonably likely to be used.",
        ("verdict", "bound", "control", "membership"),
        "Case by case, and for personal data only. A rate over prompts and seeds is an input to that, not the test; extraction "
        "from the weights was not tried.",
    ),
    Clause(
        "NIST AI 600-1, MS-2.10-001",
        "Red-team for the exposure of training samples and for membership inference.",
        ("verdict", "pairs", "membership"),
        "These prompts, seeds and this sampler; no attacker who adapts prompts to the answers.",
    ),
    Clause(
        "NIST AI 600-1, MS-2.10-003",
        "Verify the de-duplication of training data.",
        ("duplicates",),
        "Near-duplicates as this descriptor and cut see them, among the images that were searched; de-duplication is no "
        "guarantee, because typical pictures are memorized without duplicates too.",
    ),
    Clause(
        "NIST AI 600-1, MP-4.1-007",
        "Re-evaluate models that were fine-tuned from others.",
        ("base",),
        "Only the models named here were compared.",
    ),
    Clause(
        "NIST AI 600-1, MS-2.13-001",
        "Model the error of the measurement itself.",
        ("matcher", "control", "bound"),
        "Measured on references and planted pictures, which may be recognised more or less easily than training images.",
    ),
)


def table(figures: Mapping[str, tuple[str, ...]]) -> list[tuple[Clause, list[str]]]:
    """Each clause with what its figures say first (all of the matcher's and of membership); one that is lacking says so."""
    whole = ("matcher", "membership")
    return [
        (clause, [text for name in clause.figures for text in figures[name][: None if name in whole else 1]])
        for clause in CLAUSES
    ]
