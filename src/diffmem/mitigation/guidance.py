"""Mitigations that change how the two branches of guidance are combined."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch

from diffmem.mitigation.base import Mitigation
from diffmem.mitigation.steering import Decision, Step, steered
from diffmem.models.denoiser import Denoiser
from diffmem.models.pipelines.calls import Call


class GuidanceMitigation(Mitigation):
    """Decides at every step what the guided output is."""

    needs_guidance: ClassVar[bool] = True

    @abstractmethod
    def steering(self, call: Call) -> Callable[[Step], Decision] | None:
        """The decision for one call, with whatever state it needs; None changes nothing."""

    @contextmanager
    def around(self, call: Call) -> Iterator[None]:
        """Steer the call."""
        decide = self.steering(call)
        if decide is None:
            yield
            return
        with steered(call, decide):
            yield


def thousandths(denoiser: Denoiser, t: float) -> float:
    """A time as thousandths of the training time, 0 ... 1000, in which transition points are published."""
    return 1000 * denoiser.schedule.share_at(t)


def early_scale(call: Call, scale: float, until: float) -> Callable[[Step], Decision]:
    """Another guidance scale while t > until (thousandths of the training time), then the pipeline's own."""
    everyone = torch.ones(call.size, dtype=torch.bool)

    def decide(step: Step) -> Decision:
        if thousandths(call.denoiser, step.t) <= until:
            return None
        return step.guided(scale), everyone

    return decide
