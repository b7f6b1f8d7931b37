"""Ways round the guard: whoever calls the network, with whatever argument, gets no image without a decision."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from tests.tiny import picture, random_lora, tiny_sd
from tests.tiny_families import sd3, sdxl

import diffmem
from diffmem.errors import DiffmemError, IncompatibleRun, UsageError
from diffmem.serving.decisions import GenerationRefused

PROMPTS = [f"{a} {b}" for a in ("sea", "hill", "wood", "lake") for b in ("red", "blue", "dark", "old", "wet", "big")]


def shares(pipe, prompt, **more):
    return pipe(prompt, **{"num_inference_steps": 3, "output_type": "np", "generator": seeded()} | more)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Made:
    """A pipeline, a threshold between its calmest and its loudest prompt, and embeddings of both."""

    def __init__(self, pipe):
        self.pipe = pipe
        calibration = diffmem.guard.calibrate(pipe, PROMPTS, 0.2, draws=1)
        with diffmem.guard(pipe, threshold=calibration, action="log") as seen:
            for prompt in PROMPTS:
                shares(pipe, prompt, num_inference_steps=1)
        values = [d.value for d in seen.decisions]
        assert len(values) == len(PROMPTS)
        ranked = np.argsort(values)
        self.calm, self.loud = PROMPTS[ranked[0]], PROMPTS[ranked[-1]]
        middle = (values[ranked[-1]] + values[ranked[-2]]) / 2
        self.threshold = calibration.threshold.model_copy(update={"value": float(middle)})

    def guard(self, action="refuse", **more):
        return diffmem.guard(self.pipe, threshold=self.threshold, action=action, **more)

    def embedding(self, prompt):
        return self.pipe.encode_prompt(prompt, "cpu", 1, False)[0]


@pytest.fixture(scope="module")
def made():
    return Made(tiny_sd())


@pytest.fixture
def own():
    """A pipeline of a test's own, to be changed."""
    return Made(tiny_sd())


def image_to_image(pipe):
    from diffusers import StableDiffusionImg2ImgPipeline

    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    return lambda prompt, **more: shares(other, prompt, image=picture(1), strength=0.9, **more)


def by_components(pipe):
    from diffusers import StableDiffusionPipeline

    other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return lambda prompt, **more: shares(other, prompt, **more)


def same_class(pipe):
    other = type(pipe)(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return lambda prompt, **more: shares(other, prompt, **more)


def bound(pipe):
    call = type(pipe).__mro__[1].__call__ if "_diffmem_layers" in vars(type(pipe)) else type(pipe).__call__
    return lambda prompt, **more: shares(lambda *a, **k: call(pipe, *a, **k), prompt, **more)


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
            with pytest.raises(IncompatibleRun, match="not what the network computes"):
                shares(made.pipe, made.calm)
            with pytest.raises(IncompatibleRun, match="not what the network computes"):
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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_thresholds_that_decide_nothing_are_refused(made, value, tmp_path):
    threshold = made.threshold.model_copy(update={"value": value})
    with pytest.raises(UsageError, match="decides nothing"):
        diffmem.guard(made.pipe, threshold=threshold, action="refuse")


def test_blocks_may_end_in_any_order(made):
    from diffmem.mitigation.spec import parse_mitigation

    cls = type(made.pipe)
    mitigation = parse_mitigation("random-tokens:count=1").apply(made.pipe)
    mitigation.__enter__()
    guard = made.guard()
    guard.__enter__()
    mitigation.__exit__(None, None, None)
    with pytest.raises(GenerationRefused):
        shares(made.pipe, made.loud)
    second = parse_mitigation("random-tokens:count=1").apply(made.pipe)
    second.__enter__()
    guard.__exit__(None, None, None)
    guard.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert type(made.pipe) is cls and not made.pipe.unet._forward_pre_hooks
    shares(made.pipe, made.loud)
    with guard, pytest.raises(GenerationRefused):  # the same guard again
        shares(made.pipe, made.loud)
    assert type(made.pipe) is cls


def test_guards_of_pipelines_that_share_a_network_all_decide(made):
    from diffusers import StableDiffusionPipeline

    other = StableDiffusionPipeline(**made.pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    strict, lax = made.guard(), None
    loose = made.threshold.model_copy(update={"value": 1e9})
    with strict:
        lax = diffmem.guard(other, threshold=loose, action="log")
        lax.__enter__()
        shares(other, made.calm)
        with pytest.raises(GenerationRefused):
            shares(other, made.loud)
        with pytest.raises(GenerationRefused):
            shares(made.pipe, made.loud)
    assert [d.outcome for d in strict.decisions] == ["passed", "refused", "refused"]
    shares(other, made.loud)  # only the lax one is left
    assert lax.decisions[-1].outcome == "passed"
    lax.__exit__(None, None, None)
    assert not made.pipe.unet._forward_pre_hooks and not made.pipe.unet._forward_hooks


def test_leaving_the_block_during_a_call_gives_nothing_out(made):
    guard = made.guard()

    def leave(pipe, step, t, given):
        guard.__exit__(None, None, None)
        return given

    with guard, pytest.raises(IncompatibleRun, match="block was left"):
        shares(made.pipe, made.calm, callback_on_step_end=leave)
    assert guard.decisions[-1].outcome == "refused"


def test_a_score_that_raises_is_logged_and_gives_nothing_out(made):
    with made.guard() as guard:

        def fails(*_):
            raise RuntimeError("out of luck")

        guard.detector.score = fails
        with pytest.raises(RuntimeError, match="out of luck"):
            shares(made.pipe, [made.calm, made.loud])
        with pytest.raises(RuntimeError, match="out of luck"):
            by_components(made.pipe)(made.calm)
    assert [d.outcome for d in guard.decisions] == ["failed"] * 3
    assert "RuntimeError" in guard.decisions[0].attempts[-1].why


def test_a_mitigation_that_raises_is_logged_and_gives_nothing_out(made):
    from diffmem.mitigation.random_tokens import RandomTokens

    class Fails(RandomTokens):
        def rewrite(self, prompt, tokenizer, random):
            raise RuntimeError("no words")

    with made.guard("mitigate", mitigation=Fails()) as guard, pytest.raises(RuntimeError, match="no words"):
        shares(made.pipe, [made.calm, made.loud])
    assert [d.outcome for d in guard.decisions] == ["failed", "failed"]
    assert not any(attempt.accepted for d in guard.decisions for attempt in d.attempts)


def test_a_listener_that_raises_comes_after_the_log(made, caplog):
    def listens(decision):
        raise RuntimeError("full disk")

    with (
        caplog.at_level("INFO", "diffmem.guard"),
        made.guard(on_decision=listens) as guard,
        pytest.raises(RuntimeError, match="full disk"),
    ):
        shares(made.pipe, [made.calm, PROMPTS[3]])
    assert len(guard.decisions) == 2 == sum(record.name == "diffmem.guard" for record in caplog.records)


def test_arguments_that_fail_are_logged(made):
    with made.guard() as guard:
        for more in (
            {"prompt_embeds": torch.ones(1, 16, 16)},
            {"num_images_per_prompt": 0},
            {"callback_on_step_end_tensor_inputs": ["nothing"]},
        ):
            with pytest.raises((ValueError, DiffmemError, RuntimeError, ZeroDivisionError)):
                shares(made.pipe, made.calm, **more)
        with pytest.raises((ValueError, DiffmemError)):
            shares(made.pipe, None)
    assert len(guard.decisions) == 4 and {d.outcome for d in guard.decisions} <= {"failed", "refused"}
    assert made.calm not in str(guard.decisions)  # which the errors of diffusers quote


def test_threads_that_go_round_the_pipeline_are_judged_while_it_works(made):
    outcomes = []
    with made.guard() as guard:
        call = by_components(made.pipe)

        def work(prompt):
            try:
                outcomes.append((prompt, call(prompt).images.any()))
            except GenerationRefused:
                outcomes.append((prompt, False))

        def several():
            for prompt in (made.calm, made.loud, made.calm, made.loud):
                work(prompt)

        thread = threading.Thread(target=several)
        thread.start()
        thread.join()
        shares(made.pipe, made.calm)
    assert outcomes == [(made.calm, True), (made.loud, False)] * 2
    assert [d.outcome for d in guard.decisions] == ["passed", "refused"] * 2 + ["passed"]
