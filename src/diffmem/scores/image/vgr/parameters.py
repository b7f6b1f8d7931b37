"""Parameters of the volume scores."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from diffmem.scores.base import Parameters


class VolumeParameters(Parameters):
    """What all volume scores share."""

    condition: Literal["null", "caption"] = Field(
        "null", description="null: the model without a prompt; caption: under the image's caption, without guidance"
    )
    limit: float = Field(
        0.05, gt=0, description="largest round-trip error image -> latent -> image (RMS per number) of a usable row"
    )
    memory: float = Field(2.0, gt=0, description="GiB that frames and evaluations may take together")


class FlowParameters(VolumeParameters):
    """How the flow is followed."""

    steps: int = Field(50, ge=2, le=10000, description="steps of the ODE, even in log(sigma/alpha)")
    solver: Literal["heun", "ddim"] = Field("heun", description="heun: order 2, 2 evaluations a step; ddim: order 1, 1")
    start: Literal["clean", "noised"] = Field(
        "clean", description="clean: the image itself at the lowest noise level; noised: with that much noise added"
    )
    draws: int = Field(2, ge=2, le=1000, description="noises to average over, with start=noised")


class FrameParameters(FlowParameters):
    """Settings of the scores that carry frames."""

    every: int = Field(2, ge=1, description="steps between re-orthonormalisations; changes rounding only")
