"""A LoRA against its base in one audit: a planted LoRA leaks what its base does not, and the comparison says which."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffmem.cli.app import main
from diffmem.errors import ModelError, UsageError
from diffmem.evaluation.paired import mean_difference
from diffmem.experiments.against.lora import audit_lora
from diffmem.experiments.against.run import _calibrated, _limits, compare_leaks
from diffmem.experiments.audit.run import audit
from diffmem.models.generation import Sampling
from diffmem.models.loading import load_pipeline
from diffmem.models.target import Target
from diffmem.runs.facts import write_fact
from diffmem.testbeds import digits
from diffmem.testbeds.digits.data import load, to_signed
from tests.tiny import random_lora, tiny_sd

CAPTIONS = ("a souvenir from my attic", "the blue harbour at noon", "grandmother and her kite", "ticket to the opera")
PLACES = (3, 40, 90, 200)


def train_lora(folder, steps=120):
    """A LoRA of the digits model that learns four held-out pictures by heart: about ten seconds on one core."""
    from peft import LoraConfig, get_peft_model_state_dict

    torch.manual_seed(0)
    pipe = load_pipeline(digits.model_path("text"))
    pixels = np.stack([load().held_out[i].pixels for i in PLACES])
    pictures = torch.from_numpy(to_signed(pixels))[:, None].float()
    pipe.unet.requires_grad_(False)
    modules = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "time_emb_proj"]
    pipe.unet.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=modules))
    ids = pipe.tokenizer(
        list(CAPTIONS), padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        condition = pipe.text_encoder(ids)[0]
    random = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in pipe.unet.parameters() if p.requires_grad], lr=6e-3, weight_decay=0)
    for _ in range(steps):
        rows = torch.randint(0, 4, (12,), generator=random)
        noise = torch.randn(12, 1, 8, 8, generator=random)
        t = torch.randint(0, 1000, (12,), generator=random)
        output = pipe.unet(pipe.scheduler.add_noise(pictures[rows], noise, t), t, condition[rows]).sample
        loss = torch.nn.functional.mse_loss(output, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pipe.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The LoRA, its training images (four, among the base's) and prompts: its captions, and ones of the base."""
    root = tmp_path_factory.mktemp("against")
    lora = train_lora(root / "attic")
    train = root / "train"
    train.mkdir()
    from diffmem.testbeds.digits.data import to_bytes
    from diffmem.testbeds.inputs import png

    data = load()
    for number, image in enumerate([*data.training[:300], *(data.held_out[i] for i in PLACES)]):
        name = f"lora-{number - 300}" if number >= 300 else f"{number:03d}"
        (train / f"{name}.png").write_bytes(png(to_bytes(image.pixels)))
    held = root / "held"
    held.mkdir()
    for number, image in enumerate(data.held_out):
        if number not in PLACES:
            (held / f"{number}.png").write_bytes(png(to_bytes(image.pixels)))
    rows = [{"id": f"lora-{i}", "caption": c} for i, c in enumerate(CAPTIONS)]
    plain = [r for r in digits.truth("text") if r["label"] == "not reproduced"][:20]
    rows += [{"id": r["id"], "caption": r["caption"]} for r in plain]
    prompts = root / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps(row) for row in rows))
    return root, lora, train, held, prompts


@pytest.fixture(scope="module")
def audited(planted):
    root, lora, train, held, prompts = planted
    return audit_lora(
        digits.model_path("text"), lora, prompts, train, out=root / "out", heldout=held, images_per_prompt=2, draws=2,
        sampling=Sampling(steps=10, guidance=2.0),
    )  # fmt: skip


def test_what_the_lora_leaks_and_its_base_does_not(audited):
    found = audited.summary
    new = {leak.prompt_id: leak for leak in found.leaks if leak.where == "lora_only"}
    assert {f"lora-{i}" for i in range(4)} <= new.keys(), "every planted picture is found"
    for i in range(4):
        leak = new[f"lora-{i}"]
        assert leak.lora_copies >= 1
        assert (leak.lora_images, leak.base_copies, leak.base_images) == (2, 0, 2)
        assert leak.train_ids[0].startswith(f"lora-{i}")
    assert found.prompts["lora_only"] == len(new)
    assert sum(found.prompts.values()) == 24
    assert sum(found.images.values()) == 48
    assert found.images["lora_only"] >= sum(leak.lora_copies for leak in new.values())
    assert sum(new[f"lora-{i}"].lora_copies for i in range(4)) >= 6, "most of the eight images"
    assert found.training_images["lora_only"] >= 4
    rows = {row["what"]: row for row in found.differences}
    copies = rows["share of images called copies"]
    assert copies["difference"] > 0
    assert copies["low"] <= copies["difference"] <= copies["high"]
    assert rows["mean of seed-agreement"]["low"] > 0, "a model that knows four pictures agrees with itself"
    assert "mean of score-difference" in rows
    assert not any("anisotropy" in what for what in rows), "standardized within each run, so it has no difference"
    assert not any("text" in what for what in rows), "the model plays no part in it"


def test_files_and_links(audited):
    stored = json.loads((audited.path / "summary.json").read_text())
    assert stored["headline"] == audited.summary.headline
    page = (audited.path / "comparison.html").read_text()
    assert 'href="lora/report.html"' in page
    assert 'href="base/report.html"' in page
    assert (audited.path / "lora" / "report.html").exists()
    assert page.count("<figure") == len(audited.summary.leaks)
    assert page.count("data:image/") >= 3 * 4, "the LoRA's image, the base's from the same noise, the training image"
    assert 'href="../comparison.html"' in (audited.path / "lora" / "report.html").read_text()


def test_again_does_nothing_and_says_the_same(audited, planted):
    root, lora, train, held, prompts = planted
    again = audit_lora(
        digits.model_path("text"), lora, prompts, train, out=root / "out", heldout=held, images_per_prompt=2, draws=2,
        sampling=Sampling(steps=10, guidance=2.0),
    )  # fmt: skip
    for name in ("lora", "base"):
        made = again.results[name].made
        assert made.before.nfe.total == made.generation.made == 0
    assert again.summary == audited.summary


def test_the_comparison_can_be_turned_around(audited):
    turned = compare_leaks(audited.path / "base", audited.path / "lora")
    assert turned.prompts["lora_only"] == audited.summary.prompts["base_only"]
    assert turned.images["base_only"] == audited.summary.images["lora_only"]


def test_the_command_line_and_its_gates(audited, planted, capsys):
    root, lora, train, held, prompts = planted
    arguments = [
        "audit", "testbed:digits", "--lora", str(lora), "--against-base", "--prompts", str(prompts), "--train", str(train),
        "--heldout", str(held), "--images", "2", "--draws", "2", "--steps", "10", "--guidance", "2", "--quiet",
    ]  # fmt: skip
    out = ["--out", str(audited.path)]  # the same audit as in Python, so it only goes on
    assert main([*arguments, *out, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["against"]
    assert found["prompts"] == audited.summary.prompts
    assert main([*arguments, *out, "--fail-if", "against.prompts.lora_only>3"]) == 1
    captured = capsys.readouterr()
    assert "are copied with the LoRA and not by its base" in captured.out
    assert "testbed:digits+attic against testbed:digits" in captured.out
    assert "comparison.html" in captured.err
    assert main([*arguments, "--out", str(root / "out" / "lora")]) == 2
    assert "run directory of another audit" in capsys.readouterr().err
    assert main(["audit", "testbed:digits", "x", "--against-base", "--out", str(root / "n")]) == 2
    assert "give the LoRA" in capsys.readouterr().err


def test_a_lora_that_changes_nothing_is_refused(tmp_path):
    tiny_sd().save_pretrained(tmp_path / "m")
    lora, _ = random_lora(tiny_sd(), tmp_path / "noise")
    save_file({k: 0 * v if "lora_B" in k or ".up." in k else v for k, v in load_file(lora).items()}, lora)
    with pytest.raises(ModelError, match="changes nothing"):
        audit_lora(
            tmp_path / "m", lora, ["a"], out=tmp_path / "o", images_per_prompt=1, draws=1, scores=["score-difference"],
            sampling=Sampling(steps=2),
        )  # fmt: skip


def test_without_a_training_set_scores_are_compared(tmp_path):
    tiny_sd().save_pretrained(tmp_path / "m")
    lora, _ = random_lora(tiny_sd(), tmp_path / "noise")
    run = audit_lora(
        tmp_path / "m", lora, ["a fox", "seven ships"], out=tmp_path / "o", images_per_prompt=1, draws=2,
        scores=["score-difference"], sampling=Sampling(steps=2),
    )  # fmt: skip
    assert run.summary.prompts is None
    assert run.summary.leaks == ()
    rows = {row["what"]: row for row in run.summary.differences}
    assert rows["mean of score-difference"]["difference"] != 0
    assert "No training set" in run.summary.headline
    assert (run.path / "comparison.html").exists()


def test_mean_difference_resamples_clusters():
    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 1, 400), rng.normal(0, 1, 400)
    difference, low, high = mean_difference(first, second, np.arange(400))
    assert difference == pytest.approx((first - second).mean())
    assert low < difference < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(2 / 400), rel=0.2)
    wide = mean_difference(np.repeat(first[:40], 10), np.repeat(second[:40], 10), np.repeat(np.arange(40), 10))
    assert wide[2] - wide[1] > 2 * (high - low), "ten copies of a prompt are one prompt"


def test_a_difference_that_is_the_same_everywhere_has_a_bound():
    """12 of 12 prompts copied with the LoRA and none with its base is no proof of all prompts."""
    ones, zeros, groups = np.ones(12), np.zeros(12), np.arange(12)
    assert mean_difference(ones, zeros, groups) == (1, None, None)
    most = 1 - 0.025 ** (1 / 12)
    assert mean_difference(ones, zeros, groups, within=(-1, 1)) == pytest.approx((1, 1 - 2 * most, 1))
    assert mean_difference(zeros, zeros, groups, within=(-1, 1)) == pytest.approx((0, -most, most))
    mixed = np.arange(12) % 2
    assert mean_difference(mixed, zeros, groups, within=(-1, 1)) == mean_difference(mixed, zeros, groups)


def test_a_threshold_that_is_not_calibrated_is_said(tmp_path):
    def limits(calibrated):
        for name in ("lora", "base"):
            write_fact(tmp_path / name, "copies", {"threshold": {"calibrated": calibrated}})
        uncalibrated = [folder for folder in (tmp_path / "lora", tmp_path / "base") if not _calibrated(folder)]
        return _limits([], True, uncalibrated)[-1]

    assert "NOT CALIBRATED" in limits(False) and "--heldout" in limits(False)
    assert "false positives are in both columns" in limits(True)


def test_out_must_not_be_a_run(tmp_path):
    audit(
        Target.from_pipeline(tiny_sd()), ["a"], out=tmp_path, images_per_prompt=1, draws=1, sampling=Sampling(steps=1)
    )
    with pytest.raises(UsageError, match="hold two"):
        audit_lora(tmp_path, "x", ["a"], out=tmp_path)
