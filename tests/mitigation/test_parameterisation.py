"""One network, three ways of writing its output: a mitigation must not tell them apart."""

from contextlib import contextmanager
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.mitigation.mitigations import built, generate, strong, target
from tests.tiny import tiny_sd

from diffmem.mitigation import MITIGATIONS
from diffmem.mitigation.base import ORDER, Record
from diffmem.mitigation.first_step import epsilon_factor
from diffmem.mitigation.steering import Step
from diffmem.mitigation.transition_dynamic import TransitionDynamic
from diffmem.models.parameterization import convert
from diffmem.models.pipelines.calls import intercepted
from diffmem.models.schedule import DiscreteSchedule, FlowSchedule
from diffmem.models.target import Target

KINDS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}


@lru_cache
def written_as(name):
    """The tiny pipeline whose network gives noise, with its output rewritten to another kind, and saying so."""
    pipe = tiny_sd(name)
    products = pipe.scheduler.alphas_cumprod.double()

    def rewritten(module, args, kwargs, output):
        x, t = args[0], int(torch.as_tensor(args[1]).reshape(-1)[0])
        alpha, sigma = (value.sqrt().expand(len(x)) for value in (products[t], 1 - products[t]))
        raw = output[0] if isinstance(output, tuple) else output.sample
        new = convert(raw.double(), x.double(), alpha, sigma, "epsilon", KINDS[name]).to(raw.dtype)
        return (new,) if isinstance(output, tuple) else type(output)(sample=new)

    pipe.unet.register_forward_hook(rewritten, with_kwargs=True)
    made = Target.from_pipeline(pipe)
    assert made.denoiser.prediction == KINDS[name]
    return made


def mitigated(made, mitigation):
    """Images, and the noise that the pipeline was started from."""
    noises = []

    @contextmanager
    def around(arguments):
        noises.append(arguments["latents"].double())
        yield arguments

    with intercepted(made.pipeline, around, len(ORDER)), mitigation.apply(made):
        return np.stack(generate(made, steps=4)), torch.cat(noises)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", MITIGATIONS)
def test_a_network_gives_the_same_images_whatever_it_predicts(name, kind):
    one, start = mitigated(written_as("epsilon"), strong(name))
    other, again = mitigated(written_as(kind), strong(name))
    assert np.abs(one - other).max() <= 2
    torch.testing.assert_close(again, start, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("text", ["sail:sharpness=0.0001,candidates=1,steps=2", "han-batch:gamma=200"])
def test_methods_of_the_noise_go_the_same_way_whatever_the_network_predicts(text):
    """Towards the noise that the prompt adds (Han), towards what the prompt asks for (SAIL): opposite in x0."""
    before = mitigated(written_as("epsilon"), built("random-tokens:count=0"))[1]
    moves = [mitigated(written_as(kind), built(text))[1] - before for kind in KINDS]
    assert float(moves[0].norm()) > 0.1
    for move in moves[1:]:
        torch.testing.assert_close(move, moves[0], rtol=0.05, atol=0.01 * float(moves[0].abs().max()))


def test_the_dynamic_transition_looks_at_the_noise_estimate():
    """A minimum of ||v_c - v_u|| that is none of ||eps_c - eps_u||, which grows with alpha, opens nothing."""
    made = target("sd-v")
    call = SimpleNamespace(denoiser=made.denoiser, size=1, record=Record())
    times = [801.0, 501.0, 201.0, 1.0]
    alphas = [made.denoiser.schedule.at(t)[0] for t in times]
    for wanted, norms in (
        (None, [1.0, 0.99, 1.0, 1.1]),  # in v
        (1.0, [n / a for n, a in zip([1.0, 0.8, 0.5, 0.9], alphas, strict=True)]),  # in epsilon
    ):
        call.record.items.clear()
        decide = TransitionDynamic().steering(call)
        for index, (t, norm) in enumerate(zip(times, norms, strict=True)):
            u = torch.zeros(1, 1, 1, 1)
            decide(Step(index, t, u, u + norm, u))
        assert call.record.items[0]["transition"] == wanted


def test_the_factor_to_epsilon_is_that_of_the_conversion():
    generator = torch.Generator().manual_seed(0)
    x, one, two = (torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    for schedule, kinds in ((DiscreteSchedule.linear(), ("epsilon", "v", "x0", "score")), (FlowSchedule(), ("flow",))):
        alpha, sigma = schedule.alpha_sigma(torch.tensor([600.0]))
        for kind in kinds:
            outputs = [convert(eps, x, alpha, sigma, "epsilon", kind) for eps in (one, two)]
            fake = SimpleNamespace(prediction=kind, schedule=schedule)
            norm = float((outputs[0] - outputs[1]).norm()) * epsilon_factor(fake, 600.0)
            assert norm == pytest.approx(float((one - two).norm()), rel=1e-9)
