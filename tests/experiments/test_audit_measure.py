"""audit --measure: copied training images beside others, in the same run and report."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffmem.cli.app import main
from diffmem.errors import UsageError
from diffmem.experiments.audit.run import audit
from diffmem.models.target import Target
from diffmem.testbeds.closed_form import empirical_bayes
from tests import measuring


@pytest.fixture(scope="module")
def memorizer():
    """A model that answers half of its prompts with a training image, and its 40 training images."""
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (40, 16, 16)).astype(np.uint8)
    known = torch.from_numpy(pixels[:10] / 127.5 - 1)[:, None]
    target = Target.from_denoiser(empirical_bayes(known, [f"plant {i}" for i in range(10)]), name="half a memorizer")

    def generate(prompts, seeds):
        made = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            place = int(prompt.split()[-1])
            fresh = np.random.default_rng(seed % 2**32).integers(0, 256, (16, 16)).astype(np.uint8)
            made.append(Image.fromarray(pixels[place] if place < 10 else fresh))
        return made

    target._generator = generate
    return target, {f"img-{i:02d}": picture for i, picture in enumerate(pixels)}


def test_copied_images_are_measured_beside_others(memorizer, tmp_path):
    measuring.register()
    target, train = memorizer
    from diffmem.data.images import load_images

    prompts = [f"plant {i}" for i in range(20)]
    arguments = {"out": tmp_path / "run", "images": 1, "draws": 1, "scores": ["text-uppercase"]}
    result = audit(target, prompts, load_images(train), measure=["toy"], measure_images=8, **arguments)
    found = result.summary.as_dict()["measures"]
    groups = {group["name"]: group["images"] for group in found["scores"][0]["groups"] if group["kind"] == "group"}
    assert groups == {"copied": 8, "no copy found": 8} and found["trained"] is True
    top = [image["group"] for image in found["scores"][0]["top"][:8]]
    assert top == ["copied"] * 8
    page = (result.path / "report.html").read_text()
    assert "Measured images" in page and "Prompts" in page
    again = audit(target, prompts, load_images(train), measure=["toy"], measure_images=8, **arguments)
    assert again.summary.as_dict()["measures"]["scores"][0]["images"] == 16


def test_measuring_needs_a_training_set_and_a_score_that_exists(memorizer, tmp_path, capsys):
    measuring.register()
    with pytest.raises(UsageError, match="--train"):
        audit(memorizer[0], ["plant 1"], measure=["toy"])
    command = ["audit", "testbed:digits", "one", "--out", str(tmp_path / "run"), "--dry-run", "--json"]
    assert main([*command, "--measure", "toy,tov"]) == 2
    assert "Did you mean 'toy'" in capsys.readouterr().err
    assert main([*command, "--measure-images", "0", "--measure", "toy"]) == 2
    capsys.readouterr()
    assert main(command) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main([*command, "--measure", "toy,toy-long", "--measure-images", "5", "--train", str(tmp_path)]) == 0
    both = json.loads(capsys.readouterr().out)
    assert both["prompts"] == plain["prompts"] == 1 and both["nfe"] - plain["nfe"] == 2 * 5 * (1 + 6)


def test_scores_that_refuse_are_named_in_the_run(tmp_path):
    """A network that predicts x0 has no epsilon at t = 0 for PIA; without prompts it takes no prompt score."""
    import torch

    from diffmem.cli.app import main
    from diffmem.data.images import load_images
    from diffmem.experiments.audit.run import audit
    from diffmem.models.target import Target

    pictures = np.random.default_rng(0).integers(0, 255, (12, 16, 16), dtype=np.uint8)
    target = Target.from_callable(
        lambda x, t, c: torch.zeros_like(x), (1, 16, 16), prediction="x0", schedule="flow", steps=2, name="zero"
    )
    run = audit(
        target, None, load_images(list(pictures)), samples=2, scores=["score-difference"], measure=["pia"], out=tmp_path
    )
    states = {check.check: (check.state, check.found) for check in run.summary.checks}
    assert states["score score-difference"][0] == states["score pia"][0] == "not run"
    assert "takes no prompts" in states["score score-difference"][1]
    assert "x0 prediction says nothing" in states["score pia"][1]
    assert "pia needs epsilon" in (tmp_path / "report.html").read_text()
    assert main(["show", str(tmp_path)]) == 0
