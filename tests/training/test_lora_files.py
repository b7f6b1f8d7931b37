"""A trained LoRA as a file: loaded into the base again it is the network that was trained, whatever layers it adapts."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_sd
from tests.training.test_training import pictures, plan_of

from diffmem.models.target import Target
from diffmem.training.loop import train

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.mark.parametrize(
    ("targets", "encoder", "alpha"),
    [(ATTENTION, "frozen", 8), ([*ATTENTION, "ff.net.2", "proj_in", "conv1"], "frozen", 2), (ATTENTION, "trained", 8)],
)
def test_what_is_loaded_is_what_was_trained(tmp_path, targets, encoder, alpha):
    tiny_sd().save_pretrained(tmp_path / "base")
    trained = Target.from_pretrained(tmp_path / "base")
    model = {"method": "lora", "lora_rank": 2, "lora_alpha": alpha, "lora_targets": targets, "text_encoder": encoder}
    plan = plan_of(steps=2, batch=2, model=model, optimizer={"lr": 0.05})
    result = train(plan, tmp_path / "run", data=pictures(2), target=trained, device="cpu")
    loaded = Target.from_pretrained(tmp_path / "base", lora=result.saved)
    base = Target.from_pretrained(tmp_path / "base")
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500.0])
    with torch.no_grad():
        embedded = [m.denoiser.encode_prompts(["a picture 1"]) for m in (trained, loaded, base)]
        outputs = [m.denoiser.predict(x, t, e) for m, e in zip((trained, loaded, base), embedded, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    assert (outputs[0] - outputs[2]).abs().max() > 1e-3
    moved = [not torch.equal(a, b) for a, b in zip(*(e.tensors.values() for e in embedded[1:]), strict=True)]
    assert any(moved) == (encoder == "trained")
