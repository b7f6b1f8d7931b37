"""What a training will take, from a few evaluations of its network."""

from __future__ import annotations

from diffmem.models.target import Target
from diffmem.runs.timing import seconds_per_nfe
from diffmem.training.plan import TrainPlan

FORWARD_AND_BACKWARD = 3
"""A training step in forward evaluations: the backward pass takes about two."""


def seconds_of(plan: TrainPlan, target: Target) -> float | None:
    """Seconds of all steps on the device of the base model, one process; None for a model without a network.

    Encoding the images and writing states come on top.
    """
    batch = plan.optimizer.micro_batch or plan.optimizer.batch
    each = seconds_per_nfe(target, min(batch, plan.optimizer.batch))
    return None if each is None else each * FORWARD_AND_BACKWARD * plan.optimizer.batch * plan.optimizer.steps
