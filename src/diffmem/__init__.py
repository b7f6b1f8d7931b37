"""diffmem: does a diffusion model reproduce its training images?

The public names are imported on first use (PEP 562), so that `import diffmem` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffmem.data.images import load_images
    from diffmem.data.prompts import load_prompts
    from diffmem.engine.against import audit_lora
    from diffmem.engine.audit import audit
    from diffmem.engine.canaries import measure_canaries
    from diffmem.engine.curate import curate
    from diffmem.engine.evaluate import compare_runs, evaluate_run
    from diffmem.engine.extract import extract_images
    from diffmem.engine.generate import Generation, generate
    from diffmem.engine.match_folders import match_images
    from diffmem.engine.measure import measure
    from diffmem.engine.mitigate import mitigate
    from diffmem.engine.robustness import robustness
    from diffmem.engine.score_prompts import score
    from diffmem.lab.plan import LabPlan
    from diffmem.lab.run import run_lab
    from diffmem.mitigation.spec import parse_mitigation
    from diffmem.models.generation import Sampling
    from diffmem.models.target import Target
    from diffmem.report.html import write_report
    from diffmem.scores import SCORES
    from diffmem.serving.guard import guard
    from diffmem.training.loop import train
    from diffmem.training.plan import TrainPlan, load_plan

__version__ = "0.1.0"

_PUBLIC = {
    "Generation": "diffmem.engine.generate",
    "LabPlan": "diffmem.lab.plan",
    "SCORES": "diffmem.scores",
    "Sampling": "diffmem.models.generation",
    "Target": "diffmem.models.target",
    "TrainPlan": "diffmem.training.plan",
    "audit": "diffmem.engine.audit",
    "audit_lora": "diffmem.engine.against",
    "compare_runs": "diffmem.engine.evaluate",
    "curate": "diffmem.engine.curate",
    "evaluate_run": "diffmem.engine.evaluate",
    "extract_images": "diffmem.engine.extract",
    "generate": "diffmem.engine.generate",
    "guard": "diffmem.serving.guard",
    "load_images": "diffmem.data.images",
    "load_plan": "diffmem.training.plan",
    "load_prompts": "diffmem.data.prompts",
    "match_images": "diffmem.engine.match_folders",
    "measure": "diffmem.engine.measure",
    "measure_canaries": "diffmem.engine.canaries",
    "mitigate": "diffmem.engine.mitigate",
    "parse_mitigation": "diffmem.mitigation.spec",
    "robustness": "diffmem.engine.robustness",
    "run_lab": "diffmem.lab.run",
    "score": "diffmem.engine.score_prompts",
    "train": "diffmem.training.loop",
    "write_report": "diffmem.report.html",
}

__all__ = [
    "SCORES",
    "Generation",
    "LabPlan",
    "Sampling",
    "Target",
    "TrainPlan",
    "__version__",
    "audit",
    "audit_lora",
    "compare_runs",
    "curate",
    "evaluate_run",
    "extract_images",
    "generate",
    "guard",
    "load_images",
    "load_plan",
    "load_prompts",
    "match_images",
    "measure",
    "measure_canaries",
    "mitigate",
    "parse_mitigation",
    "robustness",
    "run_lab",
    "score",
    "train",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'diffmem' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
