"""Whoever calls the network, with whatever conditioning, gets no image without a decision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.attacks.guarded import PROMPTS, Made, bound, by_components, seeded, shares
from tests.tiny import picture
from tests.tiny_families import sd3, sdxl

import diffmem
from diffmem.errors import IncompatibleRun
from diffmem.serving.decisions import GenerationRefused


def image_to_image(pipe):
    from diffusers import StableDiffusionImg2ImgPipeline

    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    return lambda prompt, **more: shares(other, prompt, image=picture(1), strength=0.9, **more)


def same_class(pipe):
    other = type(pipe)(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return lambda prompt, **more: shares(other, prompt, **more)


@pytest.mark.parametrize("make", [image_to_image, by_components, same_class, bound])
@pytest.mark.parametrize("early", [True, False])
def test_other_callers_of_the_network_are_judged(made, make, early):
    call = make(made.pipe) if early else None
    with made.guard() as guard:
        call = call or make(made.pipe)
        bare = call(made.calm).images
        assert [d.outcome for d in guard.decisions] == ["passed"]
        with pytest.raises(GenerationRefused, match="1 of 1"):
            call(made.loud)
        assert [d.outcome for d in guard.decisions] == ["passed", "refused"]
        with pytest.raises(GenerationRefused):
            call(made.calm, negative_prompt=made.loud)
        with pytest.raises(GenerationRefused):
            call(None, prompt_embeds=made.embedding(made.loud), negative_prompt_embeds=made.embedding(""))
        call(made.calm, num_inference_steps=2)
    assert len(guard.decisions) >= 5 and guard.decisions[-1].outcome == "passed"
    assert np.array_equal(call(made.calm).images, bare)


def test_every_generation_of_another_caller_has_its_own_decision(made):
    with made.guard() as guard:
        call = by_components(made.pipe)
        for steps in (1, 1, 3, 1):
            call(made.calm, num_inference_steps=steps)
        call([made.calm, PROMPTS[3]], guidance_scale=1.0, generator=None)
    assert len(guard.decisions) == 6
    assert {d.outcome for d in guard.decisions} == {"passed"}
    assert "outside a call" in guard.decisions[0].attempts[0].why


@pytest.mark.parametrize("build", [sdxl, sd3])
def test_the_prompts_of_every_encoder_are_judged(build):
    made = Made(build())
    names = ("prompt_2",) if build is sdxl else ("prompt_2", "prompt_3")
    arguments = [{name: made.loud} for name in names]
    arguments += [{f"negative_{name}": made.loud, "negative_prompt": made.loud} for name in names]
    with made.guard("log") as seen:
        for more in ({}, *arguments):
            shares(made.pipe, made.calm, **more)
    calm, *others = [d.value for d in seen.decisions]
    assert all(value != pytest.approx(calm, rel=1e-3) for value in others)  # the other encoder's text counts
    for more, value in zip(arguments, others, strict=True):
        for factor, outcome in ((1.001, "passed"), (0.999, "refused")):
            threshold = made.threshold.model_copy(update={"value": value * factor})
            with diffmem.guard(made.pipe, threshold=threshold, action="refuse", on_refuse="blank") as guard:
                assert shares(made.pipe, made.calm, **more).images.any() == (outcome == "passed")
            assert [d.outcome for d in guard.decisions] == [outcome]


def test_embeddings_given_directly_are_judged_and_named(made):
    with made.guard() as guard:
        shares(made.pipe, None, prompt_embeds=made.embedding(made.calm), negative_prompt_embeds=made.embedding(""))
        with pytest.raises(GenerationRefused):
            shares(made.pipe, None, prompt_embeds=made.embedding(made.loud), negative_prompt_embeds=made.embedding(""))
        with pytest.raises(GenerationRefused):
            shares(
                made.pipe,
                None,
                prompt_embeds=made.embedding(made.calm),
                negative_prompt_embeds=made.embedding(made.loud),
            )
    assert len({d.prompt_sha for d in guard.decisions}) == 2 and all(len(d.prompt_sha) == 64 for d in guard.decisions)


@pytest.mark.parametrize("way", ["returned", "in place", "data"])
@pytest.mark.parametrize("when", [0, 1])
def test_a_callback_that_swaps_the_embedding_is_seen(made, way, when):
    loud = torch.cat([made.embedding(""), made.embedding(made.loud)])

    def swap(pipe, step, t, given):
        if step == when:
            if way == "returned":
                return {"prompt_embeds": loud}
            (given["prompt_embeds"].data if way == "data" else given["prompt_embeds"]).copy_(loud)
        return given

    more = {"callback_on_step_end": swap, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with made.guard() as guard, pytest.raises(GenerationRefused):
        shares(made.pipe, made.calm, **more)
    assert [d.outcome for d in guard.decisions] == ["refused"]
    with made.guard(on_refuse="blank") as guard:
        assert not shares(made.pipe, made.calm, **more).images.any()
    with made.guard("log") as guard:
        shares(made.pipe, made.calm, **more)
    assert [d.outcome for d in guard.decisions] == ["logged"]


@pytest.mark.parametrize("make", [lambda pipe: lambda p, **more: shares(pipe, p, **more), by_components, bound])
def test_calls_from_callbacks_are_calls_of_their_own(made, make):
    found = []

    def call(pipe, step, t, given):
        if step == 1:
            found.append(make(pipe)(made.loud, generator=seeded(1)))
        return given

    with made.guard() as guard, pytest.raises(GenerationRefused):
        shares(made.pipe, made.calm, callback_on_step_end=call)
    assert not found
    assert [d.outcome for d in guard.decisions] == ["refused", "refused"]


def test_a_hook_that_changes_the_conditioning_afterwards_is_seen(made):
    def swap(module, args, kwargs):
        rows = made.embedding(made.loud).expand(len(kwargs["encoder_hidden_states"]), -1, -1)
        return args, {**kwargs, "encoder_hidden_states": rows}

    with made.guard() as guard:
        handle = made.pipe.unet.register_forward_pre_hook(swap, with_kwargs=True)
        try:
            with pytest.raises(IncompatibleRun, match="was put into it"):
                shares(made.pipe, made.calm)
            with pytest.raises(IncompatibleRun, match="was put into it"):
                by_components(made.pipe)(made.calm)
        finally:
            handle.remove()
    assert guard.decisions[-1].outcome == "refused"


@pytest.mark.parametrize(
    "more", [{"cross_attention_kwargs": {"scale": 0.5}}, {"ip_adapter_image_embeds": [torch.ones(2, 1, 8)]}]
)
def test_what_the_score_does_not_see_is_refused_by_name(made, more):
    with made.guard() as guard, pytest.raises((IncompatibleRun, AttributeError)):
        shares(made.pipe, made.calm, **more)
    assert guard.decisions[-1].outcome in ("refused", "failed") and guard.decisions[-1].attempts


def test_inputs_beside_the_prompt_pass_if_the_operator_says_so(made):
    def call():
        return made.pipe.unet(
            torch.zeros(1, 4, 8, 8), 1, encoder_hidden_states=made.embedding(made.calm),
            mid_block_additional_residual=torch.zeros(1, 16, 4, 4), down_block_additional_residuals=None,
        )  # fmt: skip

    with made.guard() as guard, pytest.raises(IncompatibleRun, match="mid_block_additional_residual"):
        call()
    assert guard.decisions[-1].outcome == "refused"
    with made.guard(unscored=["mid_block_additional_residual"]) as guard:
        call()
    assert guard.decisions[-1].outcome == "passed"
