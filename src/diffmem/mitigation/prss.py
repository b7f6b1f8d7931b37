"""PRSS (Chen et al., CVPR 2025): guide towards another wording, away from the memorized one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pydantic import Field

from diffmem.errors import MitigationRefused
from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.first_step import WEN_PULL, Moment, epsilon_factor
from diffmem.mitigation.guidance import GuidanceMitigation
from diffmem.mitigation.noise import norms
from diffmem.mitigation.rewrite import rewriting_function
from diffmem.mitigation.steering import Decision, Step
from diffmem.mitigation.words import inserted, random_tokens
from diffmem.models.denoiser import Denoiser
from diffmem.models.pipelines.calls import Call
from diffmem.randomness import generator

Alternatives = Callable[[str], Sequence[str] | str]


class PrssParameters(Parameters):
    """Which prompts are touched, how another wording is found, and from where on the old one is the anchor."""

    pull: float = Field(WEN_PULL, ge=0, description="prompts that pull less at the first step are left alone")
    found: float = Field(0.102, ge=0, description="the search ends at a wording that pulls this little (1 on SD 1.4)")
    candidates: int = Field(
        5, ge=1, description="wordings tried; the one that pulls least is taken if none is low enough"
    )
    tokens: int = Field(4, ge=1, description="random tokens in a wording, where no function for wordings is given")
    low: float = Field(
        0.0234, ge=0, description="re-anchoring begins: root mean square difference in epsilon (3 on SD 1.4)"
    )
    high: float = Field(0.0391, gt=0, description="re-anchoring is complete: the same (5 on SD 1.4)")
    function: str = Field("", description="package.module:name of a function from a prompt to its wordings, best first")
    seed: int = Field(0, description="root seed of the random tokens")


class Prss(GuidanceMitigation):
    """Semantic search for another wording at the first step, then guidance re-anchored at the memorized prompt.

    Args:
        parameters: see there.
        alternatives: from a prompt to wordings of the same meaning, best first (the paper asks a language model);
            without it the wordings are the prompt with random tokens added.
    """

    about: ClassVar[About] = About(
        name="prss",
        level="guidance",
        summary="guided towards another wording of the prompt, with the memorized wording as the anchor it leads away from",
        formula="eps = eps_o + s' (eps_m - eps_o) + (s - s') (eps_m - eps_u), s' = 1 ... s for ||eps_m - eps_u|| = l ... m",
        reference="Chen et al., CVPR 2025, arXiv 2504.18032 (wordings from a language model there)",
        cost="1 forward per step, up to 2 + candidates more at the start",
        memory="none",
        sweep="l 3, m 5, found 1 on SD 1.4",
        fails_when="the other wording calls up the same image; l and m hold for latents of SD's size",
    )
    neutral: ClassVar = {"pull": 1e9}

    def __init__(self, parameters: PrssParameters | None = None, alternatives: Alternatives | None = None) -> None:
        self.settings = parameters or PrssParameters()
        super().__init__(self.settings)
        self._alternatives = alternatives or rewriting_function(self.settings.function)

    def check(self, denoiser: Denoiser) -> None:
        """Refuses models without a text prompt."""
        super().check(denoiser)
        if self._alternatives is None and not denoiser.has_tokenizer:
            raise MitigationRefused(
                "prss adds random tokens of a tokenizer, and this model brings none: give a function for the wordings "
                "(function=package.module:name)."
            )
        if "prompt" not in denoiser.generation_arguments([]):
            raise MitigationRefused(
                "prss looks for another wording, but this model takes class labels: use another mitigation of the guidance "
                "(transition-static, opposite-guidance)."
            )

    def steering(self, call: Call) -> Callable[[Step], Decision] | None:
        """Search the wordings, then combine three branches at every step."""
        with torch.inference_mode(False), torch.no_grad():
            touched, wordings = self._search(call)
        if not bool(touched.any()):
            return None
        cond = call.denoiser.encode_prompts(wordings)
        rows = touched.nonzero()[:, 0]

        def decide(step: Step) -> Decision:
            at = rows.to(step.x.device)
            with torch.no_grad():
                other = call.denoiser.predict(step.x[at], step.t, cond)
            call.record.nfe.add(forward=len(rows))
            out = step.guided(call.guidance)
            out[at] = self._combine(call, step.t, step.conditional[at], step.unconditional[at], other)
            return out, touched

        return decide

    def _combine(
        self, call: Call, t: float, original: torch.Tensor, unconditional: torch.Tensor, other: torch.Tensor
    ) -> torch.Tensor:
        """The formula, per sample; l and m are held against the difference converted to epsilon."""
        size = norms(other - unconditional) * epsilon_factor(call.denoiser, t) / original[0].numel() ** 0.5
        scale, low, high = call.guidance, self.settings.low, self.settings.high
        start = (scale * low - high) / (scale - 1)
        part = ((size - start) / (high - start) * scale).clamp(max=scale)
        part = part.reshape(-1, *[1] * (original.ndim - 1))
        anchored = original + part * (other - original) + (scale - part) * (other - unconditional)
        plain = unconditional + scale * (other - unconditional)
        return torch.where((size > low).reshape(part.shape), anchored, plain)

    def _search(self, call: Call) -> tuple[torch.Tensor, list[str]]:
        """Which images are touched [B], and their wordings, in order."""
        settings, texts, names = self.settings, call.texts, call.names()
        moment = Moment(call.denoiser, call.noise(), call.first_time, call.record)
        everyone = torch.arange(call.size)

        def pull(prompts: Sequence[str], rows: torch.Tensor) -> torch.Tensor:
            call.record.nfe.add(forward=len(rows))
            cond = call.denoiser.encode_prompts(prompts)
            return (moment.norm(moment.conditional(cond, rows), rows) * moment.factor).cpu()

        before = pull(texts, everyone)
        touched = before > settings.pull
        wordings: list[str] = []
        for row in range(call.size):
            note = {"prompt": texts[row], "pull": float(before[row]), "changed": None, "pull_changed": None}
            call.record.items.append(note)
            if not bool(touched[row]):
                continue
            best, chosen = float("inf"), texts[row]
            for wording in self._wordings(call, texts[row], names[row])[: settings.candidates]:
                found = float(pull([wording], everyone[row : row + 1])[0])
                if found < best:
                    best, chosen = found, wording
                if best <= settings.found:
                    break
            note |= {"changed": chosen, "pull_changed": best}
            wordings.append(chosen)
        return touched, wordings

    def _wordings(self, call: Call, prompt: str, name: tuple[str | int, ...]) -> Sequence[str]:
        if self._alternatives is not None:
            given = self._alternatives(prompt)
            return [given] if isinstance(given, str) else list(given)
        found = []
        for number in range(self.settings.candidates):
            random = generator(self.settings.seed, "mitigation", self.name, number, *name)
            found.append(inserted(prompt, random_tokens(call.pipeline.tokenizer, self.settings.tokens, random), random))
        return found
