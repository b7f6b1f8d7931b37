"""What the family by capture reads when it opens a pipeline: text that no encoder reads, one branch or two, half precision."""

import pytest
import torch
from tests.tiny import tiny_sd
from tests.tiny_captured import CAPTURED
from tests.tiny_families import FAMILIES

from diffmem.models.families import denoiser_for
from diffmem.models.families.capture import Captured
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.stages.score.score import score


def test_what_no_encoder_reads_is_found_without_its_tokenizer():
    """The same end of a prompt that the family finds by counting tokens."""
    pipe = tiny_sd()
    prompts = ["a fox that has run a very long way over hills and through rivers", "fox"]
    own, captured = denoiser_for(pipe), Captured(pipe)
    assert captured.encode_prompts(prompts).truncated == own.encode_prompts(prompts).truncated


def test_it_leaves_nothing_behind():
    from tests.mitigation.mitigations import traces

    pipe = tiny_sd()
    pipe("a fox", num_inference_steps=1)
    before = traces(pipe)
    Captured(pipe).encode_prompts(["a fox"])
    assert traces(pipe) == before


def test_it_can_be_asked_in_the_middle_of_a_run():
    """Encoding while the pipeline samples changes nothing of what it makes (its scheduler has a state)."""
    pipe = tiny_sd()
    captured = Captured(pipe)

    def ask(pipeline, i, t, arguments):
        captured.encode_prompts(["another"])
        return {}

    images = [
        pipe("a fox", num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt", **more)[0]
        for more in ({}, {"callback_on_step_end": ask})
    ]
    assert torch.equal(*images)


def test_a_row_may_be_the_second_dimension():
    """HiDream gives its network the layers of a language model as [layer, row, token, width]."""
    from diffmem.models.pipelines.leaves import joined, kind_of, row_of

    once, twice = torch.randn(3, 2, 5), torch.randn(3, 4, 5)
    assert kind_of(once, twice, rows=2) == "columns"
    rows = [row_of(once, "columns", i) for i in range(2)]
    assert torch.equal(joined(rows, "columns"), once)
    assert kind_of(once, torch.randn(3, 4, 6), rows=2) is None


def test_a_distilled_guidance_leaves_one_branch():
    """FLUX.1-dev has classifier-free guidance in its weights: true guidance would be possible, and is not asked for."""
    pipe = FAMILIES["flux"]()
    captured, own = Captured(pipe), denoiser_for(pipe)
    assert not captured.unconditional_branch
    refused = score(Target("flux", captured, pipe), ["a fox"], ["score-difference"], draws=1).refused
    assert set(refused) == {"score-difference"}
    x = torch.randn(1, *own.sample_shape, generator=torch.Generator().manual_seed(0))
    for guidance in (None, 7.0):  # an input of the network
        ours, theirs = (one.under(None, None, guidance) for one in (captured, own))
        with torch.no_grad():
            outputs = [one.predict(x, 800.0, one.null()) for one in (ours, theirs)]
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    assert Target("flux", captured, pipe).check("a fox", Sampling(steps=2, guidance=7.0)).passed


def test_a_pipeline_that_says_it_is_distilled_has_one_branch():
    pipe = CAPTURED["flux2-klein"]()
    pipe.register_to_config(is_distilled=True)
    target = Target.from_pipeline(pipe)
    assert not target.denoiser.unconditional_branch
    assert any("is_distilled" in note for note in target.notes)
    assert target.check("a fox", Sampling(steps=2)).passed


@pytest.mark.parametrize("name", ["lumina2", "hunyuan-dit", "flux2-klein"])
def test_in_half_precision(name):
    """Layouts, times and signs are read through bfloat16's rounding; the time it passes is up to 2 off, which is no finding."""
    captured = Captured(CAPTURED[name]())
    target = Target.from_pipeline(CAPTURED[name]().to(torch.bfloat16))
    half = target.denoiser
    result = target.check("a fox", Sampling(steps=4))
    assert result.passed, result.message
    assert half.sample_shape == captured.sample_shape
    assert torch.equal(half._layout.order, captured._layout.order)
    torch.testing.assert_close(half._layout.scale, captured._layout.scale, rtol=1e-2, atol=1e-2)
    assert (half.seen.times.scale, half.seen.times.offset) == (captured.seen.times.scale, captured.seen.times.offset)


def test_from_a_folder(tmp_path):
    CAPTURED["aura-flow"]().save_pretrained(tmp_path / "model")
    target = Target.from_pretrained(tmp_path / "model")
    assert target.denoiser.family == "capture"
    assert target.denoiser.sample_shape == (4, 512, 512)  # its call makes 1024 pixels unless it is told
    target.pipeline.default_sample_size = 8
    assert Target.from_pipeline(target.pipeline).check("a fox", Sampling(steps=2)).passed
