"""Which scores run on a model, and what each costs on this device: asked of the scores, then timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from diffmem.errors import DiffmemError
from diffmem.models.denoiser import Denoiser
from diffmem.models.meter import Nfe
from diffmem.models.target import Target
from diffmem.runs.microbatch import describe
from diffmem.runs.timing import Timing, measure
from diffmem.scores import SCORES
from diffmem.scores.image import IMAGE_SCORES
from diffmem.scores.image.base import ImageItem
from diffmem.scores.spec import parse_image_score, parse_score
from diffmem.stages.measure.cost import seconds_per_evaluation
from diffmem.stages.score.executor import Executor, Noises
from diffmem.stages.score.plan import nfe_per_prompt_seed, row_scores

MANY = 1000
"""Prompts among which the cost of shared evaluations is divided, for the NFE that are shown."""


BATCH = 8
"""Images at once when evaluations are timed for an estimate."""


@dataclass(frozen=True)
class ScoreFinding:
    """One score on this model.

    Attributes:
        score: its name.
        measures: a prompt or an image; the unit of cost is a prompt and draw, or an image.
        state: "runs", "refuses" or "fails".
        reason: why it refuses or fails, or what it needs besides the model; "" if there is nothing to say.
        nfe: network evaluations per unit (at most, for image scores), shared ones divided among MANY prompts.
        timing: seconds per unit; None where it does not run or evaluates no network.
    """

    score: str
    measures: Literal["prompt", "image"]
    state: Literal["runs", "refuses", "fails"]
    reason: str
    nfe: float | None
    timing: Timing | None


def examine_scores(
    target: Target, prompts: list[str], budget: float, say: Callable[[str], None] | None = None
) -> Iterator[ScoreFinding]:
    """Every prompt score and image score of the registries at its defaults."""
    denoiser = target.need_denoiser()
    names = [*SCORES, *IMAGE_SCORES]
    for name in SCORES:
        if say is not None:
            say(f"timing score {names.index(name) + 1} of {len(names)}: {name}")
        yield _guarded(name, "prompt", partial(_prompt_score, name, denoiser, prompts, budget))
    prices = _prices(denoiser)
    for name in IMAGE_SCORES:
        if say is not None:
            say(f"timing score {names.index(name) + 1} of {len(names)}: {name}")
        yield _guarded(name, "image", partial(_image_score, name, denoiser, prices, budget))


def _guarded(name: str, measures: Literal["prompt", "image"], examine: Callable[[], ScoreFinding]) -> ScoreFinding:
    """A finding, also of a score that breaks: one score that fails must not hide the others."""
    try:
        return examine()
    except DiffmemError as reason:
        return ScoreFinding(name, measures, "refuses", str(reason), None, None)
    except Exception as problem:
        return ScoreFinding(name, measures, "fails", describe(problem), None, None)


def _prompt_score(name: str, denoiser: Denoiser, prompts: list[str], budget: float) -> ScoreFinding:
    score = parse_score(name)
    labels = "needs prompts with labels" if score.needs_labels else ""
    if score.reads == "text":
        how = f"{MANY} prompts at once, reading the text only"
        timing = measure(lambda: score.values_of_texts(prompts[:1] * MANY), MANY, how, budget=budget)
        return ScoreFinding(score.name, "prompt", "runs", labels or "reads the text only", 0.0, timing)
    rows = row_scores([score])
    if not rows:
        return ScoreFinding(score.name, "prompt", "runs", labels or "reads the text only", 0.0, None)
    nfe = nfe_per_prompt_seed(score, denoiser, MANY, 1)
    executor = Executor(denoiser, rows, Noises(denoiser.sample_shape, 0), len(prompts))
    cond = denoiser.encode_prompts(prompts)
    pairs = [(i, 0) for i in range(len(prompts))]
    errors: list[str] = []

    def work() -> None:
        errors.extend(row.error for row in executor.run(prompts, cond, pairs) if row.error is not None)

    how = (
        f"batches of {len(prompts)} prompts on one noise, encoding and shared unconditional evaluations left out "
        "(the latter are made once per draw and run)"
    )
    timing = measure(work, len(prompts), how, budget=budget)
    if errors:
        return ScoreFinding(score.name, "prompt", "fails", errors[0], nfe, None)
    if score.reads == "set" and not labels:
        labels = "computed over the whole set of prompts"
    return ScoreFinding(score.name, "prompt", "runs", labels, nfe, timing)


def _prices(denoiser: Denoiser) -> Nfe | None:
    """Seconds of one evaluation of each kind that the image scores of this model ask for, in batches of BATCH."""
    wanted = Nfe()
    for name in IMAGE_SCORES:
        score = parse_image_score(name)
        try:
            score.check(denoiser)
            cost = score.estimate(denoiser)
        except DiffmemError:
            continue  # its finding says why
        wanted.add(cost.forward, cost.tangent, cost.backward)
    return seconds_per_evaluation(denoiser, BATCH, wanted) if wanted.total else None


class _Bench:
    """A workbench that keeps nothing."""

    seed, batch = 0, 1

    def load(self, image_id: str) -> dict[str, Any] | None:
        return None

    def save(self, image_id: str, state: dict[str, Any]) -> None:
        return None

    def tick(self, note: str = "") -> None:
        return None


def _image_score(name: str, denoiser: Denoiser, prices: Nfe | None, budget: float) -> ScoreFinding:
    """One image is really measured where that is expected to end within the budget; otherwise it is estimated."""
    score = parse_image_score(name)
    score.check(denoiser)
    nfe = score.estimate(denoiser)
    if prices is None:
        return ScoreFinding(score.name, "image", "fails", "out of memory with a single image", nfe.total, None)
    expected = nfe.forward * prices.forward + nfe.tangent * prices.tangent + nfe.backward * prices.backward
    if expected > budget:
        kinds = {"forward": nfe.forward, "tangent": nfe.tangent, "backward": nfe.backward}
        what = ", ".join(f"{count:.0f} {kind}" for kind, count in kinds.items() if count)
        how = f"estimated: at most {what}, each kind timed in batches of {BATCH}"
        return ScoreFinding(score.name, "image", "runs", "", nfe.total, Timing(expected, None, None, 0, how))
    item = sample_item(denoiser)
    errors: list[str] = []

    def work() -> None:
        errors.extend(result.error for result in score.run(denoiser, [item], _Bench()) if result.error is not None)

    timing = measure(work, 1, "one made-up image, alone", 3, budget)
    if errors:
        return ScoreFinding(score.name, "image", "fails", errors[0], nfe.total, None)
    return ScoreFinding(score.name, "image", "runs", "", nfe.total, timing)


def sample_item(denoiser: Denoiser) -> ImageItem:
    """A smooth made-up image in the model's size, encoded as the model takes it."""
    import torch

    from diffmem.randomness import gaussian

    with torch.no_grad():
        shape = denoiser.decode(torch.zeros(1, *denoiser.sample_shape)).shape[1:]
        coarse = gaussian((1, shape[0], 4, 4), 0, "doctor")
        pixels = torch.nn.functional.interpolate(coarse, shape[1:], mode="bicubic").clamp(-1, 1)
        x0 = denoiser.encode_images(pixels)[0].float().cpu()
    return ImageItem("doctor", pixels[0], x0, None, denoiser.any_conditioning())
