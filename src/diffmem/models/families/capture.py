"""Any diffusers pipeline that no family knows, from what it asks its network in a run that never evaluates it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffmem.errors import GenerateOnly, ModelError
from diffmem.models.conditioning import SHAPE, Conditioning
from diffmem.models.families._captured import CapturedLatents
from diffmem.models.families._distilled import distillation_of
from diffmem.models.families._inputs import unwrapped
from diffmem.models.families._schedulers import is_flow, prediction_of, schedule_of
from diffmem.models.families._texts import quiet
from diffmem.models.loading import first_line
from diffmem.models.pipelines.latents import find_answer
from diffmem.models.pipelines.leaves import differing, joined, leaves, rebuilt, row_of
from diffmem.models.pipelines.rehearsal import Answer, Rehearsal, bound, rehearse, same_as_x, twice_as_many
from diffmem.models.pipelines.survey import EMPTY, PROMPTS, Survey, survey
from diffmem.models.schedule import FlowSchedule

NETWORKS = ("transformer", "unet")


class _NeedsMore(ModelError):
    """What a pipeline says to a prompt alone."""


class _Lacking(ModelError):
    """A package without which diffusers cannot run a pipeline."""


class Captured(CapturedLatents):
    """A pipeline seen from its calls: their arguments are replayed at any (x_t, t).

    A prompt is encoded by running the pipeline on it up to the first step, with a network that answers at once; what it
    would have been asked is the conditioning. x is laid out as the autoencoder decodes it, unpacked and unscaled.
    """

    family = "capture"
    conditional = True

    def __init__(self, pipeline: Any, more: Mapping[str, Any] | None = None) -> None:
        """Read a pipeline.

        Args:
            pipeline: of diffusers; it takes a prompt.
            more: arguments with which its call is read (a size, a guidance input); what it makes by default if None.

        Raises:
            GenerateOnly: what could not be told apart.
            ModelError: it does not run on a prompt alone.
        """
        self.pipeline = pipeline
        self._null = None
        self._cut: dict[str, str | None] = {}
        self._more: dict[str, Any] = dict(more or {})
        self._blank: Answer = same_as_x
        self._others: dict[tuple[tuple[str, Any], ...], Captured] = {}
        try:
            self._read()
        except _Lacking:
            raise
        except _NeedsMore as problem:
            raise ModelError(
                f"No family of diffmem knows a {type(pipeline).__name__}, and it does not run on a prompt alone ({problem})."
            ) from problem
        except ModelError as problem:
            raise GenerateOnly(
                f"No family of diffmem knows a {type(pipeline).__name__}, and its calls could not be captured: {problem} "
                "It generates only; its network can be wrapped with Target.from_callable."
            ) from problem

    def _read(self) -> None:
        """Everything that is known of the pipeline, from runs without the network."""
        scheduler = self.pipeline.scheduler
        networks = {name: part for name, part in self.pipeline.components.items() if _is_network(name, part)}
        if len(networks) != 1:
            found = ", ".join(f"{name}={type(part).__name__}" for name, part in networks.items()) or "none"
            raise ModelError(f"it has {len(networks)} networks ({found}); expected one.")
        self._name = next(iter(networks))
        self.prediction = prediction_of(scheduler)
        self.schedule = (
            FlowSchedule(self._total, self._sampling_times) if is_flow(scheduler) else schedule_of(scheduler)
        )
        distilled = distillation_of(self.pipeline) is not None
        try:
            self._start()
            self.seen: Survey = survey(self._run, self._takes, distilled, self._total)
            self.batches = self.seen.batches
            self.unconditional_branch = self.seen.unconditional is not None
            self._answer = find_answer(self._run, self.seen)
            self._check_levels()
            self._read_latents(self._run, self.seen.step.sample[:1], "latents" in self._takes)
        except ModelError:
            raise
        except (NameError, ImportError) as problem:  # diffusers leaves out what optional packages would define
            lost = getattr(problem, "name", None) or first_line(problem)
            raise _Lacking(
                f"diffusers runs a {type(self.pipeline).__name__} with {lost} only, which is not installed here: install the "
                "Python package that it is from."
            ) from problem
        except Exception as problem:  # whatever a pipeline says to a prompt alone
            raise _NeedsMore(first_line(problem)) from problem

    def _start(self) -> None:
        """The size of its own (`default_sample_size`), and whether it must be kept from moving that to one of a table."""
        side = self.pipeline.__dict__.get("default_sample_size")
        asked = "height" in self._more or "width" in self._more
        if side is not None and {"height", "width"} <= self._takes.keys() and not asked:
            pixels = side * getattr(self.pipeline, "vae_scale_factor", 1)
            self._more |= {"height": pixels, "width": pixels}
        binned = "use_resolution_binning" in self._takes
        try:
            made = self._first_run()
            moved = asked or (side is not None and made.steps[0].sample.shape[-1] != side)
        except ValueError:  # there may be no table for a model of this size
            if not binned:
                raise
            moved = True
        if binned and moved:
            self._more["use_resolution_binning"] = False
            self._first_run()

    def _first_run(self) -> Rehearsal:
        """A run whose network answers in the shape of its input, else in twice as many channels (a learned variance)."""
        try:
            return self._run([PROMPTS[0]])
        except Exception as problem:  # a pipeline that splits the answer raises anything where it is of another shape
            self._blank = twice_as_many
            try:
                return self._run([PROMPTS[0]])
            except Exception as other:  # nor did that help: `_read` says the first problem, whose cause names this one
                self._blank = same_as_x
                raise problem from other

    @classmethod
    def variants(cls) -> dict[str, bool]:
        """Pipelines with both branches and those with one."""
        return {"capture (guided)": True, "capture (one branch)": False}

    @staticmethod
    def fits(pipeline: Any) -> bool:
        """Whether a pipeline has a network, a scheduler and takes a prompt."""
        from diffmem.models.generation import accepted

        parts = {name for name, part in pipeline.components.items() if part is not None}
        return bool(parts & set(NETWORKS)) and "scheduler" in parts and "prompt" in accepted(pipeline)

    @property
    def network(self) -> Any:
        """The network itself."""
        return unwrapped(getattr(self.pipeline, self._name))

    @property
    def _takes(self) -> Mapping[str, Any]:
        from diffmem.models.generation import accepted

        return accepted(self.pipeline)

    @property
    def _total(self) -> float:
        return float(self.pipeline.scheduler.config.get("num_train_timesteps", 1000))

    def _run(self, prompts: list[str], steps: int = 1, **more: Any) -> Rehearsal:
        """A run on some prompts up to a step, or to the autoencoder."""
        own = {name: more.pop(name) for name in ("answer", "last", "autoencoder") if name in more}
        own.setdefault("answer", self._blank)
        arguments = {"prompt": list(prompts), "num_inference_steps": max(steps, 3)} | self._more | more
        if "generator" in self._takes:
            arguments.setdefault("generator", torch.Generator("cpu").manual_seed(0))
        with quiet():
            return rehearse(self.pipeline, self._name, arguments, steps=steps, **own)

    def _sampling_times(self, steps: int) -> list[float]:
        with quiet():
            found = self._run([PROMPTS[0]], steps=steps, num_inference_steps=steps, **self.seen.guiding)
        return [step.t for step in found.steps]

    def _check_levels(self) -> None:
        """The times must fall, and a flow scheduler's must be its noise levels."""
        steps = self._run([PROMPTS[0]], steps=3).steps
        if steps[0].t <= steps[-1].t:
            raise ModelError(
                f"its scheduler's times do not fall from noise to image ({steps[0].t:g} to {steps[-1].t:g})."
            )
        for step in steps if is_flow(self.pipeline.scheduler) else ():
            if step.level is not None and abs(step.level * self._total - step.t) > 2e-3 * self._total:
                raise ModelError(
                    f"its scheduler calls the noise level {step.level:g} the time {step.t:g} of {self._total:g}."
                )

    def under(self, height: int | None, width: int | None, guidance: float | None) -> Captured:
        """The same pipeline read at another size, and at another guidance where that is an input of its one branch."""
        one = self.seen.unconditional is None and "guidance_scale" in self._takes
        asked = {"height": height, "width": width, "guidance_scale": guidance if one else None}
        more = {name: value for name, value in asked.items() if value is not None and self._more.get(name) != value}
        if not more:
            return self
        key = tuple(sorted(more.items()))
        if key not in self._others:
            self._others[key] = Captured(self.pipeline, self._more | more)
        return self._others[key]

    def rows_per_step(self, guidance: float | None) -> int:
        """Rows of the network in the first step of a run at this guidance; counted, without evaluating it."""
        told = self.guidance_arguments(guidance, None, 1)
        step = self._run([PROMPTS[0]], **{name: value for name, value in told.items() if name in self._takes}).steps[0]
        return sum(len(leaves(call.arguments)[self.seen.x]) for call in step.calls)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """One run of the pipeline per prompt, to its first step; {argument of the network: what it is given}."""
        rows = [self._encoded(prompt) for prompt in prompts]
        cond = Conditioning.cat([self._conditioning([row]) for row in rows])
        return Conditioning(
            cond.tensors, len(prompts), tuple(self._cut_off(p, r) for p, r in zip(prompts, rows, strict=True))
        )

    def null(self) -> Conditioning:
        """What the branch is given that the prompt does not reach; the empty prompt's where there is no such branch."""
        if self._null is None:
            where = self.seen.unconditional
            self._null = (
                self.encode_prompts([""])
                if where is None
                else self._conditioning([self.seen.at(where, self.seen.step)])
            )
        return self._null

    def _encoded(self, prompt: str) -> dict[str, Any]:
        step = self._run([prompt], **self.seen.guiding).steps[0]
        return self.seen.at(self.seen.conditional, step)

    def _conditioning(self, rows: Sequence[Mapping[str, Any]]) -> Conditioning:
        example = self.seen.at(self.seen.conditional, self.seen.step)
        known = {self.seen.x, self.seen.times.name, *self.seen.prompted}
        for row in rows:
            strange = differing(example, row) - known
            changed = [p for p in self.seen.prompted if p not in self.seen.ragged and row[p].shape != example[p].shape]
            if strange or changed:
                raise ModelError(
                    f"For this prompt the network's {', '.join(sorted([*strange, *changed]))} change in a way that was not "
                    "seen when the pipeline was opened, so the replay would be of another prompt."
                )
        return self._tensors(rows)

    def _tensors(self, rows: Sequence[Mapping[str, Any]]) -> Conditioning:
        tensors = {path: torch.stack([row[path] for row in rows]) for path in self.seen.prompted}
        for path in self.seen.ragged:
            tensors[path + SHAPE] = torch.tensor([list(row[path].shape) for row in rows], device=tensors[path].device)
        return Conditioning(tensors, len(rows))

    def _cut_off(self, prompt: str, row: Mapping[str, Any]) -> str | None:
        """The text that no encoder reads: the longest end without which the network is asked the same."""
        if len(prompt.encode()) <= 60:
            return None
        if prompt not in self._cut:
            whole = self._conditioning([row]).tensors

            def same(text: str) -> bool:
                return not differing(whole, self._conditioning([self._encoded(text)]).tensors)

            low, high = 0, len(prompt)
            if same(prompt + " zebra"):
                while low < high:
                    middle = (low + high) // 2
                    low, high = (low, middle) if same(prompt[:middle]) else (middle + 1, high)
                self._cut[prompt] = prompt[low:].strip() or None
            else:
                self._cut[prompt] = None
        return self._cut[prompt]

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The network on the captured arguments, with x, t and the prompt's in their places; one call per shape of these."""
        rows = [{path: self._trimmed(path, cond, i) for path in self.seen.prompted} for i in range(len(x))]
        groups: dict[Any, list[int]] = {}
        whole = [path for path in self.seen.prompted if self.seen.kinds[path] == "whole"]
        for i, row in enumerate(rows):
            key = (
                *(tuple(v.shape) for v in row.values()),
                *(row[path].detach().cpu().numpy().tobytes() for path in whole),
            )
            groups.setdefault(key, []).append(i)
        parts = [self._ask(x[index], t[index], [rows[i] for i in index]) for index in groups.values()]
        back = torch.tensor([i for index in groups.values() for i in index]).argsort().to(x.device)
        return torch.cat(parts)[back]

    def _trimmed(self, path: str, cond: Conditioning, row: int) -> torch.Tensor:
        value = cond.tensors[path][row]
        if path in self.seen.ragged:
            value = value[tuple(slice(int(n)) for n in cond.tensors[path + SHAPE][row])]
        return value

    def _ask(self, x: torch.Tensor, t: torch.Tensor, rows: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
        seen = self.seen
        example = seen.at(seen.conditional, seen.step)
        values: dict[str, Any] = {}
        for path, value in example.items():
            kind = seen.kinds[path]
            if path == seen.x:
                own = self._layout.gathered(x)
                values[path] = joined([row.reshape(value.shape).to(value.dtype) for row in own], kind)
            elif path == seen.times.name:
                values[path] = seen.times.of(t)
            elif path in seen.prompted:
                values[path] = joined([row[path].to(value.dtype) for row in rows], kind)
            else:
                values[path] = joined([value] * len(x), kind)
        output = self.network(**rebuilt(seen.example.arguments, values))
        return self.read_output(output[0] if isinstance(output, tuple) else output.sample)

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """(x, t, conditioning tensors) of one call of the network."""
        found = leaves(bound(self.network, args, kwargs))
        given = found[self.seen.x]
        rows = list(given)
        if rows[0].numel() != int(torch.Size(self._layout.own).numel()):
            raise ModelError(
                f"This pipeline was captured at {self.sample_shape}; images of another size cannot be compared."
            )
        own = torch.stack([row.reshape(self._layout.own) for row in rows])
        kinds, prompted = self.seen.kinds, self.seen.prompted
        each = [{path: row_of(found[path], kinds[path], i) for path in prompted} for i in range(len(rows))]
        tensors = dict(Conditioning.cat([self._tensors([row]) for row in each]).tensors)
        return self._laid_out(own), self.seen.times.back(found[self.seen.times.name]), tensors

    def generation_arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The prompts, and what the pipeline was told when it was opened."""
        return {"prompt": list(prompts)} | self._more

    def guidance_arguments(self, guidance: float | None, negative: list[str] | None, count: int) -> dict[str, Any]:
        """The scale under the name that makes this pipeline run both branches."""
        true = "true_cfg_scale" in self._takes and self.seen.unconditional is not None
        if not true or (guidance is None and negative is None):
            return super().guidance_arguments(guidance, negative, count)
        given: dict[str, Any] = {"negative_prompt": negative or [EMPTY] * count}
        return given if guidance is None else given | {"true_cfg_scale": guidance}


def _is_network(name: str, part: Any) -> bool:
    """Whether a component is a denoising network: one of the usual names, or of diffusers' transformers and UNets."""
    place = type(unwrapped(part)).__module__
    return (name in NETWORKS and part is not None) or ".models.transformers." in place or ".models.unets." in place
