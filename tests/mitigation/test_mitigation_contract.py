"""What every registered mitigation must keep to."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.mitigation.mitigations import BUILDERS, generate, neutral, prompts, strong, target, traces
from tests.tiny import tiny_ddpm

from diffmem.errors import MitigationRefused, UsageError
from diffmem.mitigation import MITIGATIONS
from diffmem.mitigation.base import Mitigation
from diffmem.mitigation.spec import mitigation_rows, parse_mitigation
from diffmem.models.target import Target

LEVELS = {"prompt", "embedding", "noise", "guidance", "attention"}
RUNS = {
    "sd": set(MITIGATIONS), "sd-v": set(MITIGATIONS), "sdxl": set(MITIGATIONS),
    "flux": {"embedding-noise", *(name for name in MITIGATIONS if MITIGATIONS.get(name).about.level == "prompt")}
    | {name for name in MITIGATIONS if not MITIGATIONS.get(name).__module__.startswith("diffmem.")},  # installed plug-ins
}  # fmt: skip


def differs(one, two):
    return max(np.abs(a - b).max() for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", MITIGATIONS)
def test_it_says_what_a_reader_must_know(name):
    cls = MITIGATIONS.get(name)
    assert issubclass(cls, Mitigation)
    assert cls.about.name == name
    assert cls.about.level in LEVELS
    assert all(len(text) > 0 for name, text in dataclasses.asdict(cls.about).items() if name != "kind")
    made = parse_mitigation(name)
    assert made.label == name
    for field, info in type(made.parameters).model_fields.items():
        assert not info.is_required(), f"{field} needs a default"
        assert info.description, f"{field} needs a description"
    assert set(cls.neutral) <= set(type(made.parameters).model_fields)
    assert (
        next(row for row in mitigation_rows() if row["name"] == name)["defaults"].keys() == dict(made.parameters).keys()
    )


@pytest.mark.parametrize("name", MITIGATIONS)
def test_it_changes_the_image_and_leaves_nothing_behind(name):
    made = target()
    before, plain = traces(made.pipeline), generate(made)
    with strong(name).apply(made) as record:
        changed = generate(made)
    assert traces(made.pipeline) == before
    assert differs(changed, plain) > 0
    assert len(record.items) == 2
    assert differs(generate(made), plain) == 0


@pytest.mark.parametrize("name", MITIGATIONS)
def test_it_leaves_nothing_behind_after_an_exception(name):
    made = target()
    before = traces(made.pipeline)

    def broken(*args):
        raise RuntimeError("in the middle")

    handle = made.pipeline.unet.up_blocks[0].register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="in the middle"), strong(name).apply(made):
        try:
            generate(made)
        finally:
            handle.remove()
    assert traces(made.pipeline) == before


@pytest.mark.parametrize("name", MITIGATIONS)
def test_a_batch_gives_what_its_members_give_alone_and_again(name):
    made = target()
    with strong(name).apply(made):
        together = generate(made)
        again = generate(made)
        alone = [generate(made, rows=(i,))[0] for i in (1, 0)][::-1]
    assert differs(together, again) == 0
    assert differs(together, alone) <= 1


@pytest.mark.parametrize("name", MITIGATIONS)
def test_neutral_parameters_give_the_unmitigated_image(name):
    made = target()
    with neutral(name).apply(made):
        images = generate(made)
    assert differs(images, generate(made)) == 0


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("name", MITIGATIONS)
def test_it_runs_on_every_family_or_refuses_with_the_reason(name, family):
    made = target(family)
    before = traces(made.pipeline)
    try:
        with strong(name).apply(made):
            images = generate(made, family, steps=2)
    except MitigationRefused as reason:
        assert name in str(reason), "it says who refuses"
        assert ":" in str(reason), "and what to do"
        assert name not in RUNS.get(family, ()), reason
    else:
        assert np.isfinite(np.stack(images)).all()
        assert name in RUNS.get(family, {name})
    assert traces(made.pipeline) == before


@pytest.mark.parametrize("name", MITIGATIONS)
def test_it_refuses_a_model_without_prompts(name):
    with (
        pytest.raises(MitigationRefused, match="takes no prompts"),
        strong(name).apply(Target.from_pipeline(tiny_ddpm())),
    ):
        pass


@pytest.mark.parametrize("name", ["random-tokens", "wen", "han-batch", "transition-dynamic", "amg", "ren"])
def test_several_images_per_prompt_and_negative_prompts(name):
    """The pipeline's own way of asking for several images gives what one call per image gives."""
    pipe = target().pipeline
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    common = {"num_inference_steps": 2, "output_type": "np", "guidance_scale": 5.0}
    with strong(name).apply(pipe):
        together = pipe(
            ["a red fox", "cat"], latents=x, num_images_per_prompt=2, negative_prompt=["blue", "dog"], **common
        ).images
        alone = pipe("cat", latents=x[3:], negative_prompt="dog", **common).images
    assert together.shape[0] == 4
    np.testing.assert_allclose(together[3], alone[0], atol=2e-3)


def test_mitigations_nest_and_end_in_any_order():
    made = target()
    before = traces(made.pipeline)
    one, two = strong("random-tokens").apply(made), strong("embedding-noise").apply(made)
    first, second = one.__enter__(), two.__enter__()
    both = generate(made)
    one.__exit__(None, None, None)
    only_second = generate(made)
    two.__exit__(None, None, None)
    assert traces(made.pipeline) == before
    assert len(first.items) == 2
    assert len(second.items) == 4
    assert differs(both, only_second) > 0


def test_unknown_names_and_parameters_are_told():
    with pytest.raises(UsageError, match="Did you mean 'random-tokens'"):
        parse_mitigation("random-token")
    with pytest.raises(UsageError, match="has no parameter 'cuont'"):
        parse_mitigation("random-tokens:cuont=3")
    assert parse_mitigation("random-tokens:count=3").label == "random-tokens:count=3"


def test_a_model_that_makes_its_images_with_a_function_is_refused():
    from diffmem.errors import ModelError

    made = Target.from_callable(
        lambda x, t, c: x,
        (1, 4, 4),
        encode=lambda texts: torch.zeros(len(texts), 2),
        generate=lambda prompts, seeds: [],
    )
    with pytest.raises(ModelError, match="a function of its own"), strong("random-tokens").apply(made):
        pass


def test_prompt_methods_need_a_text():
    made = target()
    cond = made.denoiser.encode_prompts(prompts("sd"))
    with strong("random-tokens").apply(made), pytest.raises(MitigationRefused, match="prompt_embeds"):
        made.pipeline(prompt_embeds=cond.tensors["encoder_hidden_states"], num_inference_steps=2)
