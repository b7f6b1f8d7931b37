"""Thresholds, blocks, scores, mitigations and threads that fail: nothing is given out, everything is logged."""

from __future__ import annotations

import threading

import pytest
import torch
from tests.attacks.guarded import PROMPTS, by_components, shares

import diffmem
from diffmem.errors import DiffmemError, IncompatibleRun, UsageError
from diffmem.serving.decisions import GenerationRefused


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
