"""What the tests of mitigations share: the pipelines, one setting of every method, and what must be left behind."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from tests.tiny import picture, tiny_sd
from tests.tiny_families import FAMILIES

from diffmem.mitigation import MITIGATIONS
from diffmem.mitigation.amg import Amg
from diffmem.mitigation.spec import parse_mitigation
from diffmem.models.generation import Sampling
from diffmem.models.target import Target

PROMPTS = ["a red fox", "the lazy cat"]
PLACES = {"flux": {"height": 16, "width": 16}, "sd3": {"height": 16, "width": 16}}
BUILDERS = {"sd": tiny_sd, "sd-v": lambda: tiny_sd("v_prediction", zero_snr=True), **FAMILIES}
SCALE = 7.5


def backwards(prompt):
    return prompt[::-1]


STRONG = {
    "rewrite": f"function={__name__}:backwards", "sail": "sharpness=0.0001,candidates=2,steps=2", "amg": "threshold=-1",
    "prss": "pull=0,candidates=2", "wen": "pull=0.001,steps=3", "anisotropy": "target=-1,steps=3",
    "low-noise-norm": "pull=0.0001,steps=3",
    "han-sample": "pull=0.0001,lr=0.1,steps=3",
}  # fmt: skip


def strong(name):
    """The method with parameters that change the image of a network with random weights, in few steps."""
    return built(f"{name}:{STRONG.get(name, '')}")


def neutral(name):
    parts = ",".join(f"{k}={v}" for k, v in MITIGATIONS.get(name).neutral.items())
    return built(f"{name}:{parts}")


def built(text):
    made = parse_mitigation(text)
    return Amg(made.settings, pictures()) if made.name == "amg" else made


@lru_cache
def pictures():
    return tuple(picture(seed) for seed in range(6))


@lru_cache
def target(family="sd"):
    made = Target.from_pipeline(BUILDERS[family]())
    generate(made, family, steps=1)  # the first call of a pipeline sets attributes of its own
    return made


def prompts(family):
    return ["207", "3"] if family == "dit" else PROMPTS


def generate(made, family="sd", rows=(0, 1), steps=3, guidance=SCALE):
    sampling = Sampling(steps=steps, guidance=guidance, **PLACES.get(family, {}))
    chosen = [prompts(family)[i] for i in rows]
    return [np.asarray(image, int) for image in made.generate(chosen, list(rows), 0, sampling)]


def traces(pipe):
    """Everything that a mitigation could leave behind: class, attributes, hooks, processors, gradients, config."""
    found = {"class": type(pipe), "attributes": set(vars(pipe)), "config": dict(pipe.config)}
    found["scheduler"] = (id(pipe.scheduler), dict(pipe.scheduler.config))
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            for path, module in part.named_modules():
                hooks = [k for k, v in vars(module).items() if "hooks" in k and v]
                found[name, path] = (type(module), hooks, set(vars(module)), module.training)
            if hasattr(part, "attn_processors"):
                found[name, "processors"] = {k: id(v) for k, v in part.attn_processors.items()}
            found[name, "gradients"] = [p.grad is None and p.requires_grad for p in part.parameters()]
            found[name, "weights"] = float(sum(p.detach().double().abs().sum() for p in part.parameters()))
    return found
