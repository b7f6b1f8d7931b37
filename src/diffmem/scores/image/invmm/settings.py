"""What InvMM can be told, and what it takes where it is told nothing: the paper's table, or what a prototype taught."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, field_validator

from diffmem.scores.base import Parameters

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser

Mode = Literal["fast", "paper"]
Prompt = Literal["caption", "null", "invert"]
T = TypeVar("T")


class InvMMParameters(Parameters):
    """None stands for the mode's own setting (see `settings_for`)."""

    mode: Mode = Field(
        "fast", description="paper: settings and procedure as published; fast: the same measure for less"
    )
    prompt: Literal["auto", "caption", "null", "invert"] = Field(
        "auto",
        description="auto: the item's caption (fast) or an inverted prompt (paper); null where there are no prompts",
    )
    steps: int | None = Field(None, ge=1, description="most optimizer steps per image (fast 200, paper 2000)")
    noises: int | None = Field(None, ge=1, description="noises per step (fast 8, paper 16 or 32)")
    every: int | None = Field(None, ge=1, description="C, steps between checks (fast 10, paper 10 or 50)")
    rate: float = Field(0.1, gt=0, description="Adam's learning rate")
    weight: float | None = Field(None, ge=0, description="first lambda (fast .1, paper 1)")
    growth: float | None = Field(None, ge=0, description="delta, added to lambda at every step (by family)")
    clamp: float | None = Field(None, gt=0, description="most weight (sigma/alpha)^2 of an epsilon error (fast 100)")
    similarity: str | None = Field(
        None, description="descriptor of the success test (fast l2-tiled, which is offline; paper sscd)"
    )
    weights: str = Field(
        "", description="file of the descriptor's weights, where it needs one (paper: disc_large of SSCD)"
    )
    sha256: str = Field("", description="checksum that this file must have, where none is known here")
    beta: float | None = Field(None, description="similarity that counts as reproduced (l2-tiled .925, sscd .5)")
    samples: int = Field(8, ge=1, description="samples that must all be similar")
    sampler: Literal["ddim", "heun"] = Field("ddim", description="of the check; ddim is Euler for flow models")
    sampler_steps: int | None = Field(None, ge=1, description="of the check (fast 20, paper 50 or 200)")
    guidance: tuple[float, ...] | None = Field(
        None, description="scales tried at the check (fast 1/2/4/7, paper 1 to 7)"
    )
    rows: int | None = Field(None, ge=1, description="prompt rows to invert (fast 10, paper 75)")
    halvings: int = Field(5, ge=0, description="bisection steps of the refinement, about one check each")
    one_first: bool | None = Field(None, description="check one sample, the others only if it passes (fast)")
    skip: bool | None = Field(None, description="no check while the loss says that it would fail (fast)")
    give_up: float | None = Field(
        None,
        ge=0,
        lt=0.5,
        description="early infinity: chance, over the whole search, of ending it although its loss falls fast enough "
        "(0, the default: never)",
    )
    keep: bool = Field(False, description="keep mu and log_var of every image")

    @field_validator("guidance", mode="before")
    @classmethod
    def _one_scale(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, list | tuple) else (value,)


@dataclass(frozen=True)
class Settings:
    """The settings of one model, all resolved; names as in `InvMMParameters`.

    Attributes:
        published: the released procedure. Times as training draws them (else stratified over the sampler's range); a
            prompt drawn per noise (else per step) from all tokens; new noises and a new prompt at every check (else the
            same), whose DDIM begins at the noisiest time (else where the model's sampler does); an inverted prompt is
            checked as drawn (else as its likeliest tokens, too).
        prompt: what the network is conditioned on.
        improvement: xi, what counts as an improvement of the mean loss; relative if `relative`.
        window: steps of the mean loss.
    """

    published: bool
    prompt: Prompt
    steps: int
    noises: int
    every: int
    weight: float
    growth: float
    clamp: float | None
    sampler_steps: int
    guidance: tuple[float, ...]
    rows: int
    one_first: bool
    skip: bool
    give_up: float
    improvement: float
    relative: bool
    window: int = 100


def settings_for(denoiser: Denoiser, given: InvMMParameters) -> Settings:
    """Settings by family and mode.

    Paper (batch, C, delta, check sampler): unconditional pixels 32, 50, 1e-4, DDIM 200; unconditional latents 16, 10,
    5e-4, DDIM 50; text-to-image 16, 50, 1e-3, DDIM 50 at guidance 1 ... 7; flow the same with Euler at 1 ... 5. All:
    lambda 1, xi 1e-3, window 100, 2000 steps, t uniform, an inverted prompt where there is one.
    """
    paper, text = given.mode == "paper", denoiser.conditional
    flow = denoiser.schedule.kind == "flow"
    if text:
        noises, every, growth, steps, top = 16, 50, 1e-3, 50, 5 if flow else 7
    elif denoiser.space == "pixel":
        noises, every, growth, steps, top = 32, 50, 1e-4, 200, 1
    else:
        noises, every, growth, steps, top = 16, 10, 5e-4, 50, 1
    scales = tuple(float(g) for g in range(1, top + 1))
    if not paper:
        noises, every, growth, steps = 8, 10, 1e-4, 20
        scales = tuple(g for g in (1.0, 2.0, 4.0, 7.0) if g <= top)
    prompt: Prompt = "null"
    if text:
        prompt = given.prompt if given.prompt != "auto" else ("invert" if paper else "caption")
    guided = text and prompt != "null" and denoiser.unconditional_branch
    return Settings(
        published=paper,
        prompt=prompt,
        steps=given.steps or (2000 if paper else 200),
        noises=given.noises or noises,
        every=given.every or every,
        weight=_or(given.weight, 1.0 if paper else 0.1),
        growth=_or(given.growth, growth),
        clamp=given.clamp or (None if paper else 100.0),
        sampler_steps=given.sampler_steps or steps,
        guidance=(given.guidance or scales) if guided else (1.0,),
        rows=given.rows or (75 if paper else 10),
        one_first=_or(given.one_first, not paper),
        skip=_or(given.skip, not paper),
        give_up=_or(given.give_up, 0.0),
        improvement=1e-3 if paper else 0.05,
        relative=not paper,
    )


def _or(given: T | None, otherwise: T) -> T:
    return otherwise if given is None else given
