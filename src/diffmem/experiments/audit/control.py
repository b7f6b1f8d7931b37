"""The positive control of an audit: pictures that a short LoRA plants in a copy of the model, looked for as the audit looks."""

from __future__ import annotations

import copy
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.copies.rule import CopyRule
from diffmem.data.canaries import NAME, Registration, read_registration
from diffmem.data.images import ImageSet, as_images
from diffmem.data.png import decode_png
from diffmem.errors import DiffmemError, IncompleteRun, ModelError, UsageError
from diffmem.experiments.canaries.run import measure_canaries
from diffmem.experiments.canaries.summary import CanariesSummary
from diffmem.models.target import Target
from diffmem.runs.asked import asked_rows
from diffmem.runs.facts import read_fact, write_fact
from diffmem.stages.generate import Generation
from diffmem.training.canaries import CanaryPlan, draw_canaries
from diffmem.training.canary_files import DATA, write_canaries
from diffmem.training.cost import FORWARD_AND_BACKWARD
from diffmem.training.loop import train
from diffmem.training.plan import DataPlan, ModelPlan, OptimizerPlan, TrainPlan

FOLDER, FACT = "control", "control"
PLANTED = CONTROLS = 40
SHARE = 0.25
"""Of the evaluations that the audit's own images take, the most that the control may take."""
BATCH = 8
FEWEST, MOST = 150, 400
"""Times that each planted picture is seen: after 40 to 90 a copy of testbed:digits gave back 3 or 4 of 40, after 150 half."""
COMPARED = 1000
"""Training images that planted pictures keep their distance from."""
_LAYERS = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff.net.0.proj", "ff.net.2",
    "ff_context.net.0.proj", "ff_context.net.2", "proj_in", "proj_out", "conv1", "conv2",
)  # fmt: skip
_RANK, _MOVE = 32, 0.06
"""Rank of the LoRA; and by how much of its size a layer's output moves in a step, about: rate x sqrt(rank x width)."""


@dataclass(frozen=True)
class Budget:
    """What a control may do at a quarter of an audit's cost.

    Attributes:
        images: per caption.
        steps: of training.
        evaluations: of the network in all; a training step counts three per sample.
        share: of those that the audit's images take.
    """

    images: int
    steps: int
    evaluations: int
    share: float


def require_trainable(target: Target) -> None:
    """Raise ModelError where no LoRA can be trained on a model, before any work is done."""
    problem = None
    if target.is_function:
        problem = "it was given as a function, and only the weights of a diffusers pipeline can be trained"
    elif target.denoiser is None:
        problem = f"it only generates images ({target.generates_only or 'its network cannot be reached'})"
    elif not hasattr(getattr(target.pipeline, target.denoiser.network_name), "add_adapter"):  # type: ignore[attr-defined]
        problem = "its network takes no adapter"
    elif any(hasattr(part, "_hf_hook") for part in target.pipeline.components.values()):
        problem = "its parts are moved to the GPU one by one (--offload), which training cannot do"
    if problem is not None:
        raise ModelError(
            f"--control fine-tunes a copy of the model, and '{target.name}' cannot be fine-tuned: {problem}. Leave --control "
            "out; prompts that are known to be reproduced (labels) measure what the matcher finds, too."
        )


def budget(target: Target, images: int, settings: Generation) -> Budget:
    """How many images and training steps a quarter of the audit's evaluations allows.

    Args:
        target: the model.
        images: that the audit makes.
        settings: of the audit; the control makes as many images of a caption, or fewer.

    Raises:
        UsageError: too few for 40 pictures, with how many images it takes.
    """
    own = target.generation_nfe(settings.sampling)
    assert own is not None
    captions = PLANTED + CONTROLS
    each = FORWARD_AND_BACKWARD * PLANTED  # evaluations of one pass over the planted pictures
    allowed = SHARE * images * own
    # Half for images; but first the fewest passes, without which more images of a caption would show nothing.
    spared = min(allowed / 2, allowed - FEWEST * each)
    per_caption = max(1, min(settings.images_per_prompt, int(spared / (captions * own))))
    passes = min(MOST, int((allowed - per_caption * captions * own) / each))
    if passes < FEWEST:
        needed = -(-int((captions * own + FEWEST * each) / SHARE) // own)
        raise UsageError(
            f"--control takes at most a quarter of the audit's cost, and a quarter of {images:,} images is too little to plant "
            f"{PLANTED} pictures and look for them: make {needed:,} images or more (more prompts, --images-per-prompt), or leave "
            "--control out."
        )
    steps = passes * PLANTED // BATCH
    spent = per_caption * captions * own + FORWARD_AND_BACKWARD * BATCH * steps
    return Budget(per_caption, steps, spent, spent / (images * own))


def run_control(
    target: Target, run: Path, images: ImageSet, index: CopyIndex, allowed: Budget, settings: Generation, silent: bool
) -> None:
    """Write the fact `control`; the same call goes on where it was stopped.

    40 pictures that nobody has made before are planted by a short LoRA in a copy of the model, 40 controls of the same
    process stay out. Images under all their captions, at the audit's own sampling, are matched with training images and
    registered pictures together, by the audit's own rule and threshold. A planted picture is *found* where one of its
    images is called a copy of it; it is *given back* where one of its images is more like it than any control's image is
    like the control's own picture, whatever the rule says. found / planted is the audit's sensitivity, found among the given
    back the matcher's recall.

    Args:
        target: the model, which is not changed.
        run: the run directory of the audit, matched.
        images: the training images.
        index: of them, with its descriptor.
        allowed: what it may cost.
        settings: of the audit's images.
        silent: no progress on stderr.
    """
    fact = read_fact(run, "copies")
    assert fact is not None
    rule = CopyRule.of_fact(fact["threshold"])
    about = {
        "index": index.fingerprint, "statistic": rule.statistic, "value": rule.value, "images": allowed.images,
        "steps": allowed.steps, "seed": settings.seed, "sampling": settings.sampling.model_dump(mode="json"),
    }  # fmt: skip
    if (read_fact(run, FACT) or {}).get("about") == about:
        return
    try:
        found = _found(target, run / FOLDER, images, index, rule, allowed, settings, silent)
    except IncompleteRun:
        raise
    except (DiffmemError, torch.OutOfMemoryError) as problem:  # the audit's own findings stand
        found = {"refused": str(problem)}
    write_fact(run, FACT, {"about": about, **found})


def _found(
    target: Target, folder: Path, images: ImageSet, index: CopyIndex, rule: CopyRule, allowed: Budget,
    settings: Generation, silent: bool,
) -> dict[str, Any]:  # fmt: skip
    known = _registered(target, folder / "canaries", images, settings.seed, silent)
    planted = _planted(target, folder, allowed, settings.seed, silent)
    again = settings.model_copy(update={"images_per_prompt": allowed.images})
    return {
        **look_for(planted, known, folder / "images", index, rule, again, silent), "steps": allowed.steps, "cost": allowed.share,
        "page": f"{FOLDER}/images/canaries.html",
    }  # fmt: skip


def look_for(
    planted: Target, known: Registration, folder: Path, index: CopyIndex, rule: CopyRule, settings: Generation,
    silent: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """How many registered pictures a model gives back, and how many of them an audit finds.

    Args:
        planted: the model that was trained on some of them.
        known: the registration.
        folder: run directory of the images under their captions.
        index: of the audit's training images.
        rule: the audit's.
        settings: of the images.
        silent: no progress on stderr.
    """
    made = measure_canaries(planted, known, settings, out=folder, scores=(), trained_with=known.hash, silent=silent)
    made.report()
    summary = made.summary
    assert isinstance(summary, CanariesSummary)
    items: list[dict[str, Any]] = summary.measures[0]["items"]  # type: ignore[assignment]
    back = {item["id"] for item in items if item["copied"]}
    called = _called(made.path, known, index.with_images(as_images(known.pictures())), rule)
    of = {canary.id for canary in known.trained}
    return {
        "planted": len(of), "found": len(called & of), "given_back": len(back & of),
        "found_of_given_back": len(called & back & of), "controls": len(known.controls), "controls_found": len(called - of),
        "images_per_prompt": settings.images_per_prompt, "registration": known.hash, "notes": list(summary.notes[1:]),
    }  # fmt: skip


def _registered(target: Target, folder: Path, images: ImageSet, seed: int, silent: bool) -> Registration:
    """The planted pictures and their controls, drawn once; under captions that the model's text encoder reads whole."""
    if (folder / NAME).exists():
        return read_registration(folder)
    some = as_images({item.id: item.image for item in images.items(0, COMPARED) if item.image is not None})
    plan = CanaryPlan(counts=(1,), per_count=PLANTED, controls=CONTROLS, seed=seed)
    drawn = draw_canaries(some, plan, silent)
    denoiser = target.need_denoiser()
    if denoiser.conditional:
        captions = [canary.caption for canary in drawn.registration.canaries]
        if any(denoiser.encode_prompts(captions).truncated):
            # Captions of few words stay as they are: their beginnings still differ, and the run's notes say how many are cut.
            with suppress(UsageError):
                drawn = draw_canaries(images, plan.model_copy(update={"words": "dataset"}), silent)
    write_canaries(drawn, some, folder, only=True)
    return read_registration(folder)


def _planted(target: Target, folder: Path, allowed: Budget, seed: int, silent: bool) -> Target:
    """A copy of the model with a LoRA that was trained on the planted pictures alone."""
    denoiser = target.need_denoiser()
    with torch.no_grad():
        pipeline = copy.deepcopy(target.pipeline)
        pipeline.to(torch.float32)
    name = f"{target.name} with planted pictures"
    base = Target.from_pipeline(pipeline, name=name, distilled=denoiser.distilled is not None)
    plan = TrainPlan(
        seed=seed, model=ModelPlan(base=target.name, method="lora", lora_rank=_RANK, lora_targets=_LAYERS),
        data=DataPlan(images=str(folder / "canaries" / DATA), captions="instance" if denoiser.conditional else "none"),
        optimizer=OptimizerPlan(
            steps=allowed.steps, batch=BATCH, lr=_rate(target), schedule="cosine", warm_up=min(20, allowed.steps),
        ),
    )  # fmt: skip
    return train(plan, folder / "training", target=base, device=str(denoiser.device), silent=silent).target


def _rate(target: Target) -> float:
    """The learning rate: Adam moves every weight by about it, so wide networks take a smaller one."""
    network = getattr(target.pipeline, target.need_denoiser().network_name)  # type: ignore[attr-defined]
    widths = [part.in_features for part in network.modules() if isinstance(part, torch.nn.Linear)]
    return float(_MOVE / math.sqrt(_RANK * (sorted(widths)[len(widths) // 2] if widths else 1)))


def _called(run: Path, known: Registration, index: CopyIndex, rule: CopyRule) -> set[str]:
    """Ids of registered pictures of which an image is called a copy: of their own caption, where the model takes captions."""
    ids = {canary.id for canary in known.canaries}
    called = set()
    for table in asked_rows(run, "images", ["prompt_id", "png", "degenerate", "status"]):
        for row in table.to_pylist():
            if row["status"] != "ok" or row["degenerate"]:
                continue
            (found,) = match([decode_png(row["png"])], index)
            own = found.train_id == row["prompt_id"] or row["prompt_id"] not in ids
            if own and found.train_id in ids and rule.is_copy(found):
                called.add(found.train_id)
    return called
