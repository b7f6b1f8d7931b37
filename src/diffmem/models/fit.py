"""Is a model what it was declared to be? Its denoising loss on the user's own images, beside that of other declarations."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffmem.data.images import ImageSet
from diffmem.errors import DiffmemError, first_line
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.families.callable import CallableDenoiser
from diffmem.models.model_image import convert, encode, model_image, to_pixels
from diffmem.models.noise_levels import NoiseLevelSchedule
from diffmem.models.parameterization import Prediction, to_x0
from diffmem.models.schedule import Schedule
from diffmem.randomness import gaussian

LEVELS = (0.1, 0.3, 1.0, 3.0, 6.0, 12.0, 24.0)
"""Noise over the images' own standard deviation, so that every pixel range poses the same task: epsilon and v differ at
high noise only, pixel ranges most at low noise."""
FAILS, WARNS = 5.0, 2.0
"""How many times lower another declaration's loss must be, at two levels or more."""
PIXEL_RANGES = ((-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5))
_IMAGES, _IMAGES_OF_PIPELINES = 8, 4


@dataclass(frozen=True)
class FitResult:
    """How well a model denoises images as it was declared.

    Attributes:
        passed: False if another declaration fits much better; None if nothing was compared.
        message: one sentence for people.
        warning: whether the message is one although nothing failed (another one fits better, or no network fits as well).
        losses: mean (x0_hat - x0)^2 over the images' variance at LEVELS, as declared.
        better: another declaration that fits better, in words, and how many times lower its loss is (second-best level).
    """

    passed: bool | None
    message: str
    warning: bool = False
    losses: tuple[float, ...] = ()
    better: tuple[str, float] | None = None


@dataclass(frozen=True)
class _Declaration:
    """What a network may be: each part as declared, or another one with the words that name it."""

    prediction: Prediction
    sign: int
    pixel_range: Any
    time: str
    changes: tuple[str, ...]


def check_fit(denoiser: Denoiser, images: ImageSet) -> FitResult:
    """Compare a model's declaration with others on a few images at the noise levels LEVELS.

    It fails where another one is FAILS times better at two levels, and warns from WARNS on.

    The loss of a declaration is that of x0_hat at sigma/alpha = LEVELS times the images' standard deviation in its pixel
    range, which an ideal network would solve equally well in any. Pipelines of diffusers declare their prediction only;
    networks of one's own also their pixel range and the direction and unit of time.

    Args:
        denoiser: the model.
        images: of the kind that it was trained on; a few are read, under their captions where the model takes prompts.

    Cost: 7 levels x 4 images for pipelines; 7 x 8 images per pixel range and time (9 pairs) for networks of one's own.
    """
    denoiser = copy.copy(denoiser)  # encodings that it keeps are its own business
    if denoiser.distilled is not None:
        return FitResult(None, "Not checked on images: a distilled model is trained at a few noise levels only.")
    try:
        trials = _Trials(denoiser, *_some(denoiser, images))
        cases = [(one, trials.losses(one)) for one in _declarations(denoiser)]
        free = [trials.losses(one, zero=True) for one, _ in cases]
        useful = [_is_useful(mine, trials.losses_of_filter(one)) for one, mine in cases]
    except DiffmemError as problem:
        return FitResult(None, f"Not checked on images: {problem}")
    except (RuntimeError, ValueError, TypeError) as problem:  # the network's own, or memory that runs out
        return FitResult(None, f"Not checked on images: {type(problem).__name__}: {first_line(problem)}")
    declared = cases[0][1]
    if not all(map(math.isfinite, declared)):
        return FitResult(False, "The model returns NaN or infinite values for noised images.", losses=declared)
    tried = [
        (one, mine, nothing, _times(mine, nothing, declared))
        for (one, mine), nothing, use in zip(cases[1:], free[1:], useful[1:], strict=True)
        if use
    ]
    other = _best([case for case in tried if case[3] >= WARNS])
    shown = f"relative losses {', '.join(f'{loss:.2g}' for loss in declared)} at noise {', '.join(map(str, LEVELS))}"
    if other is not None:
        what = f"declared {_words(denoiser)}; {other[0]} the loss on these images is {other[1]:.3g} times lower"
        if other[1] >= FAILS:
            return FitResult(
                False,
                f"The model is not what it was declared to be: {what}. {_remedy(denoiser)}",
                False,
                declared,
                other,
            )
        return FitResult(True, f"Look at what was declared: {what} at two noise levels or more.", True, declared, other)
    if not useful[0]:
        return FitResult(
            True,
            f"On these images the model ({_words(denoiser)}) denoises no better than a filter without a network would ({shown}): "
            "it is untrained, trained on other images, or its schedule is another one.",
            True, declared,
        )  # fmt: skip
    return FitResult(
        True, f"No other declaration fits these images better than {_words(denoiser)} ({shown}).", False, declared
    )


def _times(losses: Sequence[float], free: Sequence[float], declared: Sequence[float]) -> float:
    """How many times lower than `declared` the losses are, at their second-best level.

    Levels count where the network's output does more under that declaration than an output of zero (`free`): a network
    without any use is not better for being called v at low noise.
    """
    levels = zip(losses, free, declared, strict=True)
    lower = sorted(d / max(mine, 1e-12) for mine, nothing, d in levels if mine < 0.9 * nothing)
    return lower[-2] if len(lower) > 1 else 0.0


def _is_useful(losses: Sequence[float], filtered: Sequence[float]) -> bool:
    """Whether a network denoises at all under a declaration: better than the filter of `losses_of_filter` at two levels.

    Whatever random weights return, some declaration makes less of an error of it than others; it is not the right one.
    """
    return sum(mine < 0.9 * linear for mine, linear in zip(losses, filtered, strict=True)) >= 2


_Case = tuple[_Declaration, Sequence[float], Sequence[float], float]
"""A declaration, its losses, those of an output of zero, and how many times lower than declared the losses are."""


def _best(found: Sequence[_Case]) -> tuple[str, float] | None:
    """Of declarations that fit better, the one to name: in words, and how many times lower its losses are.

    For each pixel range and time the prediction under which the network does most beyond an output of zero: epsilon and v
    have like losses at low noise, and where a weak network is read wrongly at high noise it does worse than zero. Of these
    the one of the lowest losses, or of about the lowest with fewer changes.
    """
    winners: dict[tuple[Any, str], _Case] = {}
    for case in found:
        key = (case[0].pixel_range, case[0].time)
        if key not in winners or _mean_log(case[1], case[2]) < _mean_log(winners[key][1], winners[key][2]):
            winners[key] = case
    if not winners:
        return None
    lowest = min(_mean_log(losses) for _, losses, _, _ in winners.values())
    near = [case for case in winners.values() if _mean_log(case[1]) <= lowest + math.log(1.6)]
    one, _, _, times = min(near, key=lambda case: (len(case[0].changes), -case[3]))
    return " and ".join(one.changes), times


def _mean_log(losses: Sequence[float], over: Sequence[float] | None = None) -> float:
    over = over or [1.0] * len(losses)
    return sum(math.log(max(a, 1e-12) / b) for a, b in zip(losses, over, strict=True)) / len(losses)


def _words(denoiser: Denoiser) -> str:
    if isinstance(denoiser, CallableDenoiser) and denoiser.space == "pixel":
        return f"{denoiser.prediction}, pixels in {_range(denoiser.pixel_range)}"
    return str(denoiser.prediction)


def _range(pixel_range: Any) -> str:
    return f"[{', '.join(f'{b:g}' if isinstance(b, float) else str(list(b)) for b in pixel_range)}]"


def _remedy(denoiser: Denoiser) -> str:
    if isinstance(denoiser, CallableDenoiser):
        return "Correct what from_callable was given."
    return "Correct prediction_type in the config of its scheduler."


def _some(denoiser: Denoiser, images: ImageSet) -> tuple[torch.Tensor, Conditioning]:
    """A few pictures as pixels [N, C, H, W] in [-1, 1], and what the network is told of each."""
    form, count = model_image(denoiser), len(images)
    wanted = min(_IMAGES if isinstance(denoiser, CallableDenoiser) else _IMAGES_OF_PIPELINES, count)
    places = [i * count // wanted for i in range(wanted)] if wanted else []
    items = [item for place in places for item in images.items(place, place + 1) if item.image is not None]
    if not items:
        raise DiffmemError("none of the images looked at can be read.")
    pixels = torch.stack([to_pixels(convert(item.image, form)[0]) for item in items if item.image is not None])
    return pixels, Conditioning.cat([_condition(denoiser, item.caption) for item in items])


def _condition(denoiser: Denoiser, caption: str | None) -> Conditioning:
    if denoiser.conditional and caption is not None:
        try:
            return denoiser.encode_prompts([caption])
        except DiffmemError:  # no class of this model
            if not denoiser.unconditional_branch:
                raise
    if denoiser.conditional and not denoiser.unconditional_branch:
        raise DiffmemError("the images have no captions, and the model has no unconditional branch.")
    return denoiser.null()


def _declarations(denoiser: Denoiser) -> Iterator[_Declaration]:
    """What was declared first, then every other one."""
    own: tuple[Prediction, int] = (denoiser.prediction, 1)
    kinds: list[tuple[Prediction, int]] = [own, ("epsilon", 1), ("x0", 1), ("score", 1)]
    ranges: list[Any] = [getattr(denoiser, "pixel_range", None)]
    times = [""]
    levels = isinstance(denoiser.schedule, NoiseLevelSchedule)
    if not levels:
        third: Prediction = "flow" if denoiser.schedule.kind == "flow" else "v"
        kinds += [(third, 1), (third, -1)]
    if isinstance(denoiser, CallableDenoiser):
        ranges += PIXEL_RANGES if denoiser.space == "pixel" else ()
        times += [] if levels else ["reversed", "scaled"]
    for time in times:
        for pixel_range in dict.fromkeys(ranges):
            for kind, sign in dict.fromkeys(kinds):
                named = {(kind, sign): f"as {kind}", ("flow", -1): "as x0 - eps", ("v", -1): "as sigma x0 - alpha eps"}
                words = [named[kind, sign]] if (kind, sign) != own else []
                words += [f"with pixels in {_range(pixel_range)}"] if pixel_range != ranges[0] else []
                words += [_TIMES[time, denoiser.schedule.t_max > 1]] if time else []
                yield _Declaration(kind, sign, pixel_range, time, tuple(words))


_TIMES = {
    ("reversed", True): "with time reversed", ("reversed", False): "with time reversed",
    ("scaled", True): "with t divided by 1000", ("scaled", False): "with t multiplied by 1000",
}  # fmt: skip


class _Trials:
    """The network's outputs on noised images, evaluated once for each pixel range and time."""

    def __init__(self, denoiser: Denoiser, pixels: torch.Tensor, cond: Conditioning) -> None:
        self.denoiser, self.pixels, self.cond = denoiser, pixels, cond
        self._known: dict[tuple[Any, str], list[_Trial]] = {}

    def losses(self, one: _Declaration, zero: bool = False) -> tuple[float, ...]:
        """Mean (x0_hat - x0)^2 over the variance of x0, at LEVELS; of an output of zero if asked for."""
        found = []
        for trial in self._trials(one):
            output = torch.zeros_like(trial.output) if zero else one.sign * trial.output
            estimate = to_x0(output, trial.x, trial.alpha, trial.sigma, one.prediction)
            found.append(float((estimate - trial.x0).square().mean()) / trial.variance)
        return tuple(found)

    def losses_of_filter(self, one: _Declaration) -> tuple[float, ...]:
        """The same of x0_hat = a x + b without the network, with the best a of each level and b of each channel."""
        found = []
        for trial in self._trials(one):
            x, x0 = (v - v.mean(_places(v), keepdim=True) for v in (trial.x, trial.x0))
            gain = (x * x0).sum() / x.square().sum().clamp_min(1e-12)
            found.append(float((x0 - gain * x).square().mean()) / trial.variance)
        return tuple(found)

    def _trials(self, one: _Declaration) -> list[_Trial]:
        key = (one.pixel_range, one.time)
        if key not in self._known:
            self._known[key] = list(self._evaluated(*key))
        return self._known[key]

    def _rows(self, row: slice) -> Conditioning:
        return self.cond.select(list(range(len(self.pixels)))[row])

    def _evaluated(self, pixel_range: Any, time: str) -> Iterator[_Trial]:
        x0 = _clean(self.denoiser, self.pixels, pixel_range)
        variance = float(x0.var(correction=0)) or 1.0
        schedule, seen = self.denoiser.schedule, _retimed(self.denoiser, time)
        for level in LEVELS:
            t = min(max(schedule.time_at_ratio(level * variance**0.5), schedule.t_min), schedule.t_max)
            alpha, sigma = schedule.alpha_sigma(self.denoiser.times(t, len(x0)))
            noise = torch.stack([gaussian(x0.shape[1:], 0, "fit", str(level), i) for i in range(len(x0))])
            column = (-1, *[1] * (x0.ndim - 1))
            x = alpha.float().reshape(column) * x0 + sigma.float().reshape(column) * noise
            with torch.no_grad():
                # One row at a time where networks can be large: a batch may not fit into memory.
                rows = [slice(None)] if isinstance(seen, CallableDenoiser) else [slice(i, i + 1) for i in range(len(x))]
                parts = [seen.predict(x[row], t, self._rows(row)) for row in rows]
            output = torch.cat(parts).float().cpu()
            yield _Trial(x0, x, output, alpha, sigma, variance)


@dataclass(frozen=True)
class _Trial:
    x0: torch.Tensor
    x: torch.Tensor
    output: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor
    variance: float


def _places(x: torch.Tensor) -> list[int]:
    """The dimensions of samples [B, C, H, W] or [B, L, C] over which a value for each channel is constant."""
    channel = {2: None, 3: 2}.get(x.ndim, 1)
    return [d for d in range(x.ndim) if d != channel]


def _clean(denoiser: Denoiser, pixels: torch.Tensor, pixel_range: Any) -> torch.Tensor:
    seen = denoiser
    if isinstance(denoiser, CallableDenoiser) and pixel_range != denoiser.pixel_range:
        seen = denoiser.with_pixel_range(pixel_range)
    return encode(seen, pixels)


def _retimed(denoiser: Denoiser, time: str) -> Denoiser:
    """The same network, given another time."""
    if not time:
        return denoiser
    schedule = denoiser.schedule
    ends = schedule.network_time(torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64))
    change: Callable[[torch.Tensor], torch.Tensor]
    if time == "reversed":
        change = lambda t: float(ends.sum()) - t  # noqa: E731
    else:
        factor = 1 / 1000 if schedule.t_max > 1 else 1000.0
        change = lambda t: t * factor  # noqa: E731
    seen, other = copy.copy(denoiser), copy.copy(schedule)
    other.network_time = lambda t: change(schedule.network_time(t))  # type: ignore[method-assign]
    seen.schedule = other
    return seen


def unsteady(denoiser: Denoiser) -> str | None:
    """Why a network's outputs cannot be relied on: they change from call to call, or with other rows of the batch."""
    schedule: Schedule = denoiser.schedule
    x = torch.stack([gaussian(denoiser.sample_shape, 0, "steady", i) for i in range(3)])
    t, cond = schedule.time_at_ratio(1.0), denoiser.any_conditioning()
    with torch.no_grad():
        first, second = denoiser.predict(x, t, cond), denoiser.predict(x, t, cond)
        alone = denoiser.predict(x[:1], t, cond)
    if not bool(torch.isfinite(first).all()):
        return "The network returns NaN or infinite values for noise."
    tolerance = (1e-3 if denoiser.dtype.itemsize >= 4 else 5e-2) * float(first.abs().mean().clamp_min(1e-6))
    if float((first - second).abs().mean()) > tolerance:
        return "The network gives another output for the same input each time: call .eval() on it (dropout)."
    if float((first[:1] - alone).abs().mean()) > tolerance:
        return (
            "A sample's output depends on the other rows of its batch: call .eval() on the network (batch statistics)."
        )
    return None
