"""Ways round the guard, by the hundred: every argument of every pipeline class that a guard takes, found by signature.

Each class of diffusers that can be built from the parts of a tiny pipeline, and that diffmem knows the family of, is
guarded at a threshold between its prompts, or stands beside the guarded pipeline and shares its network. It is called
with every argument of its signature, one at a time, at several values. An independent record of what reached the network
is scored afterwards: an image that was given out must come from conditionings below the threshold, all of them.

    python benchmarks/attacks/guard.py
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import sys
import time
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.tiny import network_of, picture, tiny_sd
from tests.tiny_families import FAMILIES

import diffmem as dm
from diffmem.atomic import write_atomic
from diffmem.errors import DiffmemError
from diffmem.mitigation.steering import own_evaluation
from diffmem.models.conditioning import Conditioning
from diffmem.models.pipelines.calls import target_of
from diffmem.runs.provenance import provenance
from diffmem.serving.conditionings import is_null, kept, key_of
from diffmem.serving.detector import Detector

FILE = Path(__file__).with_name("guard.json")
PROMPTS = [f"{a} {b}" for a in ("sea", "hill", "wood", "lake") for b in ("red", "blue", "dark", "old", "wet")]
STEPS = 2


class Case:
    """A tiny pipeline's parts, and a threshold between its calmest and loudest prompt."""

    def __init__(self, name, build):
        self.name, self.pipe = name, quiet(build())
        self.target = dm.Target.from_pipeline(self.pipe)
        self.denoiser = self.target.need_denoiser()
        self.network = network_of(self.pipe)
        self.processors = getattr(self.network, "attn_processors", None)
        texts = PROMPTS if self.denoiser.family != "dit" else [str(i) for i in range(20)]
        made = dm.guard.calibrate(self.target, texts, 0.2, draws=1)
        self.scorer = Detector(self.target, made.threshold, 0)
        with torch.no_grad():
            values = self.scorer.score(self.denoiser.encode_prompts(texts))
        order = np.argsort(values)
        self.calm, self.loud = texts[order[0]], texts[order[-1]]
        self.threshold = made.threshold.model_copy(update={"value": float(values[order[-1]] + values[order[-2]]) / 2})
        self.passed, self._recording = [], False
        self.network.register_forward_hook(self._record, with_kwargs=True)

    def _record(self, module, args, kwargs, output):
        """Every conditioning that an image may come from; the evaluations of scores make no image."""
        if self._recording and not own_evaluation():
            x, _, tensors = self.denoiser.read_call(args, kwargs)
            given = {
                name: value.detach().expand(len(x), *value.shape[1:]) if len(value) == 1 else value.detach()
                for name, value in tensors.items()
                if value is not None
            }
            self.passed.append(kept(Conditioning(given, len(x))))

    @contextmanager
    def recording(self):
        self.passed, self._recording = [], True
        try:
            yield
        finally:
            self._recording = False

    def undecided(self):
        """Conditionings at or above the threshold among those that the network has answered."""
        found, seen = 0, set()
        for cond in self.passed:
            for i in np.flatnonzero(~is_null(cond, self.scorer.null)):
                row = cond.select([i])
                key = key_of(row)
                if key not in seen:
                    seen.add(key)
                    found += bool(self.scorer.score(row)[0] >= self.threshold.value * (1 + 1e-6))
        return found

    def classes(self, only=None):
        """Pipeline classes that these parts make, with a family that diffmem knows."""
        import diffusers

        parts = {k: v for k, v in self.pipe.components.items() if v is not None}
        for name in only or sorted(n for n in dir(diffusers) if n.endswith("Pipeline")):
            try:
                cls = getattr(diffusers, name)
                wanted = inspect.signature(cls.__init__).parameters
                must = {n for n, p in wanted.items() if p.default is p.empty and n not in ("self", "args", "kwargs")}
                optional = set(getattr(cls, "_optional_components", ()))
                if not parts.keys() <= wanted.keys() or not must <= parts.keys() | optional or name in _LEFT_OUT:
                    continue
                given = {n: parts.get(n) for n in must | (parts.keys() & wanted.keys())}
                if "requires_safety_checker" in wanted:
                    given["requires_safety_checker"] = False
                made = quiet(cls(**given))
                if hasattr(self.pipe, "default_sample_size"):
                    made.default_sample_size = self.pipe.default_sample_size
                if network_of(made) is self.network:  # others copy the weights into a network of their own
                    yield name, made, self._guardable(made)
            except (RuntimeError, ImportError, DiffmemError, TypeError, ValueError, AttributeError):
                continue  # needs a package or a part that is not here

    def _guardable(self, pipe):
        try:
            denoiser = target_of(pipe).need_denoiser()
            with torch.no_grad():
                denoiser.predict(
                    torch.zeros(1, *denoiser.sample_shape), denoiser.schedule.sampling_times(2)[0], denoiser.null()
                )
            return denoiser.family == self.denoiser.family
        except Exception as problem:  # encodes or samples otherwise than any family; it may still stand beside
            print(f"{type(pipe).__name__} has no guard of its own: {type(problem).__name__}: {str(problem)[:100]}")
            return False

    def arguments(self, pipe):
        """A plain call of a pipeline with the calm prompt."""
        accepted = inspect.signature(type(pipe).__call__).parameters
        image = picture(1)
        usual = {
            **self.denoiser.generation_arguments([self.calm]), "num_inference_steps": STEPS, "output_type": "np",
            "image": image, "mask_image": image.convert("L"), "control_image": image, "strength": 0.9,
            "height": 16, "width": 16, "generator": torch.Generator().manual_seed(0), "guidance_scale": 3.0,
        }  # fmt: skip
        return {name: value for name, value in usual.items() if name in accepted}

    def values(self, pipe, name, parameter):
        """Values for one argument: hostile texts and embeddings where it takes such, else odd ones of every kind."""
        calm, loud = self.embeddings(self.calm), self.embeddings(self.loud)
        if name in calm:
            yield from ({**self.by_embeddings(calm), name: loud[name]}, {**self.by_embeddings(loud)})
            yield {name: loud[name]}
        elif name.endswith(("prompt", "prompt_2", "prompt_3", "prompt_4")):
            for text in (self.loud, [self.loud], [self.calm, self.loud], "", [""], "\u202e" + self.loud, 7):
                yield {name: text}
        elif name == "class_labels":
            for labels in ([int(self.loud)], [int(self.calm), int(self.loud)], [1000], [-1], "0"):
                yield {name: labels}
        elif name in ("callback_on_step_end", "callback"):
            yield {name: self.swapping(loud), "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
            yield {name: self.calling(pipe)}
        elif name in ("latents", "generator"):
            yield from ({name: None}, {name: [torch.Generator().manual_seed(1)]}, {name: torch.zeros(1, 4, 8, 8)})
        else:
            for value in plausible(name, parameter.default):
                yield {name: value, **self.with_text(self.loud)}
                yield {name: value}

    def with_text(self, text):
        return self.denoiser.generation_arguments([text])

    def embeddings(self, text):
        """The pipeline's own arguments for an encoded prompt."""
        from diffmem.models.pipelines.calls import EMBEDDINGS

        with torch.no_grad():
            tensors = self.denoiser.encode_prompts([text]).tensors
        given = {EMBEDDINGS[name]: value for name, value in tensors.items() if name in EMBEDDINGS}
        return given | {f"negative_{name}": value for name, value in given.items()}

    def by_embeddings(self, embeddings):
        return {"prompt": None, **embeddings}

    def swapping(self, embeddings):
        def swap(pipe, step, t, given):
            rows = embeddings.get("prompt_embeds")
            if "prompt_embeds" in given and rows is not None:
                given["prompt_embeds"].copy_(rows.expand_as(given["prompt_embeds"]))
            return given

        return swap

    def calling(self, other):
        """A callback that calls the pipeline itself with the loud prompt and keeps what it gets."""

        def call(pipe, step, t, given):
            if step == 0:
                arguments = {**self.arguments(other), **self.with_text(self.loud)}
                output = other(**{**arguments, "callback_on_step_end": None})
                self.stolen += [image for image in output.images if np.asarray(image).any()]
            return given

        return call


def plausible(name, default):
    """Values that a pipeline may take for an argument, by its default and name; then values of other kinds."""
    if name == "output_type":
        return ["latent", "pt", "pil", "np"]
    if name.endswith(("height", "width")) or name == "num_images_per_prompt":
        return [16, 32] if name != "num_images_per_prompt" else [1, 2]
    if isinstance(default, bool):
        return [not default, default, 1]
    if isinstance(default, int):
        return [default + 1, 1, 2, 0, True]
    if isinstance(default, float):
        return [default / 2, default * 2 + 0.1, 0.0, 1, float("nan"), -1.0]
    if name.endswith("kwargs"):
        return [{}, {"scale": 0.5}]
    return [default if default is not inspect.Parameter.empty else None, 0.5, 1, True, {}, [1], "x"]


_LEFT_OUT = frozenset({"OnnxStableDiffusionPipeline", "AltDiffusionPipeline", "AltDiffusionImg2ImgPipeline"})


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def attempt(case, guard, pipe, arguments, tally, wrong, label):
    """One call, and what came of it."""
    before, case.stolen = len(guard.decisions), []
    given = False
    with case.recording():
        try:
            output = pipe(**arguments)
            images = output[0] if isinstance(output, tuple) else output.images
            given = bool(np.asarray([np.asarray(i).any() for i in images]).any())
            outcome = "given out" if given else "blank"
        except DiffmemError:
            outcome = "refused"
        except Exception as problem:
            reached = case.passed or len(guard.decisions) > before
            outcome = "an error of the pipeline after a decision" if reached else "refused by the pipeline itself"
            tally["errors", type(problem).__name__] += 1
    tally["calls", outcome] += 1
    decided = len(guard.decisions) - before
    loud = case.undecided() if given or case.stolen else 0
    for found, what in (
        (loud, "undecided image"), (given and not decided, "no decision"),
        (case.passed and not decided, "a pass without a decision"), (case.stolen, "image from a callback"),
    ):  # fmt: skip
        if found:
            wrong.append(f"{label}: {what}")
    return outcome


def campaign(case, limit, only=None, until=float("inf"), done=()):
    """All classes of one tiny pipeline; the counts, what went wrong, and whether every class was reached."""
    tally, wrong, per_class, left_out = Counter(), [], {}, []
    for name, pipe, guardable in case.classes(only):
        if f"{case.name}: {name}" in done:
            continue
        if time.perf_counter() > until:
            return tally, wrong, per_class, left_out, False
        accepted = inspect.signature(type(pipe).__call__).parameters
        counted = sum(n for (kind, _), n in tally.items() if kind == "calls")
        for guarded in (True, False) if guardable else (False,):
            if case.processors is not None:  # pipelines with an attention of their own leave it in the network
                case.network.set_attn_processor(dict(case.processors))
            threshold = case.threshold
            if guarded:
                fingerprint = target_of(pipe).fingerprint
                threshold = threshold.model_copy(update={"model": fingerprint})
            cls = type(pipe)
            with dm.guard(
                pipe if guarded else case.target, threshold=threshold, action="refuse", on_refuse="blank", keep=100_000
            ) as guard:  # fmt: skip
                plain = case.arguments(pipe)
                if attempt(case, guard, pipe, plain, tally, wrong, f"{name}: plain") not in ("given out", "refused"):
                    left_out.append(f"{case.name}: {name}")
                    continue
                for argument, parameter in accepted.items():
                    if argument in ("self", "kwargs", "args"):
                        continue
                    for i, more in enumerate(case.values(pipe, argument, parameter)):
                        if i >= limit:
                            break
                        # Beside the guarded pipeline only what changes the conditioning is tried.
                        if not guarded and "prompt" not in argument and "callback" not in argument:
                            continue
                        label = f"{name}{'' if guarded else ' (beside)'}: {argument}[{i}]"
                        arguments = {k: v for k, v in {**plain, **more}.items() if k in accepted}
                        attempt(case, guard, pipe, arguments, tally, wrong, label)
            hooks = list(case.network._forward_pre_hooks.values())
            if type(pipe) is not cls or hooks:
                wrong.append(f"{name}: left behind")
        per_class[f"{case.name}: {name}"] = sum(n for (kind, _), n in tally.items() if kind == "calls") - counted
    return tally, wrong, per_class, left_out, True


def run(families=None, limit=4, only=None, seconds=None, seed=0, done=()):
    """The campaign: {"trials", "failures", "failed", "classes", "outcomes"}.

    Args:
        families: names of tiny pipelines; None for all that can be scored.
        limit: values tried per argument.
        only: names of pipeline classes; None for all.
        seconds: no class is begun after so many.
        seed: which family comes first.
        done: "family: class" of those that an earlier call has tried.
    """
    logging.getLogger("diffmem.guard").setLevel(logging.CRITICAL)
    logging.getLogger("diffusers").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    builders = {"sd": tiny_sd, **FAMILIES}
    outcomes, errors, classes, wrong, left_out = Counter(), Counter(), {}, [], []
    started = time.perf_counter()
    names = families or [n for n in builders if n != "flux"]  # the distilled one has no score
    names = names[seed % len(names) :] + names[: seed % len(names)]
    until, complete = started + (seconds or float("inf")), True
    for name in names:
        if time.perf_counter() > until:
            complete = False
            break
        tally, found, per_class, without, whole = campaign(Case(name, builders[name]), limit, only, until, done)
        complete &= whole
        left_out += without
        for (kind, what), count in tally.items():
            (outcomes if kind == "calls" else errors)[what] += count
        wrong += found
        classes |= per_class
        print(f"{name}: {sum(per_class.values())} calls of {len(per_class)} classes, {len(found)} wrong", flush=True)
    return {
        "campaign": "guard", "trials": sum(classes.values()) - outcomes["refused by the pipeline itself"],
        "calls": sum(classes.values()), "failures": len(wrong), "failed": wrong,
        "outcomes": dict(outcomes), "errors_of_the_pipelines": dict(errors), "classes": classes, "complete": complete,
        "plain_call_fails": sorted(set(left_out)),
        "seed": seed, "seconds": round(time.perf_counter() - started),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", help="comma-separated; default: all")
    parser.add_argument("--limit", type=int, default=4, help="values per argument")
    parser.add_argument("--seconds", type=float, help="no class is begun after so many")
    parser.add_argument("--seed", type=int, default=0, help="which family comes first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = run(
        options.families.split(",") if options.families else None,
        options.limit,
        seconds=options.seconds,
        seed=options.seed,
    )
    print(json.dumps({k: v for k, v in result.items() if k != "classes"}, indent=1))
    if result["trials"]:
        written = {
            **result,
            "families": options.families,
            "limit": options.limit,
            "provenance": provenance().model_dump(),
        }
        write_atomic(FILE, (json.dumps(written, indent=1) + "\n").encode())
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
