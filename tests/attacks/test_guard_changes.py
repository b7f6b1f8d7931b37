"""A model that changes behind a guard ends every call."""

from __future__ import annotations

import copy

import diffusers
import pytest
from tests.attacks.guarded import PROMPTS, bound, by_components, shares
from tests.tiny import random_lora, tiny_sd

import diffmem
from diffmem.errors import IncompatibleRun, ModelError


def load_lora(pipe, folder):
    file, _ = random_lora(tiny_sd(), folder / "lora")
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)


def add(pipe, folder):
    for weight in pipe.unet.parameters():
        weight.data += 0.01


def one_weight(pipe, folder):
    pipe.unet.conv_in.weight.data.flatten()[0] += 1


def free_u(pipe, folder):
    pipe.enable_freeu(s1=0.2, s2=0.1, b1=1.5, b2=1.6)


def other_unet(pipe, folder):
    pipe.unet = tiny_sd(seed=1).unet


def attention(pipe, folder):
    class Loud:
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return hidden_states * 1.5

    pipe.unet.set_attn_processor(Loud())


CHANGES = [load_lora, add, one_weight, free_u, other_unet, attention]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("action", ["refuse", "log"])
def test_a_changed_model_ends_every_call(own, change, action, tmp_path):
    with own.guard(action) as guard:
        bare = shares(own.pipe, own.calm).images
        foreign = by_components(own.pipe)
        old = bound(own.pipe)
        change(own.pipe, tmp_path)
        with pytest.raises(IncompatibleRun, match="model has changed"):
            shares(own.pipe, own.calm)
        for call in (old, bound(own.pipe)) if change is other_unet else (old, foreign):
            with pytest.raises(IncompatibleRun, match="model has changed"):
                call(own.calm)
    assert [d.outcome for d in guard.decisions] == ["passed"] + ["refused"] * 3
    assert bare.any() and not own.pipe.unet._forward_pre_hooks


@pytest.mark.parametrize("change", [add, load_lora])
def test_a_change_during_a_call_is_seen_before_the_image_is_given_out(own, change, tmp_path):
    def callback(pipe, step, t, given):
        if step == 1:
            change(pipe, tmp_path)
        return given

    with own.guard() as guard, pytest.raises(IncompatibleRun, match="model has changed"):
        shares(own.pipe, own.calm, callback_on_step_end=callback)
    assert [d.outcome for d in guard.decisions] == ["refused"]


def test_a_change_that_is_undone_ends_nothing_and_drops_cached_scores(own):
    with own.guard() as guard:
        shares(own.pipe, own.calm)
        weight = own.pipe.unet.conv_in.weight
        before = weight.detach().clone()
        weight.data += 1
        with pytest.raises(IncompatibleRun):
            shares(own.pipe, own.calm)
        weight.data.copy_(before)
        shares(own.pipe, own.calm)
        own.pipe.enable_attention_slicing(1)
        shares(own.pipe, own.calm)
    assert [d.outcome for d in guard.decisions] == ["passed", "refused", "passed", "passed"]
    assert [d.nfe for d in guard.decisions] == [2, 0, 2, 2]


def test_what_no_sample_sees_is_seen_by_the_full_fingerprint(own):
    weight = own.pipe.unet.conv_in.weight.data.flatten()
    place = 1 + len(weight) // 2
    with own.guard(full_check_every=7) as guard:
        shares(own.pipe, own.calm)
        weight[place] += 1e-3
        with pytest.raises(IncompatibleRun):
            for _ in range(7):
                shares(own.pipe, own.calm)
    assert 2 <= len(guard.decisions) <= 5


def test_a_guard_for_another_model_is_not_opened(own):
    guard = own.guard()
    add(own.pipe, None)
    with pytest.raises(IncompatibleRun, match="model has changed"):
        guard.__enter__()
    with pytest.raises(IncompatibleRun):
        own.guard()
    assert not own.pipe.unet._forward_pre_hooks


def test_a_copy_of_the_pipeline_carries_the_gate_along(own):
    with own.guard() as guard:
        other = copy.deepcopy(own.pipe)
        with pytest.raises(IncompatibleRun):
            shares(other, own.calm)
        shares(own.pipe, own.calm)
    assert guard.decisions[-1].outcome == "passed"


def perturbed_attention(pipe, kind="StableDiffusionPAGPipeline"):
    other = getattr(diffusers, kind)(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def test_a_pipeline_that_sets_its_own_attention_is_refused_and_leaves_none_behind(own):
    pag, before = perturbed_attention(own.pipe), dict(own.pipe.unet.attn_processors)
    calibration = diffmem.guard.calibrate(pag, PROMPTS, 0.2, draws=1)
    with diffmem.guard(pag, threshold=calibration, action="refuse") as guard:
        for prompt in (own.calm, own.loud):
            with pytest.raises(IncompatibleRun, match="the network fails on its own"):
                shares(pag, prompt)
            assert own.pipe.unet.attn_processors == before
        assert [d.outcome for d in guard.decisions] == ["refused", "refused"]


def test_attention_of_another_pipeline_that_was_refused_is_named(own):
    before = dict(own.pipe.unet.attn_processors)
    with own.guard() as guard:
        with pytest.raises(IncompatibleRun, match="the network fails on its own"):
            shares(perturbed_attention(own.pipe), own.loud)
        with pytest.raises(IncompatibleRun, match="the network fails on its own"):
            shares(own.pipe, own.calm)
        assert {d.outcome for d in guard.decisions} == {"refused"}
        own.pipe.unet.set_attn_processor(before)
        assert shares(own.pipe, own.calm).images.any()


def test_a_pipeline_that_upscales_latents_is_refused(made):
    parts = {k: v for k, v in made.pipe.components.items() if v is not None}
    upscaler = diffusers.StableDiffusionLatentUpscalePipeline(**parts)
    with pytest.raises(ModelError, match="does not run on a prompt alone"):
        diffmem.guard(upscaler, threshold=made.threshold)
