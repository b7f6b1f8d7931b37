"""Looking at one audit several times, with more seeds each time, without finding something by looking often enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy.stats import norm

from diffmem.errors import UsageError
from diffmem.evaluation.chance import LEVEL, Chance, power


def spending_levels(images: Sequence[int], level: float = LEVEL) -> tuple[float, ...]:
    """The level of each look: what the O'Brien-Fleming-type spending function has spent by then, less what was spent before.

    alpha(t) = 2 - 2 Phi(z_{1 - level / 2} / sqrt(t)), t the share of the images that are made by then; the levels sum to
    `level`. By the union bound a model that copies nothing is called with at most this probability at any of the looks, however
    they depend on each other. Early looks get little, so that the last one is nearly as sharp as a single one.

    Args:
        images: per prompt at each look, rising.
        level: of all looks together, in (0, 1).

    Raises:
        UsageError: fewer than two looks, or numbers that do not rise.

    Source: Lan & DeMets, Biometrika 1983.
    """
    if len(images) < 2 or images[0] < 1 or any(b <= a for a, b in pairwise(images)):
        raise UsageError(
            f"The looks are {', '.join(map(str, images))}; expected two or more numbers of images that rise: 2,4,8."
        )
    if not 0 < level < 1:
        raise UsageError(f"The level is {level}; expected a number between 0 and 1.")
    quantile = float(norm.ppf(1 - level / 2))
    spent = [2 * float(norm.sf(quantile / (n / images[-1]) ** 0.5)) for n in images]
    return tuple(now - before for now, before in zip(spent, [0.0, *spent], strict=False))


@dataclass(frozen=True)
class Look:
    """One look of a plan.

    Attributes:
        images_per_prompt: by then.
        level: of its test.
        power: probability that this look alone finds the share that was planned for.
    """

    images_per_prompt: int
    level: float
    power: float


def plan_looks(
    prompts: int,
    share: float,
    seed_hit: float,
    references: int,
    fpr: float,
    images: Sequence[int],
    level: float = LEVEL,
) -> tuple[Look, ...]:
    """What each look of a plan can find.

    Args:
        prompts: distinct ones.
        share: of them that reproduce a training image.
        seed_hit: probability that a seed of such a prompt gives a copy that the matcher calls one.
        references: held-out images.
        fpr: nominal rate per prompt.
        images: per prompt at each look.
        level: of all looks together.
    """
    found = []
    for n, own in zip(images, spending_levels(images, level), strict=True):
        chance = Chance.of_rate(references, 1 - (1 - fpr) ** (1 / n), n)
        found.append(Look(n, own, power(prompts, share, 1 - (1 - seed_hit) ** n, chance, own)))
    return tuple(found)
