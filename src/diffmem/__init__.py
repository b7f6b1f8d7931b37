"""diffmem: does a diffusion model reproduce its training images?

Ten names are the front door: Target, Sampling, load_prompts, load_images, score, measure, audit, mitigate, guard, open_run.
Every other verb is here too, under its name on the command line (`diffmem.compare`, `diffmem.train`, ...), and the rest under
scores, mitigations, copies, training and experiments. All are imported on first use (PEP 562), so that `import diffmem`
costs no torch.
"""

# ruff: noqa: F401 - the imports for type checkers say where each name is
from __future__ import annotations

import importlib
import warnings

TYPE_CHECKING = False  # typing is not imported: with `python -m` the current folder would be looked at first
if TYPE_CHECKING:
    from diffmem import copies, experiments, scores, training
    from diffmem import mitigation as mitigations
    from diffmem.data.images import load_images
    from diffmem.data.prompts import load_prompts
    from diffmem.experiments._export import export_run as export
    from diffmem.experiments._run import open_run
    from diffmem.experiments.audit.run import audit
    from diffmem.experiments.canaries.run import measure_canaries as canaries
    from diffmem.experiments.claim.run import claim
    from diffmem.experiments.curate.run import curate
    from diffmem.experiments.evaluate.compare import compare
    from diffmem.experiments.evaluate.runs import evaluate
    from diffmem.experiments.extract.run import extract_images as extract
    from diffmem.experiments.lab.run import run_lab as lab
    from diffmem.experiments.mitigate.run import mitigate
    from diffmem.experiments.monitor.run import monitor
    from diffmem.experiments.remove.run import remove
    from diffmem.experiments.review.serve import review
    from diffmem.experiments.robustness.run import robustness
    from diffmem.experiments.seal.run import seal, verify
    from diffmem.models.generation import Sampling
    from diffmem.models.target import Target
    from diffmem.serving.guard import guard
    from diffmem.stages.generate import generate
    from diffmem.stages.match.folders import match_images as match
    from diffmem.stages.match.stage import index
    from diffmem.stages.measure.measure import measure
    from diffmem.stages.score.localize import localize
    from diffmem.stages.score.score import score
    from diffmem.stages.score.screen import calibrate
    from diffmem.training.loop import train

__version__ = "0.2.0"

__all__ = [
    "Sampling", "Target", "audit", "guard", "load_images", "load_prompts", "measure", "mitigate", "open_run", "score",
]  # fmt: skip

_DOOR = {
    "Sampling": "diffmem.models.generation",
    "Target": "diffmem.models.target",
    "audit": "diffmem.experiments.audit.run",
    "guard": "diffmem.serving.guard",
    "load_images": "diffmem.data.images",
    "load_prompts": "diffmem.data.prompts",
    "measure": "diffmem.stages.measure.measure",
    "mitigate": "diffmem.experiments.mitigate.run",
    "open_run": "diffmem.experiments._run",
    "score": "diffmem.stages.score.score",
}
"""Name -> module, or module:attribute where the attribute is called otherwise."""

_VERBS = {
    "calibrate": "diffmem.stages.score.screen",
    "canaries": "diffmem.experiments.canaries.run:measure_canaries",
    "claim": "diffmem.experiments.claim.run",
    "compare": "diffmem.experiments.evaluate.compare",
    "curate": "diffmem.experiments.curate.run",
    "evaluate": "diffmem.experiments.evaluate.runs",
    "export": "diffmem.experiments._export:export_run",
    "extract": "diffmem.experiments.extract.run:extract_images",
    "generate": "diffmem.stages.generate",
    "index": "diffmem.stages.match.stage",
    "lab": "diffmem.experiments.lab.run:run_lab",
    "localize": "diffmem.stages.score.localize",
    "match": "diffmem.stages.match.folders:match_images",
    "monitor": "diffmem.experiments.monitor.run:monitor",
    "remove": "diffmem.experiments.remove.run",
    "review": "diffmem.experiments.review.serve",
    "robustness": "diffmem.experiments.robustness.run",
    "seal": "diffmem.experiments.seal.run",
    "train": "diffmem.training.loop",
    "verify": "diffmem.experiments.seal.run",
}

_ROOMS = {
    "copies": "diffmem.copies",
    "experiments": "diffmem.experiments",
    "mitigations": "diffmem.mitigation",
    "scores": "diffmem.scores",
    "training": "diffmem.training",
}

_OLD = {
    "Generation": ("diffmem.stages.generate", "diffmem.experiments.Generation"),
    "LabPlan": ("diffmem.experiments.lab.plan", "diffmem.experiments.LabPlan"),
    "SCORES": ("diffmem.scores", "diffmem.scores.SCORES"),
    "TrainPlan": ("diffmem.training.plan", "diffmem.training.TrainPlan"),
    "audit_lora": (
        "diffmem.experiments.against.lora",
        "diffmem.audit(..., base=...), or diffmem.experiments.audit_lora for a LoRA file",
    ),
    "compare_runs": ("diffmem.experiments.evaluate.compare", "diffmem.compare, which is after minus before"),
    "evaluate_run": ("diffmem.experiments.evaluate.runs:evaluate", "diffmem.evaluate"),
    "extract_images": ("diffmem.experiments.extract.run", "diffmem.extract"),
    "load_plan": ("diffmem.training.plan", "diffmem.training.load_plan"),
    "match_images": ("diffmem.stages.match.folders", "diffmem.match"),
    "measure_canaries": ("diffmem.experiments.canaries.run", "diffmem.canaries"),
    "parse_mitigation": ("diffmem.mitigation.spec", "diffmem.mitigations, for example RandomTokens(count=2)"),
    "run_lab": ("diffmem.experiments.lab.run", "diffmem.lab"),
    "write_report": ("diffmem.report.html", "diffmem.open_run(DIR).report()"),
}
"""Names of 0.1.0, for one release more: where they are, and what to use instead."""


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return importlib.import_module(_ROOMS[name])
    if name in _OLD:
        path, instead = _OLD[name]
        warnings.warn(f"diffmem.{name} is deprecated; use {instead}.", DeprecationWarning, stacklevel=2)
        return _load(path, name)
    if name not in _DOOR and name not in _VERBS:
        raise AttributeError(f"module 'diffmem' has no attribute '{name}'")
    value = _load(_DOOR.get(name) or _VERBS[name], name)
    globals()[name] = value
    return value


def _load(path: str, name: str) -> object:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
