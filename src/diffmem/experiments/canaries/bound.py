"""A lower bound of epsilon from canaries of which coins decided whether they are trained on; in words, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from diffmem.data.canaries import Registration
from diffmem.evaluation.clusters import Floats
from diffmem.evaluation.epsilon import LEVEL, epsilon_bound, most_provable
from diffmem.report.prose import number

WARNING = "A low bound never means private: it says that these guesses did not show more."


class Bound(BaseModel):
    """A lower bound of epsilon by one measure, see `diffmem.evaluation.epsilon.EpsilonBound`.

    Attributes:
        measure: by which the coins were guessed.
        epsilon: lower bound for groups of `group` records; 0 where nothing is proved.
        record: the bound for one record that follows, epsilon / group (delta 0).
        at_most: what as many coins prove if every guess is right.
        group: how often a canary is in the data if its coin says so.
        canaries, guesses, right, level, delta: what it rests on; all measures share the level.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    measure: str
    epsilon: float
    record: float
    at_most: float
    group: int
    canaries: int
    guesses: int
    right: int
    level: float
    delta: float


def bounds_of(known: Registration, blind: Mapping[str, Floats]) -> tuple[Bound, ...]:
    """One bound per measure, which share the error; empty where fewer than two canaries have a coin."""
    coins = [known.canaries[i].count > 0 for i in known.coins]
    if len(coins) < 2:
        return ()
    group = int(known.facts["coin_count"])
    found = []
    for measure, strengths in blind.items():
        one = epsilon_bound(strengths, coins, LEVEL / len(blind))
        found.append(
            Bound(
                measure=measure, epsilon=one.epsilon, record=one.epsilon / group, at_most=one.at_most, group=group,
                canaries=one.canaries, guesses=one.guesses, right=one.right, level=LEVEL, delta=one.delta,
            )
        )  # fmt: skip
    return tuple(found)


def provable(coins: int, group: int = 1) -> str:
    """What so many coins can prove at most, in a sentence."""
    groups = (
        "" if group == 1 else f" for groups of {group} records, so {number(most_provable(coins) / group, 2)} for one"
    )
    return (
        f"{coins} canaries with a coin prove at most an epsilon of {number(most_provable(coins), 2)}{groups} (95 %, delta 0, "
        f"every guess right). {WARNING}"
    )


def in_words(bounds: Sequence[Bound]) -> list[str]:
    """The bounds as sentences, what they could have been at most first; empty without bounds."""
    if not bounds:
        return []
    first, best = bounds[0], max(bounds, key=lambda one: one.epsilon)
    of = "a record" if best.group == 1 else f"a group of {best.group} records"
    texts = [
        f"{first.canaries} coins prove at most an epsilon of {number(first.at_most, 2)}, with every guess right.",
        f"For {of}, epsilon is at least {number(best.epsilon, 2)} (95 %, delta {best.delta:g}; by {best.measure}, "
        f"{best.right} of {best.guesses} guesses right)."
        + ("" if best.group == 1 else f" For one record it is at least {number(best.record, 2)}."),
    ]
    return [*texts, WARNING]
