"""diffmem: does a diffusion model reproduce its training images?

The public names are imported on first use (PEP 562), so that `import diffmem` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffmem.data.images import load_images
    from diffmem.data.prompts import load_prompts
    from diffmem.experiments.against.run import audit_lora
    from diffmem.experiments.audit.run import audit
    from diffmem.experiments.canaries.run import measure_canaries
    from diffmem.experiments.curate.run import curate
    from diffmem.experiments.evaluate.compare import compare_runs
    from diffmem.experiments.evaluate.runs import evaluate as evaluate_run
    from diffmem.experiments.extract.run import extract_images
    from diffmem.experiments.lab.plan import LabPlan
    from diffmem.experiments.lab.run import run_lab
    from diffmem.experiments.mitigate.run import mitigate
    from diffmem.experiments.robustness.run import robustness
    from diffmem.mitigation.spec import parse_mitigation
    from diffmem.models.generation import Sampling
    from diffmem.models.target import Target
    from diffmem.report.html import write_report
    from diffmem.scores import SCORES
    from diffmem.serving.guard import guard
    from diffmem.stages.generate import Generation, generate
    from diffmem.stages.match.folders import match_images
    from diffmem.stages.measure.measure import measure
    from diffmem.stages.score.score import score
    from diffmem.training.loop import train
    from diffmem.training.plan import TrainPlan, load_plan

__version__ = "0.1.0"

_PUBLIC = {
    "Generation": "diffmem.stages.generate",
    "LabPlan": "diffmem.experiments.lab.plan",
    "SCORES": "diffmem.scores",
    "Sampling": "diffmem.models.generation",
    "Target": "diffmem.models.target",
    "TrainPlan": "diffmem.training.plan",
    "audit": "diffmem.experiments.audit.run",
    "audit_lora": "diffmem.experiments.against.run",
    "compare_runs": "diffmem.experiments.evaluate.compare",
    "curate": "diffmem.experiments.curate.run",
    "evaluate_run": "diffmem.experiments.evaluate.runs:evaluate",
    "extract_images": "diffmem.experiments.extract.run",
    "generate": "diffmem.stages.generate",
    "guard": "diffmem.serving.guard",
    "load_images": "diffmem.data.images",
    "load_plan": "diffmem.training.plan",
    "load_prompts": "diffmem.data.prompts",
    "match_images": "diffmem.stages.match.folders",
    "measure": "diffmem.stages.measure.measure",
    "measure_canaries": "diffmem.experiments.canaries.run",
    "mitigate": "diffmem.experiments.mitigate.run",
    "parse_mitigation": "diffmem.mitigation.spec",
    "robustness": "diffmem.experiments.robustness.run",
    "run_lab": "diffmem.experiments.lab.run",
    "score": "diffmem.stages.score.score",
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
    module, _, attribute = _PUBLIC[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
