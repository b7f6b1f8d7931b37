"""The parts of the mitigations against their formulas, and what they do with unusual calls."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tests import tiny_families
from tests.mitigation.mitigations import PROMPTS, backwards, generate, prompts, target
from tests.tiny import picture

from diffmem.errors import DataError, MitigationRefused, UsageError
from diffmem.mitigation.amg import AmgParameters
from diffmem.mitigation.attenuation import Attenuation
from diffmem.mitigation.base import Record
from diffmem.mitigation.first_step import pull_factor
from diffmem.mitigation.local_index import LocalIndex
from diffmem.mitigation.prss import Prss
from diffmem.mitigation.ren import Ren, RenParameters
from diffmem.mitigation.rewrite import Rewrite
from diffmem.mitigation.spec import parse_mitigation
from diffmem.mitigation.steering import Step, steered
from diffmem.models.capture import capture
from diffmem.models.generation import Sampling
from diffmem.models.parameterization import convert
from diffmem.models.pipelines.calls import Call, intercepted
from diffmem.models.schedule import DiscreteSchedule, FlowSchedule
from diffmem.models.target import Target


def test_the_dynamic_transition_is_each_images_own_first_minimum():
    made = target()
    calls = {}
    with parse_mitigation("transition-dynamic").apply(made) as record, capture(made.denoiser) as seen:
        generate(made, steps=12)
    for image in range(2):
        norms = [float((c.output[2 + image] - c.output[image]).norm()) for c in seen]
        calls[image] = norms
    # Hooks run in the order in which they were set: what was captured is what the network gave, before the change.
    for image, norms in calls.items():
        minima = [k for k in range(2, len(norms)) if norms[k - 2] > norms[k - 1] < norms[k]]
        expected = seen[minima[0]].t if minima else None
        assert record.items[image]["transition"] == expected


def test_steering_finds_the_branches_in_either_order_and_in_two_calls():
    """What the network gives with the prompt is the conditional output, whatever its place in the batch."""
    cases = {"sd": (target("sd"), {}), "dit": (target("dit"), {})}
    flux = Target.from_pipeline(tiny_families.flux(distilled=False))
    cases["flux"] = (flux, {"negative_prompt": ["blue"] * 2, "true_cfg_scale": 3.0, "height": 16, "width": 16})
    for family, (made, more) in cases.items():
        steps, denoiser = [], made.denoiser
        texts = prompts(family)
        before = made.generate(texts, [0, 1], 0, Sampling(steps=1, height=None if family != "flux" else 16))

        def look(step):
            steps.append(step)
            return torch.zeros_like(step.x), torch.tensor([False, True])

        @contextmanager
        def around(arguments, denoiser=denoiser, made=made):
            call = Call(made.pipeline, denoiser, arguments, Record())
            with steered(call, look):
                yield call.arguments

        with intercepted(made.pipeline, around), torch.no_grad():
            made.pipeline(**denoiser.generation_arguments(texts), **more, num_inference_steps=1, output_type="np")
            cond = denoiser.encode_prompts(texts)
            expected = denoiser.predict(steps[0].x, steps[0].t, cond)
        torch.testing.assert_close(steps[0].conditional, expected, rtol=1e-3, atol=1e-3)
        assert (steps[0].unconditional - expected).abs().max() > 1e-4
        assert len(before) == 2


def test_without_guidance_there_is_nothing_to_steer():
    with (
        parse_mitigation("transition-static").apply(target()),
        pytest.raises(MitigationRefused, match="without guidance"),
    ):
        generate(target(), guidance=1.0)


def test_equal_prompts_and_negative_prompts_are_left_alone():
    """With an empty prompt both branches agree: the norms are zero and nothing divides by them."""
    pipe = target().pipeline
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for text in (
        "wen",
        "anisotropy",
        "sail:candidates=1,steps=1",
        "han-sample",
        "han-batch:until=1000",
        "transition-static",
    ):
        with parse_mitigation(text).apply(pipe):
            image = pipe("", latents=x, num_inference_steps=2, output_type="np").images
        assert np.isfinite(image).all()


def test_inference_mode_of_the_caller_is_no_obstacle():
    with torch.inference_mode(), parse_mitigation("wen:pull=0.001,steps=2").apply(target()) as record:
        generate(target())
    assert all(item["after"] < item["before"] for item in record.items)


def test_ren_masks_what_follows_the_prompt_and_raises_the_start():
    logits = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    content = torch.tensor([[False, True, True, False, False, False], [False, True, True, True, True, False]])
    edited = Ren(RenParameters(start=1.5)).edit(logits, content).softmax(-1)
    assert (edited[0, ..., 3:] == 0).all()
    assert (edited[1, ..., 5] == 0).all()
    raised = Ren(RenParameters(start=1.5, mask=False)).edit(logits, content)
    assert (raised[..., 0] > logits[..., 0]).all(), "also where the logit is negative"
    torch.testing.assert_close(raised[..., 1:], logits[..., 1:])


def test_attenuation_lowers_the_attention_of_unusual_tokens_only():
    logits = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    logits[..., 3] += 6
    content = torch.tensor([[False, True, True, True, True, True, False, False]])
    edited = Attenuation(parse_mitigation("attenuation:threshold=1").settings).edit(logits, content)
    changed = (edited != logits).any(2)
    assert changed[0, :, 3].all()
    assert not changed[0, :, [0, 6, 7]].any()
    assert (edited <= logits).all()
    assert edited.softmax(-1)[..., 3].sum() < logits.softmax(-1)[..., 3].sum()


def test_the_edited_attention_is_the_pipelines_own_where_nothing_is_edited():
    made = target()
    raised = parse_mitigation("ren:mask=false,start=1.0000001")
    before = generate(made)
    with raised.apply(made) as record:
        after = generate(made)
    assert record.items[0]["layers"] > 0
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) <= 1


def test_prss_combines_three_branches_by_its_formula():
    """At mag = l it is plain guidance by the other wording, at mag >= m guidance from the old wording."""

    class FakeCall:
        guidance = 7.5

        class denoiser:  # noqa: N801
            prediction = "epsilon"
            schedule = target().denoiser.schedule

    made = Prss(parse_mitigation("prss:low=0.3,high=0.5").settings)
    generator = torch.Generator().manual_seed(0)
    original, unconditional, direction = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(3))
    direction = direction / direction.square().mean().sqrt()
    for size, wanted in (
        (0.2, lambda m: unconditional + 7.5 * (m - unconditional)),
        (0.3001, lambda m: unconditional + 7.5 * (m - unconditional)),
        (0.6, lambda m: original + 7.5 * (m - original)),
    ):
        other = unconditional + size * direction
        got = made._combine(FakeCall, 500.0, original, unconditional, other)
        torch.testing.assert_close(got, wanted(other), rtol=1e-2, atol=2e-2)


def test_prss_takes_the_users_wordings_and_leaves_weak_prompts_alone():
    made = target()
    before = generate(made)
    wordings = Prss(parse_mitigation("prss:pull=0").settings, alternatives=lambda prompt: [prompt[::-1]])
    with wordings.apply(made) as record:
        changed = generate(made)
    assert [item["changed"] for item in record.items] == [p[::-1] for p in PROMPTS]
    assert max(np.abs(a - b).max() for a, b in zip(before, changed, strict=True)) > 0
    with Prss(parse_mitigation("prss:pull=1000").settings).apply(made) as record:
        same = generate(made)
    assert [item["changed"] for item in record.items] == [None, None]
    assert max(np.abs(a - b).max() for a, b in zip(before, same, strict=True)) == 0


def test_the_local_index_counts_near_duplicates_once_and_its_gradient_is_right():
    x0 = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    index = LocalIndex(torch.cat([x0, x0[:3] + 1e-3]), [str(i) for i in range(11)])
    assert len(index.x0) == 8
    assert index.captions == [str(i) for i in range(8)]
    at = x0[2:3] + 0.2 * torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    similarity, gradient, rivals, nearest = index.similarity(at, 5)
    assert nearest == [2]
    distances = (at - x0).flatten(1).norm(dim=1).sort().values
    torch.testing.assert_close(similarity, 1 - distances[:1] / distances[1:6].mean())
    torch.testing.assert_close(rivals, distances[1:6].mean()[None])
    moved = index.similarity(at + 1e-3 * gradient / gradient.norm(), 5)[0]
    torch.testing.assert_close((moved - similarity) / 1e-3, gradient.norm()[None], rtol=0.02, atol=1e-3)
    with pytest.raises(DataError, match="3 distinct images"):
        LocalIndex(x0[:1].repeat(5, 1, 1, 1))


def test_amg_and_rewrite_ask_for_what_they_need():
    with pytest.raises(MitigationRefused, match="amg:index=FOLDER"), parse_mitigation("amg").apply(target()):
        pass
    with pytest.raises(MitigationRefused, match="has no function"), parse_mitigation("rewrite").apply(target()):
        pass
    with pytest.raises(UsageError, match=r"no module no\.such\.module"):
        parse_mitigation("rewrite:function=no.such.module:name")
    with pytest.raises(UsageError, match="returned a int"), Rewrite(function=len).apply(target()):
        generate(target())
    assert backwards("ab") == "ba"
    assert AmgParameters(index="a/b").index == parse_mitigation("amg:index=a/b").settings.index


def test_a_pull_is_the_shift_of_x0_for_every_parameterisation():
    generator = torch.Generator().manual_seed(0)
    x, one, two = (torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))

    class Fake:
        sample_shape = (3, 4, 4)

    for schedule, kinds in ((DiscreteSchedule.linear(), ("epsilon", "v", "x0", "score")), (FlowSchedule(), ("flow",))):
        alpha, sigma = schedule.alpha_sigma(torch.tensor([600.0]))
        for kind in kinds:
            Fake.prediction, Fake.schedule = kind, schedule
            outputs = [convert(x0, x, alpha, sigma, "x0", kind) for x0 in (one, two)]
            pull = float((outputs[0] - outputs[1]).norm()) * pull_factor(Fake, 600.0)
            assert pull == pytest.approx(float((one - two).square().mean().sqrt()), rel=1e-9)


def test_the_step_is_guidance():
    step = Step(0, 1.0, torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1))
    assert step.guided(3.0).flatten().tolist() == [3, 3]
    assert step.guided(torch.tensor([1.0, -2.0])).flatten().tolist() == [1, -2]


def test_image_to_image_pipelines_are_mitigated_or_refused():
    from diffusers import StableDiffusionImg2ImgPipeline

    made = StableDiffusionImg2ImgPipeline(**target().pipeline.components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    found = {}
    for text in ("random-tokens:count=0", "random-tokens", "transition-static", "opposite-guidance", "ren"):
        with parse_mitigation(text).apply(made):
            found[text] = made(
                "a red fox", image=picture(0), strength=1.0, num_inference_steps=3, output_type="np",
                num_images_per_prompt=2, generator=torch.Generator().manual_seed(0),
            ).images  # fmt: skip
    plain = found.pop("random-tokens:count=0")
    assert all(np.abs(images - plain).max() > 1e-4 for images in found.values())
    for name in ("sail", "han-batch", "han-sample", "wen"):
        with pytest.raises(MitigationRefused, match="`latents`"), parse_mitigation(name).apply(made):
            made("a red fox", image=picture(0), num_inference_steps=3)


def test_a_pull_does_not_depend_on_the_size_of_the_image():
    pipe = target().pipeline
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pulls = []
    for latents in (x, x.repeat(1, 1, 2, 2)):
        with parse_mitigation("wen:pull=1000").apply(pipe) as record:
            side = latents.shape[-1] * 2
            pipe("a fox", latents=latents, height=side, width=side, num_inference_steps=1, output_type="np")
        pulls.append(record.items[0]["before"])
    assert pulls[1] == pytest.approx(pulls[0], rel=0.5)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_embedding_noise_is_on_both_halves_of_the_guided_pair(family):
    """As released: e + .1 n on the prompt's and on the empty prompt's embedding, each with noise of its own."""
    made = target(family)
    cond = made.denoiser.encode_prompts(PROMPTS).tensors["encoder_hidden_states"]
    null = made.denoiser.null().expand(2).tensors["encoder_hidden_states"]
    for text, guidance, halves in (("", 7.5, 2), (":on=prompt", 7.5, 1), ("", 1.0, 1)):
        seen = {}

        @contextmanager
        def look(arguments, seen=seen):
            seen.update(arguments)
            yield arguments

        mitigation = parse_mitigation(f"embedding-noise{text}")
        with mitigation.apply(made), intercepted(made.pipeline, look, 9):
            generate(made, family, steps=1, guidance=guidance)
        noises = [seen["prompt_embeds"] - cond.detach()]
        if halves == 2:
            noises.append(seen["negative_prompt_embeds"] - null.detach())
        assert (seen.get("negative_prompt_embeds") is not None) == (halves == 2)
        for noise in noises:
            # .1, give or take 4 standard errors of the standard deviation of so many normal numbers
            assert float(noise.std()) == pytest.approx(0.1, rel=4 / (2 * noise.numel()) ** 0.5)
        if halves == 2:
            pair = torch.stack([noise.flatten() for noise in noises])
            assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / pair.shape[1] ** 0.5
