"""Does our view of the model equal the user's pipeline? Checked on a real run of it before anything is scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffmem.errors import DiffmemError, UsageError
from diffmem.models.capture import Call, Step
from diffmem.models.conditioning import SHAPE, Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.fit import FitResult
from diffmem.models.pipelines.branches import nearest_branch

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest relative difference that rounding explains, by the network's type."""
TIME_TOLERANCE = 1.5
"""Largest distance in time, in steps of training: samplers round their times to whole ones."""
IMAGE_TOLERANCE = 0.002
"""Largest mean difference of images in [0, 1] in full precision (8 bits round by 0.001 on average); tenfold below it."""


@dataclass(frozen=True)
class CheckResult:
    """Outcome of `Target.check`. Differences are infinite where a value is not finite.

    Attributes:
        passed: every difference is within its tolerance; None if nothing could be compared.
        calls: network calls that were compared (NFE of the pipeline's run).
        output_difference: largest ||ours - pipeline's|| / ||pipeline's|| over the captured outputs.
        conditioning_difference: the same for the encoded prompts; 0 for unconditional models.
        tolerance: what rounding in this dtype explains.
        message: one sentence for people.
        step_difference: how much of what the sampler was given is no combination of our outputs (and of the network's
            input no multiple of the sampler's), relative; None if no step was seen.
        time_difference: largest distance between the time that a sampler's noise level has in our schedule and the
            time that it gave the network; None for samplers that keep no level.
        image_difference: mean difference in [0, 1] between the pipeline's image and our decoding of its last latents;
            None where the pipeline changes the image afterwards.
        fit: how well the model denoises images as it was declared; None without images.
    """

    passed: bool | None
    calls: int
    output_difference: float
    conditioning_difference: float
    tolerance: float
    message: str
    step_difference: float | None = None
    time_difference: float | None = None
    image_difference: float | None = None
    fit: FitResult | None = None

    def with_fit(self, fit: FitResult, passed: bool | None, message: str) -> CheckResult:
        """The result with what images say of the declaration."""
        return replace(self, fit=fit, passed=passed, message=message)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the run directory and reports; an infinite difference is null."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """||ours - theirs|| / ||theirs||, computed in float64; infinite where either is not finite."""
    ours, theirs = ours.double(), theirs.double()
    found = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))
    return found if math.isfinite(found) else math.inf


def compare_run(
    denoiser: Denoiser,
    calls: list[Call],
    steps: list[Step],
    image: Image.Image | None,
    branches: Sequence[Conditioning],
) -> CheckResult:
    """Compare a captured run of the pipeline with what the Denoiser computes at the same places.

    Args:
        denoiser: ours, under the size and guidance of the run.
        calls: the network's calls; every row is compared with `Denoiser.predict` at the same (x_t, t, c).
        steps: the sampler's steps.
        image: what the pipeline made.
        branches: what the run was conditioned on, one row each. They are told apart by comparing the captured
            conditioning with these, never by position in the batch.
    """
    tolerance = TOLERANCE.get(denoiser.dtype, 1e-4)
    conditioning = output = 0.0
    ours: list[list[torch.Tensor]] = []
    late: str | None = None
    for call in calls:
        rows = []
        for row in range(len(call.x)):
            branch = branches[nearest_branch(call.cond.select([row]), branches)]
            conditioning = max(conditioning, _distance(branch, call, row))
            rows.append(denoiser.predict(call.x[row : row + 1], call.t, branch)[0].cpu())
            output = max(output, relative(rows[-1], call.output[row].cpu()))
        ours.append(rows)
        try:
            denoiser.schedule.at(call.t)
        except UsageError:
            late = f"the pipeline gives its network the time {call.t:g}, outside of our schedule"
    step = _steps(denoiser, calls, ours, steps)
    time = math.inf if late else _times(denoiser, calls, steps)
    pixels, latents = _image(denoiser, steps, image)
    findings = {
        "encoded prompts": (conditioning, tolerance),
        "network outputs": (output, tolerance),
        "predictions as the sampler gets them": (step, max(10 * tolerance, 1e-3)),
        "noise levels at the sampler's times": (time, TIME_TOLERANCE),
        "decoded images": (pixels, IMAGE_TOLERANCE * (1 if tolerance <= 1e-4 else 10)),
        "encoded images": (latents, 0.0),
    }
    failed = {what: value for what, (value, most) in findings.items() if value is not None and not value <= most}
    return CheckResult(
        bool(calls) and not failed, len(calls), output, conditioning, tolerance,
        _sentence(len(calls), failed, max(output, conditioning), tolerance, late), step, time, pixels,
    )  # fmt: skip


def _distance(candidate: Conditioning, call: Call, row: int) -> float:
    # Lengths of rows do not count: Kandinsky 3 makes the zeros of no prompt as long as the prompt beside them. Where a
    # length matters to the network, its outputs differ.
    given = {name: value for name, value in call.cond.tensors.items() if not name.endswith(SHAPE)}
    pairs = [(candidate.tensors.get(name), value[row]) for name, value in given.items()]
    return max(
        (math.inf if a is None or a[0].ndim != b.ndim else relative(*_padded(a[0].to(b.device), b)) for a, b in pairs),
        default=0.0,
    )


def _padded(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of conditioning in one shape, with zeros at their ends: a row is as long as the longest of its batch."""
    if a.shape == b.shape:
        return a, b
    rows = Conditioning.cat([Conditioning({"row": row[None]}, 1) for row in (a, b)]).tensors["row"]
    return rows[0], rows[1]


def _steps(denoiser: Denoiser, calls: list[Call], ours: list[list[torch.Tensor]], steps: list[Step]) -> float | None:
    """How much of the sampler's predictions is no combination of our outputs since the step before, relative."""
    worst, before = None, 0
    for step in steps:
        rows = [row for call in ours[before : step.calls] for row in call]
        seen = calls[before : step.calls]
        before = step.calls
        if not rows or len(step.prediction) != 1:
            continue
        prediction, x = step.prediction, step.x
        if prediction.ndim == 4 and prediction.shape[1] == 2 * x.shape[1]:
            prediction = prediction[:, : x.shape[1]]  # the sampler keeps the second half as the learned variance
        shown = torch.stack([denoiser.initial_latents(row[None])[0] for row in rows])
        if shown.shape[1:] != prediction.shape[1:]:
            shown, prediction = torch.stack(rows), denoiser.read_latents(prediction)
        lost = _residual(shown.cpu(), prediction[0].cpu())
        own = denoiser.read_latents(x)[:1].cpu()
        if own.shape[1:] == seen[0].x.shape[1:]:
            lost = max(lost, _residual(own, seen[0].x[0].cpu()))
        worst = lost if worst is None else max(worst, lost)
    return worst


def _residual(parts: torch.Tensor, whole: torch.Tensor) -> float:
    """||whole - its projection on the span of the parts|| / ||whole||; infinite for other shapes and values not finite.

    Guidance makes one combination for all of a sample; where it keeps norms along the last dimension (Qwen-Image,
    Lumina 2), one for each vector of it, which is asked for where those are longer than the combination has terms.
    """
    if parts.shape[1:] != whole.shape or not bool(torch.isfinite(parts).all()) or not bool(torch.isfinite(whole).all()):
        return math.inf
    lost = [_projected(parts, whole, 1)]
    if len(parts) > 1 and whole.shape[-1] > len(parts):
        lost.append(_projected(parts, whole, whole.numel() // whole.shape[-1]))
    return min(lost)


def _projected(parts: torch.Tensor, whole: torch.Tensor, groups: int) -> float:
    basis = parts.double().reshape(len(parts), groups, -1).permute(1, 2, 0)
    target = whole.double().reshape(groups, -1, 1)
    weights = torch.linalg.lstsq(basis, target, driver="gelsd").solution
    return float((basis @ weights - target).norm() / target.norm().clamp_min(1e-12))


def _times(denoiser: Denoiser, calls: list[Call], steps: list[Step]) -> float | None:
    """Largest distance between the network's time and the one that the sampler's noise level has in our schedule."""
    schedule, worst, before = denoiser.schedule, None, 0
    unit = (schedule.t_max - schedule.t_min) / 1000 if schedule.kind == "flow" else 1.0
    for step in steps:
        seen, before = calls[before : step.calls], step.calls
        if step.level is None or step.level <= 0 or not seen:
            continue
        if schedule.kind == "flow":
            ours = schedule.t_max if step.level >= 1 else schedule.time_at_ratio(step.level / (1 - step.level))
        else:
            ours = schedule.time_at_ratio(step.level)
        # Half-precision pipelines round the time itself: bfloat16 keeps 8 bits of it, 4 units apart above 512.
        rounding = torch.finfo(denoiser.dtype).eps if denoiser.dtype.itemsize < 4 else 0.0
        distance = min(max(abs(ours - call.t) - rounding * abs(call.t), 0.0) for call in seen) / unit
        worst = distance if worst is None else max(worst, distance)
    return worst


def _image(denoiser: Denoiser, steps: list[Step], image: Image.Image | None) -> tuple[float | None, float | None]:
    """(image difference, 0 or infinite for encoding); None where there is nothing to compare."""
    if image is None or not steps:
        return None, None
    array = np.asarray(image, dtype=np.float32) / 255
    pixels = torch.from_numpy(np.array(array if array.ndim == 3 else array[..., None])).permute(2, 0, 1)[None]
    found = [
        float((decoded - pixels).abs().mean())
        for result in steps[-1].results
        if (decoded := _decoded(denoiser, result, pixels)) is not None
    ]
    difference = min((d if math.isfinite(d) else math.inf for d in found), default=None)
    if not bool(pixels.any()) and difference is not None and math.isfinite(difference):
        difference = None  # a safety checker blacks images out
    try:
        latents = denoiser.encode_images(pixels * 2 - 1)
    except DiffmemError:
        return difference, None  # of another size or mode than the model's own
    return difference, 0.0 if bool(torch.isfinite(latents).all()) else math.inf


def _decoded(denoiser: Denoiser, latents: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor | None:
    latents = denoiser.read_latents(latents)
    if latents.shape[1:] != denoiser.sample_shape:
        return None
    images = denoiser.decode(latents[:1]).detach().float().cpu()
    decoded = (images / 2 + 0.5).clamp(0, 1)
    return decoded if decoded.shape == pixels.shape else None


def _sentence(calls: int, failed: dict[str, float], largest: float, tolerance: float, late: str | None) -> str:
    if not calls:
        return "The pipeline never called the network that diffmem looks at, so nothing could be compared."
    if not failed:
        return (
            f"diffmem sees the model that the pipeline runs: {calls} network calls agree "
            f"to {largest:.1e} (tolerance {tolerance:.0e})."
        )
    what = ", ".join(
        f"{name} differ by {value:.1e}" if math.isfinite(value) else f"{name} are not finite or cannot be compared"
        for name, value in failed.items()
    )
    said = f" ({late})" if late else ""
    return (
        f"diffmem does NOT see the model that the pipeline runs: {what}{said} (tolerance {tolerance:.0e}). Scores of "
        "this model would not describe the pipeline."
    )
