"""Signs that a model was distilled to few steps or to one guided evaluation, so that it has no unconditional branch."""

from __future__ import annotations

import re
from typing import Any

from diffmem.models.families._inputs import kind_of, network_of

_SCHEDULERS = {
    "LCMScheduler": "latent consistency",
    "TCDScheduler": "trajectory consistency",
    "FlowMatchLCMScheduler": "latent consistency",
    "SCMScheduler": "consistency (Sana Sprint)",
    "CMStochasticIterativeScheduler": "consistency",
}
_NAMES = re.compile(
    r"(?<![a-z])(turbo|lcm|lightning|schnell|hyper-?sd\w*|tcd|dmd2?|sprint|hyper|flash|distill(ed)?)(?![a-z])"
)


def distillation_of(pipeline: Any) -> str | None:
    """Why a pipeline's network counts as distilled, in words; None where nothing says so.

    Looked at: guidance embeddings in the network's config, consistency samplers, samplers set as the turbo models are
    published (Euler with trailing steps without zero terminal SNR; Flux without guidance embedding and without
    shifting), a sampler that draws noise anew at every flow step, and the name that the configs say they came from.
    """
    network = network_of(pipeline)
    config, scheduler = getattr(network, "config", {}), pipeline.scheduler
    sampler, settings = type(scheduler).__name__, scheduler.config
    if config.get("time_cond_proj_dim") is not None:
        return f"its network takes the guidance scale as an input (time_cond_proj_dim = {config['time_cond_proj_dim']})"
    if config.get("guidance_embeds"):
        return "its network takes the guidance scale as an input (guidance_embeds)"
    if pipeline.config.get("is_distilled"):
        return "its config says so (is_distilled, as FLUX.2 klein has it)"
    if sampler in _SCHEDULERS:
        return f"its sampler is a {sampler}, for {_SCHEDULERS[sampler]} models"
    if settings.get("stochastic_sampling"):
        return f"its {sampler} draws noise anew at every step (stochastic_sampling), as few-step models are run"
    if (
        sampler in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
        and settings.get("timestep_spacing") == "trailing"
        and settings.get("prediction_type", "epsilon") in ("epsilon", "sample")
        and not settings.get("rescale_betas_zero_snr")
    ):
        return f"its {sampler} has trailing steps, as the turbo and lightning models are published"
    if kind_of(network) == "FluxTransformer2DModel" and settings.get("use_dynamic_shifting") is False:
        return "it is a Flux without guidance embedding whose sampler does not shift its times, as schnell is published"
    for origin in (pipeline.config.get("_name_or_path"), config.get("_name_or_path")):
        last = str(origin or "").replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
        if _NAMES.search(last):
            return f"its configs say that it came from {last!r}"
    return None
