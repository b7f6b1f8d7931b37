"""What a LoRA's header or name says of its base and its use, where that does not go with the pipeline."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_BASES = (
    (r"xl", r"StableDiffusionXL", None), (r"v3|sd3", r"StableDiffusion3", None), (r"flux", r"Flux", None),
    (r"v1|sd_1|sd1", r"StableDiffusion(?!XL|3)", 768), (r"v2|sd_2|sd2", r"StableDiffusion(?!XL|3)", 1024),
)  # fmt: skip
"""(in the architecture that a header names, the pipeline's class, the width of its text where classes are shared)."""
_FEW_STEPS = re.compile(
    r"(?<![a-z])(lcm|turbo|lightning|hyper-?sd|dmd2?|tcd|pcm|flash|schnell)(?![a-z])", re.IGNORECASE
)


def remarks(name: str, header: Mapping[str, str], pipeline: Any) -> list[str]:
    """Sentences about a LoRA that fits the pipeline's shapes but may not be meant for it.

    Args:
        name: of the LoRA.
        header: of its file.
        pipeline: that it is loaded into.
    """
    said = []
    base = header.get("modelspec.architecture") or header.get("ss_base_model_version") or ""
    if base and not _is_for(base.lower(), pipeline):
        said.append(f"the LoRA {name} was trained for {base}, says its header, and this is a {type(pipeline).__name__}")
    trained, used = _prediction(header), _scheduler_prediction(pipeline)
    if trained and used and trained != used:
        said.append(
            f"the LoRA {name} was trained on a model that predicts {trained}, says its header, and this predicts {used}"
        )
    module, arguments = header.get("ss_network_module", ""), header.get("ss_network_args", "")
    if "dylora" in (module + arguments).lower():
        said.append(
            f"the LoRA {name} was trained as a DyLoRA, says its header: it is loaded at its full rank, as by everything that "
            "loads it; the smaller ranks that can be cut out of it are other models"
        )
    titles = (name, header.get("modelspec.title", ""), header.get("ss_output_name", ""))
    fast = next((found for title in titles if (found := _FEW_STEPS.search(title))), None)
    if fast:
        said.append(
            f"the LoRA {name} is called after {fast[0]}, a way to sample in few steps: give the steps, guidance and scheduler "
            "that it is meant for, and do not take scores of the guided model for scores of that sampling"
        )
    return said


def _is_for(base: str, pipeline: Any) -> bool:
    kind = type(pipeline).__name__
    for pattern, classes, width in _BASES:
        if re.search(pattern, base):
            network = pipeline.components.get("unet")
            own = getattr(getattr(network, "config", None), "cross_attention_dim", None)
            same_width = width is None or own not in (768, 1024) or own == width
            return re.match(classes, kind) is not None and same_width
    return True


def _prediction(header: Mapping[str, str]) -> str | None:
    if header.get("ss_v_parameterization", "").lower() == "true" or header.get("modelspec.prediction_type") == "v":
        return "v_prediction"
    if (
        header.get("ss_v_parameterization", "").lower() == "false"
        or header.get("modelspec.prediction_type") == "epsilon"
    ):
        return "epsilon"
    return None


def _scheduler_prediction(pipeline: Any) -> str | None:
    return getattr(getattr(getattr(pipeline, "scheduler", None), "config", None), "prediction_type", None)
