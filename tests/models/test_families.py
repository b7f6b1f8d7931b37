"""Every family on real classes, saved and loaded from disk: the check, batches, scores or a clear refusal."""

import numpy as np
import pytest
import torch
from tests import tiny_families
from tests.tiny_families import FAMILIES

from diffmem.errors import ModelError
from diffmem.models.generation import Sampling
from diffmem.models.ode import sample
from diffmem.models.target import Target
from diffmem.report.scores import per_prompt
from diffmem.stages.score.score import score

PROMPTS = {"dit": ["207", "3"]}
SIZE = {name: {"height": 16, "width": 16} for name in ("flux", "sd3", "qwen-image")}


def sampling(name, **more):
    return Sampling(steps=2, **SIZE.get(name, {}), **more)


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tmp_path_factory):
    name = request.param
    pipe = FAMILIES[name]()
    folder = tmp_path_factory.mktemp("families") / name
    pipe.save_pretrained(folder, safe_serialization=True)
    target = tiny_families.reopened(folder)
    return name, target, PROMPTS.get(name, ["a fox", "abc"])


def test_the_family_is_recognised_and_its_check_passes(loaded):
    name, target, prompts = loaded
    assert target.denoiser.family == name
    result = target.check(prompts[0], sampling(name))
    assert result.passed, result.message
    assert result.calls == 2
    assert not any(m._forward_hooks for m in target.denoiser.network.modules())


@pytest.mark.parametrize("name", ["z-image", "qwen-image", "sana"])
def test_their_cost_and_another_size(name):
    target = Target.from_pipeline(FAMILIES[name]())
    seen, more = [], {"height": 32, "width": 64}
    target.denoiser.network.register_forward_hook(lambda m, a, o: seen.append(len(o[0])))
    for guidance in (None, 0.5, 1.0, 3.0):
        seen.clear()
        settings = sampling(name, guidance=guidance)
        target.generate(["a fox"], [0], 0, settings)
        assert target.generation_nfe(settings) == sum(seen), guidance
    result = target.check("a fox", Sampling(steps=2, **more))
    assert result.passed, result.message
    assert target.generate(["a fox"], [0], 0, Sampling(steps=2, **more))[0].size == (64, 32)


def test_predictions_do_not_depend_on_the_batch(loaded):
    _, target, prompts = loaded
    denoiser = target.denoiser
    x = torch.randn(2, *denoiser.sample_shape, generator=torch.Generator().manual_seed(0))
    t = denoiser.schedule.sampling_times(4)[1]
    with torch.no_grad():
        cond = denoiser.encode_prompts(prompts)
        both = denoiser.predict(x, t, cond)
        assert both.shape == x.shape
        for i in range(2):
            torch.testing.assert_close(
                both[i : i + 1], denoiser.predict(x[i : i + 1], t, cond.select([i])), rtol=1e-4, atol=1e-4
            )
        assert (both[0] - denoiser.predict(x[:1], t, cond.select([1]))[0]).abs().max() > 1e-5, "the prompt matters"


def test_images_are_seeded_and_do_not_depend_on_the_batch(loaded):
    name, target, prompts = loaded
    together = target.generate(prompts, [0, 1], 3, sampling(name))
    alone = target.generate(prompts[1:], [1], 3, sampling(name))[0]
    assert np.abs(np.asarray(together[1], int) - np.asarray(alone, int)).max() <= 2


def test_encode_and_decode(loaded):
    name, target, _ = loaded
    denoiser, side = target.denoiser, tiny_families.SIDES.get(name, 16)
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = denoiser.encode_images(images)
        assert tuple(latents.shape[1:]) == denoiser.sample_shape
        assert denoiser.decode(latents).shape == images.shape
        with pytest.raises(ModelError, match="resize the images first"):
            denoiser.encode_images(torch.zeros(1, 3, 2 * side, 2 * side))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "dit"])  # DiT never shows its last latents
def test_decode_is_the_pipelines(name):
    target = Target.from_pipeline(FAMILIES[name]())
    denoiser, images = target.denoiser, {}
    for kind in ("latent", "pt"):
        arguments = {"num_inference_steps": 2, **SIZE.get(name, {}), **denoiser.generation_arguments(["a fox"])}
        generator = torch.Generator().manual_seed(0)
        images[kind] = target.pipeline(**arguments, generator=generator, output_type=kind).images
    with torch.no_grad():
        ours = denoiser.decode(denoiser.read_latents(images["latent"]))
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), images["pt"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_latents_are_laid_out_for_the_pipeline_and_back(name):
    denoiser = Target.from_pipeline(FAMILIES[name]()).denoiser
    noise = torch.randn(2, *denoiser.sample_shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(denoiser.read_latents(denoiser.initial_latents(noise)), noise)


def test_scores_run_or_refuse_with_the_reason(loaded):
    name, target, prompts = loaded
    scores = ["score-difference", "alignment", "anisotropy:weights=1/1", "anisotropy-paper"]
    result = score(target, prompts, scores, draws=2)
    if name == "flux":
        assert set(result.refused) == {
            "score-difference",
            "alignment",
            "anisotropy:weights=1.0/1.0",
            "anisotropy-paper",
        }
        assert all("guidance-distilled" in reason for reason in result.refused.values())
        return
    assert not result.refused
    for entries in per_prompt(result.run.store).values():
        assert all(entry["status"] == "ok" for entry in entries.values()), entries


def test_flow_models_are_scored_where_alpha_is_zero():
    target = Target.from_pipeline(FAMILIES["sd3"]())
    schedule = target.denoiser.schedule
    assert schedule.at(schedule.sampling_times(50)[0]) == (0.0, 1.0)
    values = score(target, ["a fox", "abc"], ["score-difference"], draws=1).values("score-difference")
    assert all(v.min() > 0 for v in values.values())


@pytest.mark.parametrize("name", ["sd3", "pixart", "z-image", "sana"])
def test_our_sampler_equals_the_pipelines(name):
    """z-image guides from the conditional output, so its scale is one less."""
    pipe = FAMILIES[name]()
    denoiser = Target.from_pipeline(pipe).denoiser
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    more = {"height": 16, "width": 16, "guidance_scale": 2.0} | {
        "pixart": {"use_resolution_binning": False, "clean_caption": False},
        "sana": {"use_resolution_binning": False, "height": 32, "width": 32},
        "z-image": {"guidance_scale": 1.0},
    }.get(name, {})
    if name == "pixart":
        pipe.scheduler.register_to_config(clip_sample=False)
    if name == "sana":  # as published, but with the first-order solver that ours is
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, solver_order=1)
    with torch.no_grad():
        ours = sample(denoiser, x, denoiser.encode_prompts(["a fox"]), steps=4, guidance=2.0)
    theirs = pipe("a fox", latents=x, num_inference_steps=4, output_type="latent", **more).images
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_flux_without_distillation_has_an_unconditional_branch():
    target = Target.from_pipeline(tiny_families.flux(distilled=False))
    assert target.denoiser.unconditional_branch
    assert target.check("a fox", sampling("flux")).passed
    assert not score(target, ["a fox"], ["score-difference"], draws=1).refused


def test_sdxl_null_is_what_the_pipeline_takes():
    for zeros in (True, False):
        denoiser = Target.from_pipeline(tiny_families.sdxl(zeros)).denoiser
        assert bool((denoiser.null().tensors["encoder_hidden_states"] == 0).all()) == zeros


def test_dit_takes_names_and_numbers_and_refuses_others():
    denoiser = Target.from_pipeline(FAMILIES["dit"]()).denoiser
    assert denoiser.labels(["207", "tiger shark", "retriever"]) == [207, 3, 207]
    for bad in ("1000", "a fox", "-1"):
        with pytest.raises(ModelError, match="is no class of this model"):
            denoiser.labels([bad])


def test_what_the_encoders_of_today_do_not_read_is_reported():
    """Their limits count the tokens of a template or of an instruction too; one letter is one token here."""
    for name, shown in (("z-image", 512 - 6), ("qwen-image", 512), ("sana", 298)):
        denoiser = Target.from_pipeline(FAMILIES[name]()).denoiser
        prompt, other = "ab" * 300, "ab" * 300 + "c"
        cut = denoiser.encode_prompts([prompt, "a fox"]).truncated
        assert cut == (prompt[shown:], None), name
        if name != "qwen-image":  # a line of its template that belongs to the system message is kept, in tiny only
            kept, changed = prompt[:shown] + "c", prompt[: shown - 1] + "c"
            same, differs, base = (denoiser.encode_prompts([text]).tensors for text in (kept, changed, other))
            for key, value in base.items():
                torch.testing.assert_close(same[key], value)
            assert any(not torch.equal(differs[key], value) for key, value in base.items())


def test_qwen_image_guides_by_its_own_argument():
    """Without a negative prompt the pipeline does not guide; asked for a scale, both its branches run."""
    target = Target.from_pipeline(FAMILIES["qwen-image"]())
    for guidance, calls in ((None, 2), (3.0, 4), (1.0, 2)):
        result = target.check("a fox", sampling("qwen-image", guidance=guidance))
        assert result.passed, result.message
        assert result.calls == calls


def test_qwen_image_with_distilled_guidance_generates_only():
    pipe = FAMILIES["qwen-image"]()
    pipe.transformer.register_to_config(guidance_embeds=True)
    target = Target.from_pipeline(pipe)
    assert "guidance_embeds" in target.generates_only
    with pytest.raises(ModelError, match="guidance_embeds"):
        target.need_denoiser()
