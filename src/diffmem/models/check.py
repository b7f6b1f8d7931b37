"""Does our view of the model equal the user's pipeline? Checked on real network calls before every audit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from diffmem.models.capture import Call
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest relative difference that rounding explains, by the network's type."""


@dataclass(frozen=True)
class CheckResult:
    """Outcome of `Target.check`.

    Attributes:
        passed: both differences are within the tolerance.
        calls: network calls that were compared (NFE of the pipeline's run).
        output_difference: largest ||ours - pipeline's|| / ||pipeline's|| over the captured outputs.
        conditioning_difference: the same for the encoded prompts; 0 for unconditional models.
        tolerance: what rounding in this dtype explains.
        message: one sentence for people.
    """

    passed: bool
    calls: int
    output_difference: float
    conditioning_difference: float
    tolerance: float
    message: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the run directory and reports."""
        return asdict(self)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """||ours - theirs|| / ||theirs||, computed in float64."""
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))


def compare_calls(denoiser: Denoiser, calls: list[Call], prompt: str | None) -> CheckResult:
    """Compare captured calls, row by row, with `Denoiser.predict` at the same (x_t, t, c).

    The conditional and the unconditional branch are told apart by comparing the captured conditioning with our own
    encodings, never by position in the batch.
    """
    branches = [denoiser.null()]
    if prompt is not None:
        branches.append(denoiser.encode_prompts([prompt]))
    worst_output = worst_conditioning = 0.0
    for call in calls:
        for row in range(len(call.x)):
            distance, branch = min(
                ((_distance(candidate, call, row), i) for i, candidate in enumerate(branches)), default=(0.0, 0)
            )
            worst_conditioning = max(worst_conditioning, distance)
            ours = denoiser.predict(call.x[row : row + 1], call.t, branches[branch])
            worst_output = max(worst_output, relative(ours.to(call.output.device), call.output[row : row + 1]))
    tolerance = TOLERANCE.get(denoiser.dtype, 1e-4)
    passed = bool(calls) and worst_output <= tolerance and worst_conditioning <= tolerance
    return CheckResult(
        passed, len(calls), worst_output, worst_conditioning, tolerance,
        _sentence(passed, len(calls), worst_output, worst_conditioning, tolerance),
    )  # fmt: skip


def _distance(candidate: Conditioning, call: Call, row: int) -> float:
    pairs = [(candidate.tensors[name][0], value[row]) for name, value in call.conditioning.items()]
    return max((relative(a.to(b.device), b) if a.shape == b.shape else float("inf") for a, b in pairs), default=0.0)


def _sentence(passed: bool, calls: int, output: float, conditioning: float, tolerance: float) -> str:
    if not calls:
        return "The pipeline never called the network that diffmem looks at, so nothing could be compared."
    if passed:
        return (
            f"diffmem sees the model that the pipeline runs: {calls} network calls agree "
            f"to {max(output, conditioning):.1e} (tolerance {tolerance:.0e})."
        )
    what = "encoded prompts" if conditioning > tolerance else "network outputs"
    return (
        f"diffmem does NOT see the model that the pipeline runs: {what} differ by {max(output, conditioning):.1e} "
        f"(tolerance {tolerance:.0e}). Scores of this model would not describe the pipeline."
    )
