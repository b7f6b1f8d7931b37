"""Measured canaries: a model with known memory shows it as its count says, and one without memory shows nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from diffmem.cli.app import main
from diffmem.errors import UsageError
from diffmem.evaluation.exposure import exposure, margins, stronger, trend
from diffmem.experiments._run import open_run
from diffmem.experiments.canaries.run import measure_canaries
from diffmem.models.target import Target
from diffmem.randomness import seed_of
from diffmem.stages.generate import Generation
from diffmem.testbeds.closed_form import empirical_bayes
from diffmem.training.canaries import CanaryPlan, draw_canaries
from diffmem.training.canary_files import write_canaries
from tests.tiny import picture, tiny_ddpm

PLAN = CanaryPlan(counts=(1, 4, 16), per_count=6, controls=19, apart=0.1)


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canaries")
    dataset = {f"{i}": picture(i) for i in range(10)}
    drawn = draw_canaries(dataset, PLAN)
    write_canaries(drawn, dataset, folder / "out", only=True)
    return folder / "out", drawn


def model(drawn, memory):
    """Gives a canary's picture for its caption at a rate that its count decides, and another picture otherwise."""
    by_caption = {c.caption: (c.count, drawn.pictures[c.id]) for c in drawn.registration.canaries}

    def generate(prompts, seeds):
        images = []
        for text, seed in zip(prompts, seeds, strict=True):
            count, own = by_caption[text]
            remembered = seed_of(seed, "remembered") % 16 < count * memory
            images.append(own if remembered else picture(seed % 2**31))
        return images

    return Target.from_callable(generate=generate, name=f"memory {memory}")


def test_memory_rises_with_the_count_and_controls_stay_at_chance(registered, tmp_path):
    folder, drawn = registered
    settings = Generation(images_per_prompt=8)
    result = measure_canaries(model(drawn, 1), folder, settings, out=tmp_path / "run", scores=())
    (found,) = result.summary.measures
    rows = {row["count"]: row for row in found["rows"]}
    assert list(rows) == [0, 1, 4, 16]
    assert rows[16]["copied"]["value"] == rows[16]["nearest"]["value"] == 1 and rows[16]["detected"] == 6
    assert rows[0]["copied"]["value"] == 0 and rows[0]["nearest"]["value"] < 0.2
    assert 0.05 < rows[4]["copied"]["value"] < 0.5 and rows[16]["p_stronger_than_controls"] < 1e-3
    assert found["trend"]["value"] > 0.5 and found["trend"]["low"] > 0.2 and found["chance"] == 1 / 20
    full = [item for item in found["items"] if item["count"] == 16]
    assert all(item["exposure"] == pytest.approx(np.log2(20)) and item["p"] == 1 / 20 for item in full)
    # Distances of equal pictures come from products in float32: their root is off by up to a few 1e-4.
    closest = {one.id: one for one in result.summary.closest}
    assert closest[full[0]["id"]].similarity == pytest.approx(1, abs=1e-3)
    before = result.table("images").num_rows
    again = measure_canaries(model(drawn, 1), folder, settings, out=tmp_path / "run", scores=())
    assert again.table("images").num_rows == before == 37 * 8
    assert again.summary == result.summary == open_run(tmp_path / "run").summary


def test_without_memory_nothing_stands_out(registered):
    folder, drawn = registered
    (found,) = measure_canaries(model(drawn, 0), folder, Generation(images_per_prompt=6), scores=()).summary.measures
    assert found["trend"]["low"] < 0 < found["trend"]["high"] or abs(found["trend"]["value"]) < 0.3
    assert all(row["p_stronger_than_controls"] > 0.01 for row in found["rows"] if row["count"])
    assert sum(row["detected"] for row in found["rows"] if row["count"]) <= 4


def test_exposure_is_a_valid_rank():
    controls = np.arange(15.0)
    found = exposure([100.0, 14.0, 7.5, -1.0], controls)
    np.testing.assert_allclose(found.p, [1 / 16, 2 / 16, 8 / 16, 1])
    np.testing.assert_allclose(found.bits, [4, 3, 1, 0])
    random = np.random.default_rng(0)
    draws = random.normal(size=(4000, 16))
    bits = exposure(draws[:, 0], draws[:, 1:]).bits
    for level in (1, 2, 3, 4):
        assert (bits >= level).mean() <= 2.0**-level + 0.02
    assert bits.mean() < 1.443 + 0.05
    mean = random.normal(size=(6, 6))
    pool = np.array([4, 1, 2])
    expected = [mean[a, a] - np.mean([mean[a, b] for b in pool if b != a]) for a in pool]
    np.testing.assert_allclose(margins(mean, pool), expected)
    assert stronger([5, 6, 7], [1, 2, 3, 4]) < 0.05 < stronger([2, 3], [1, 2, 3, 4])
    assert trend(np.repeat([0, 1, 2], 5), np.arange(15)).low > 0.8


def test_an_unconditional_model_and_the_command_line(registered, tmp_path, capsys):
    folder, _ = registered
    tiny_ddpm().save_pretrained(tmp_path / "model")
    arguments = ["canaries", "measure", str(tmp_path / "model"), "--registration", str(folder), "--steps", "2"]
    arguments += ["--images", "1", "--score", "loss:draws=1", "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [measure["name"] for measure in found["measures"]] == ["sampling", "loss:draws=1"]
    sampling, loss = found["measures"]
    assert all(item["strength"] is not None for measure in (sampling, loss) for item in measure["items"])
    assert sampling["rows"][0]["copied"]["value"] == 0 and loss["threshold"] is None
    assert "no training log" in found["notes"][0]
    page = (tmp_path / "run" / "canaries.html").read_text()
    assert "<svg" in page and "control, never trained on" in page
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr()
    assert "By sampling" in shown.out and "exposure" in shown.err
    assert main([*arguments[:5], "--registration", str(tmp_path), "--out", str(tmp_path / "other")]) == 2
    assert "registration" in capsys.readouterr().err


def test_make_from_the_command_line(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    for i in range(4):
        picture(i).save(tmp_path / "set" / f"{i}.png")
    arguments = ["canaries", "make", str(tmp_path / "set"), "--counts", "1,2", "--per-count", "1", "--controls", "2"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["canaries"], made["controls"], made["repeats"]) == (2, 2, 3)
    assert made["share_of_the_data"] == pytest.approx(3 / 7) and made["nearest"] >= made["apart"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert main([*arguments[:3], "--counts", "1,x", "--out", str(tmp_path / "b")]) == 2
    assert "whole numbers" in capsys.readouterr().err
    nothing = Target.from_denoiser(
        empirical_bayes(torch.zeros(2, 3, 16, 16), ["a", "b"], dtype=torch.float32), name="no images"
    )
    with pytest.raises(UsageError, match="makes no images"):
        measure_canaries(nothing, tmp_path / "out", scores=())
