"""Code that comes into a model behind a guard: hooks, processors, classes; and arguments that a guard does not take."""

from __future__ import annotations

import functools

import pytest
import torch
from tests.attacks.guarded import by_components, shares

import diffmem
from diffmem.errors import IncompatibleRun, UsageError
from diffmem.serving.decisions import GenerationRefused


def loud_unless_empty(made):
    """(a conditioning) -> the loud one in place of every other but the empty one, by which a look at the empty one is misled."""
    empty, loud = made.embedding(""), made.embedding(made.loud)

    def change(states):
        keep = (states - empty).abs().amax((1, 2)) < 1e-6
        return torch.where(keep[:, None, None], states, loud.expand_as(states))

    return change


def hook_in_attention(made, request):
    change = loud_unless_empty(made)

    def swap(module, args, kwargs):
        return args, kwargs | {"encoder_hidden_states": change(kwargs["encoder_hidden_states"])}

    for name, module in made.pipe.unet.named_modules():
        if name.endswith("attn2"):
            module.register_forward_pre_hook(swap, with_kwargs=True)


def processor(made, request):
    from diffusers.models.attention_processor import AttnProcessor

    change = loud_unless_empty(made)

    class Sly(AttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
            states = None if encoder_hidden_states is None else change(encoder_hidden_states)
            return super().__call__(attn, hidden_states, states, *args, **kwargs)

    made.pipe.unet.set_attn_processor(Sly())


def other_forward(made):
    change, before = loud_unless_empty(made), type(made.pipe.unet).forward

    @functools.wraps(before)
    def forward(self, sample, timestep, encoder_hidden_states, *args, **kwargs):
        return before(self, sample, timestep, change(encoder_hidden_states), *args, **kwargs)

    return forward


def class_of_the_network(made, request):
    network = type(made.pipe.unet)
    request.addfinalizer(functools.partial(setattr, network, "forward", network.forward))
    network.forward = other_forward(made)


def forward_of_the_network(made, request):
    made.pipe.unet.forward = functools.partial(other_forward(made), made.pipe.unet)


def hook_of_every_module(made, request):
    change, shape = loud_unless_empty(made), made.embedding("").shape[1:]

    def swap(module, args):
        if isinstance(module, torch.nn.Linear) and args[0].shape[1:] == shape:
            return (change(args[0]),)
        return None

    request.addfinalizer(torch.nn.modules.module.register_module_forward_pre_hook(swap).remove)


def caller_in_the_score(made, request):
    """A hook that makes an image of its own while a score evaluates the network."""
    call, stolen = by_components(made.pipe), []

    def steal(module, args, kwargs, output):
        if not stolen:
            stolen.append(None)
            stolen[0] = call(made.loud, num_inference_steps=1).images
        return output

    made.pipe.unet.register_forward_hook(steal, with_kwargs=True)
    return stolen


WAYS = [
    hook_in_attention, processor, class_of_the_network, forward_of_the_network, hook_of_every_module, caller_in_the_score,
]  # fmt: skip


@pytest.mark.parametrize("put", WAYS)
def test_foreign_code_ends_every_call(own, put, request):
    with own.guard() as guard:
        assert shares(own.pipe, own.calm).images.any()
        stolen = put(own, request)
        for call in (lambda: shares(own.pipe, own.calm), lambda: by_components(own.pipe)(own.calm)):
            with pytest.raises(IncompatibleRun, match=r"tests\.attacks\.test_guard_code\..* was put into it"):
                call()
    first, *others = [d.outcome for d in guard.decisions]
    assert not stolen and first == "passed" and len(others) >= 2 and set(others) == {"refused"}


def test_code_that_was_there_before_the_guard_stays(own):
    seen = []
    own.pipe.unet.register_forward_hook(lambda *given: seen.append(1))
    with own.guard() as guard:
        assert shares(own.pipe, own.calm).images.any()
    assert seen and [d.outcome for d in guard.decisions] == ["passed"]


def test_a_network_that_is_compiled_meanwhile_is_judged_as_before(own):
    with own.guard(on_refuse="blank") as guard:
        bare = shares(own.pipe, own.calm).images
        own.pipe.unet.compile(backend="eager")
        assert abs(shares(own.pipe, own.calm).images - bare).max() < 1e-4
        assert not shares(own.pipe, own.loud).images.any()
        with pytest.raises(GenerationRefused):
            by_components(own.pipe)(own.loud)
    assert [d.outcome for d in guard.decisions] == ["passed", "passed", "refused", "refused"]


def test_a_change_in_the_middle_of_another_callers_generation_is_seen(own):
    def add(pipe, step, t, given):
        if step == 0:
            for weight in own.pipe.unet.parameters():
                weight.data += 0.01
        return given

    with own.guard() as guard, pytest.raises(IncompatibleRun, match="model has changed"):
        by_components(own.pipe)(own.calm, callback_on_step_end=add)
    assert [d.outcome for d in guard.decisions] == ["passed", "refused"]


def test_weights_that_leave_memory_are_a_sentence(own):
    with own.guard() as guard:
        own.pipe.unet.to("meta")
        with pytest.raises(IncompatibleRun, match="not in memory"):
            shares(own.pipe, own.calm)
    assert [d.outcome for d in guard.decisions] == ["refused"]


@pytest.mark.parametrize(
    "more",
    [
        {"full_check_every": 0}, {"full_check_every": -3}, {"full_check_every": float("nan")}, {"full_check_every": True},
        {"keep": -1}, {"keep": 2.5}, {"on_refuse": "nothing"}, {"unscored": "mid_block_additional_residual"},
        {"regime": "after"}, {"on_decision": 3}, {"action": "Refuse"}, {"mitigation": 7},
    ],
)  # fmt: skip
def test_arguments_that_mean_nothing_are_refused_when_the_guard_is_made(made, more):
    arguments = {"threshold": made.threshold, "action": "refuse"} | more
    with pytest.raises(UsageError):
        diffmem.guard(made.pipe, **arguments)
