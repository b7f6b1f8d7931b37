"""Guarded pipelines with a threshold between their calmest and loudest prompt, and other callers of the same network."""

from __future__ import annotations

import numpy as np
import torch

import diffmem

PROMPTS = [f"{a} {b}" for a in ("sea", "hill", "wood", "lake") for b in ("red", "blue", "dark", "old", "wet", "big")]


def shares(pipe, prompt, **more):
    return pipe(prompt, **{"num_inference_steps": 3, "output_type": "np", "generator": seeded()} | more)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Made:
    """A pipeline, a threshold between its calmest and its loudest prompt, and embeddings of both."""

    def __init__(self, pipe):
        self.pipe = pipe
        calibration = diffmem.guard.calibrate(pipe, PROMPTS, 0.2, draws=1)
        with diffmem.guard(pipe, threshold=calibration, action="log") as seen:
            for prompt in PROMPTS:
                shares(pipe, prompt, num_inference_steps=1)
        values = [d.value for d in seen.decisions]
        assert len(values) == len(PROMPTS)
        ranked = np.argsort(values)
        self.calm, self.loud = PROMPTS[ranked[0]], PROMPTS[ranked[-1]]
        middle = (values[ranked[-1]] + values[ranked[-2]]) / 2
        self.threshold = calibration.threshold.model_copy(update={"value": float(middle)})

    def guard(self, action="refuse", **more):
        return diffmem.guard(self.pipe, threshold=self.threshold, action=action, **more)

    def embedding(self, prompt):
        return self.pipe.encode_prompt(prompt, "cpu", 1, False)[0]


def by_components(pipe):
    from diffusers import StableDiffusionPipeline

    other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return lambda prompt, **more: shares(other, prompt, **more)


def bound(pipe):
    call = type(pipe).__mro__[1].__call__ if "_diffmem_layers" in vars(type(pipe)) else type(pipe).__call__
    return lambda prompt, **more: shares(lambda *a, **k: call(pipe, *a, **k), prompt, **more)
