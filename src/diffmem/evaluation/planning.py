"""How many prompts, images and held-out pictures an audit needs to give a wanted answer."""

from __future__ import annotations

from dataclasses import dataclass

from diffmem.errors import UsageError
from diffmem.evaluation.chance import LEVEL, Chance, most_not_excluded, power
from diffmem.renamed import renamed

MOST_PROMPTS = 200_000
MOST_REFERENCES = 100_000
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
IMAGES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Plan:
    """An audit that finds a share of reproducing prompts with a wanted power.

    Attributes:
        prompts: distinct ones.
        images_per_prompt: seeds of each.
        images: in all.
        references: held-out images for the threshold.
        fpr: nominal false-positive rate per prompt (--fpr).
        power: that it has.
        bound: share not excluded (95 %) if no prompt is called.
    """

    prompts: int
    images_per_prompt: int
    images: int
    references: int
    fpr: float
    power: float
    bound: float


def fewest_prompts(share: float, hit: float, chance: Chance, wanted: float, level: float = LEVEL) -> int | None:
    """The least number of prompts at which `power` reaches `wanted`; None where none up to 200,000 does."""
    high = 1
    while power(high, share, hit, chance, level) < wanted:
        high *= 2
        if high > MOST_PROMPTS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, share, hit, chance, level) >= wanted else (middle, high)
    return high


def fewest_references(prompts: int, share: float, hit: float, chance: Chance, wanted: float, fpr: float) -> int | None:
    """About the least number of references at which these prompts reach the power; None where none up to 100,000 does.

    The references grow by a tenth at a time, and the threshold is set anew at `fpr`, the nominal rate of one picture.
    """
    n = chance.references
    while n < MOST_REFERENCES:
        n = max(n + 1, round(1.1 * n))
        if power(prompts, share, hit, Chance.of_rate(n, fpr, chance.images)) >= wanted:
            return n
    return None


@renamed(rate="fpr")
def plan_audit(
    detect: float,
    wanted: float = 0.8,
    seeds: float = 1.0,
    recall: float = 1.0,
    references: int | None = None,
    images: int | None = None,
    fpr: float | None = None,
    prompts: int | None = None,
    level: float = LEVEL,
) -> Plan:
    """The audit with the fewest generated images that finds a share of reproducing prompts with a wanted power.

    Tries nominal rates of .1 to 5 % per prompt and 1 to 16 images per prompt; without a number of held-out images it also
    chooses that, as small as costs at most a tenth more generated images.

    Args:
        detect: share of the prompts that reproduce a training image, in (0, 1].
        wanted: probability that such an audit says `reproduces`, in (0, 1).
        seeds: share of the seeds of such a prompt that give a copy, in (0, 1].
        recall: probability that the matcher calls a copy one, in (0, 1].
        references: held-out images that there are; None: as many as it takes.
        images: images per prompt; None: chosen.
        fpr: nominal false-positive rate per prompt; None: chosen.
        prompts: distinct ones that there are, at most; None: any number.
        level: probability at most of saying `reproduces` where nothing is.

    Raises:
        UsageError: arguments out of range, or no audit up to 200,000 prompts does it.
    """
    for name, value in (("--detect", detect), ("--seeds", seeds), ("--recall", recall)):
        if not 0 < value <= 1:
            raise UsageError(f"{name} is {value:g}; expected a share above 0, at most 1 (or 100%).")
    if not 0 < wanted < 1:
        raise UsageError(f"--power is {wanted:g}; expected a probability between 0 and 1.")
    sizes = (50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000) if references is None else (references,)
    most = MOST_PROMPTS if prompts is None else prompts
    found: list[Plan] = []
    for size in sizes:
        for nominal in RATES if fpr is None else (fpr,):
            for k in IMAGES if images is None else (images,):
                best = min((plan.images for plan in found), default=None)
                made = _try(detect, wanted, 1 - (1 - seeds * recall) ** k, size, nominal, k, level, best, recall)
                if made is not None and made.prompts <= most:
                    found.append(made)
    if not found:
        few = "" if references is None else f" with {references:,} held-out images"
        raise UsageError(
            f"No audit of up to {most:,} prompts{few} finds a share of {detect:.3g} with a power of {wanted:g}. More prompts "
            "or held-out images, or a larger share, can be planned."
        )
    cheapest = min(plan.images for plan in found)
    enough = [plan for plan in found if plan.images <= 1.1 * cheapest]
    return min(enough, key=lambda plan: (plan.references, plan.images))


def _try(
    detect: float, wanted: float, hit: float, references: int, nominal: float, k: int, level: float, best: int | None,
    recall: float,
) -> Plan | None:  # fmt: skip
    try:
        chance = Chance.of_rate(references, 1 - (1 - nominal) ** (1 / k), k)
    except UsageError:
        return None
    # Nothing that costs half as much again as what was found is looked at more closely.
    if best is not None and power(max(1, round(1.5 * best / k)), detect, hit, chance, level) < wanted:
        return None
    prompts = fewest_prompts(detect, hit, chance, wanted, level)
    if prompts is None:
        return None
    return Plan(
        prompts, k, prompts * k, references, nominal, power(prompts, detect, hit, chance, level),
        most_not_excluded(0, prompts, recall),
    )  # fmt: skip
