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
    from diffmem.engine.measure import measure
    from diffmem.engine.score_prompts import score
    from diffmem.models.target import Target
    from diffmem.scores import SCORES
    from diffmem.serving.guard import guard

__version__ = "0.1.0"

_PUBLIC = {
    "SCORES": "diffmem.scores",
    "Target": "diffmem.models.target",
    "audit": "diffmem.engine.audit",
    "audit_lora": "diffmem.engine.against",
    "guard": "diffmem.serving.guard",
    "load_images": "diffmem.data.images",
    "load_prompts": "diffmem.data.prompts",
    "measure": "diffmem.engine.measure",
    "score": "diffmem.engine.score_prompts",
}

__all__ = [
    "SCORES",
    "Target",
    "__version__",
    "audit",
    "audit_lora",
    "guard",
    "load_images",
    "load_prompts",
    "measure",
    "score",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'diffmem' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
