"""Removal: losses against closed forms, planted images that really go, an edited text encoder that only hides, resuming."""

from __future__ import annotations

import json
import math

import pytest
import torch

from diffmem.cli.app import main
from diffmem.data.images import as_images
from diffmem.errors import ModelError, UsageError
from diffmem.experiments._run import open_run
from diffmem.experiments.remove.forget import given_images, kept_of
from diffmem.experiments.remove.judge import state_of
from diffmem.experiments.remove.run import ATTACKED, remove
from diffmem.mitigation.adversarial import AdversarialParameters
from diffmem.mitigation.removal import REMOVALS, parse_removals
from diffmem.mitigation.removal.base import Moment
from diffmem.mitigation.removal.selective import low_pass_error
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.stages.generate import Generation
from diffmem.stages.match.stage import build_index
from diffmem.testbeds import digits
from diffmem.testbeds.alignment import digits_alignment
from diffmem.testbeds.digits.captions import DIGIT_WORDS
from diffmem.training.data import load_training_set
from diffmem.training.removal import remove_images, shared_words


def moment(**changes):
    """Two rows at alpha = .8, sigma = .6 and at pure noise, on images of 1x4x4; the network predicts x0."""
    random = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 1, 4, 4, generator=random)
    alpha, sigma = torch.tensor([0.8, 0.1]), torch.tensor([0.6, math.sqrt(0.99)])
    x = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * noise
    teacher = {True: torch.randn(2, 1, 4, 4, generator=random), False: torch.randn(2, 1, 4, 4, generator=random)}
    values = {
        "x": x, "alpha": alpha, "sigma": sigma, "output": torch.zeros(2, 1, 4, 4), "wanted": x0,
        "kept": torch.randn(5, 1, 4, 4, generator=random), "related": torch.zeros(2, 5), "teacher": teacher.__getitem__,
        "express": lambda clean: clean,
    }  # fmt: skip
    return Moment(**values | changes)


def test_retrack_denoises_towards_the_posterior_mean_of_the_kept_images():
    given = moment(related=torch.tensor([[0.0, 2.0, 0.0, 0.0, 1.0], [0.0] * 5]))
    method = parse_removals("retrack:neighbors=5,words=0.5")[0]
    expected = []
    for row in range(2):
        likelihood = [
            math.exp(
                -float((given.x[row] - given.alpha[row] * one).square().sum()) / (2 * float(given.sigma[row]) ** 2)
                + 0.5 * float(given.related[row, j])
            )
            for j, one in enumerate(given.kept)
        ]
        expected.append(sum(w * one for w, one in zip(likelihood, given.kept, strict=True)) / sum(likelihood))
    assert torch.allclose(method.redirected(given), torch.stack(expected), atol=1e-5)
    at_goal = method.losses(moment(related=given.related, output=torch.stack(expected)))
    assert torch.allclose(at_goal, torch.zeros(2), atol=1e-9)
    weight = torch.tensor([(0.6 / 0.8) ** 2, 1.0])
    plain = torch.stack(expected).square().flatten(1).mean(1)
    assert torch.allclose(method.losses(given), plain * weight, rtol=1e-4)
    nearest = parse_removals("retrack:neighbors=1,words=0")[0].redirected(given)
    assert all(any(torch.equal(one, kept) for kept in given.kept) for one in nearest)


def test_selective_pushes_low_frequencies_at_its_noise_levels_and_fades():
    difference = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(low_pass_error(difference, 1.0), difference.square().flatten(1).mean(1))  # Parseval
    checkers = (torch.arange(6)[:, None] + torch.arange(6)[None]).remainder(2).float()[None, None] * 2 - 1
    assert float(low_pass_error(checkers, 0.5)) == pytest.approx(0.0, abs=1e-10)
    assert float(low_pass_error(torch.ones(1, 1, 6, 6), 0.5)) == pytest.approx(1.0)
    method = parse_removals("selective:low=0.5,high=2,below=1,beta=20")[0]
    same = moment()
    unchanged = method.losses(moment(output=same.teacher(True)))
    assert unchanged.tolist() == pytest.approx([2 / 20 * math.log(2), 0.0]), (
        "the second row is outside the noise levels"
    )
    farther = method.losses(moment(output=same.wanted + 1.1 * (same.teacher(True) - same.wanted)))
    assert 0 < float(farther[0]) < 0.1 * float(unchanged[0])


def test_negative_guidance_is_the_former_network_turned_round():
    given = moment()
    method = parse_removals("negative-guidance:strength=2")[0]
    goal = 3 * given.teacher(False) - 2 * given.teacher(True)
    assert method.losses(moment(output=goal)).tolist() == pytest.approx([0, 0], abs=1e-10)
    assert (method.losses(given) > 0).all()


def test_shared_words_count_by_how_rare_they_are():
    related = shared_words(["a red fox", "a fox", "a red car", None], keep=[1, 2, 3])
    assert related[0].tolist() == pytest.approx([math.log(3 / 2) + math.log(3), math.log(3 / 2) + math.log(3), 0])
    assert related[3].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("row", "state"),
    [
        ({"copied_change": -0.9, "copied_change_high": 0.1}, "not lowered"),
        ({"copied_change": -0.9, "copied_change_high": -0.5, "attack_p": 0.01, "attack_change_high": -0.2}, "hidden"),
        ({"copied_change": -0.9, "copied_change_high": -0.5, "attack_p": 0.4, "attack_change_high": -0.2}, "removed"),
        ({"copied_change": -0.9, "copied_change_high": -0.5, "attack_p": 0.4, "attack_change_high": 0.1}, "lowered"),
        ({"copied_change": -0.9, "copied_change_high": -0.5, "attack_p": 0.4, "alignment_change_high": -0.1}, "spoilt"),
        ({"copied_change": -0.9, "copied_change_high": -0.5}, "lowered"),
        ({}, "unknown"),
    ],
)
def test_state_says_no_more_than_was_shown(row, state):
    assert state_of(row) == state


SETTINGS = Generation(images_per_prompt=2, seed=1, batch=64, sampling=Sampling(steps=8, guidance=2.0))
METHODS = ["retrack:steps=70,lr=0.002,batch=32"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return digits.materialize(tmp_path_factory.mktemp("digits"), subset=8)


@pytest.fixture(scope="module")
def prompts():
    return [row["caption"] for row in digits.truth() if row["label"] == "reproduced" and row["rate"] == 1][:6]


@pytest.fixture(scope="module")
def blinded(prompts, tmp_path_factory):
    """The model with a text encoder that no longer knows the words of the prompts; its network is the old one."""
    pipeline = Target.from_pretrained(digits.model_path("text")).pipeline
    words = {word for text in prompts for word in text.split() if word.lower() not in DIGIT_WORDS}
    table = pipeline.text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        for ids in pipeline.tokenizer(sorted(words)).input_ids:
            table[ids[1:-1]] = 0
    folder = tmp_path_factory.mktemp("blinded")
    pipeline.save_pretrained(folder)
    return folder


def run(inputs, prompts, out, methods, edited=(), **more):
    return remove(
        "testbed:digits", prompts, methods, inputs.train, out=out, edited=edited, heldout=inputs.held_out,
        settings=SETTINGS, alignment=digits_alignment(), adversarial=AdversarialParameters(steps=4), **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(inputs, prompts, blinded, tmp_path_factory):
    return run(inputs, prompts, tmp_path_factory.mktemp("removed"), METHODS, [blinded])


def test_planted_images_go_and_what_only_changes_the_text_encoder_is_called_hidden(done, blinded):
    rows = {row["setting"]: row for row in done.summary.rows}
    trained, edited = rows["retrack:steps=70,lr=0.002,batch=32"], rows[str(blinded)]
    assert trained["copied_before"] > 0.9
    assert trained["copied_after"] < 0.6 and trained["copied_change_high"] < 0
    assert trained["attack_after"] < trained["attack_before"] and trained["state"] in ("removed", "lowered")
    assert trained["others_alignment_after"] > 0.7 and trained["worst_after"] >= trained["copied_after"]
    assert edited["copied_after"] < 0.2, "on its prompts it looks as good"
    assert edited["state"] == "hidden" and edited["attack_after"] > 0.9 and edited["attack_control"] <= 0.25
    assert "retrack" in done.summary.headline and len(done.summary.images) >= 5


def test_the_new_model_is_a_folder_like_any_other_and_the_run_opens_and_resumes(
    done, inputs, prompts, blinded, monkeypatch
):
    row = done.summary.rows[0]
    again = Target.from_pretrained(done.path / row["saved"])
    former = Target.from_pretrained(digits.model_path("text"))
    assert again.fingerprint != former.fingerprint and type(again.pipeline) is type(former.pipeline)
    assert open_run(done.path).summary == done.summary
    page = done.report(hash_prompts=True).read_text()
    assert "hidden" in page and prompts[0] not in page
    monkeypatch.setattr(Target, "generate", lambda *_: pytest.fail("an image was made again"))
    monkeypatch.setattr("diffmem.experiments.remove.run.remove_images", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr("diffmem.experiments.remove.run.search", lambda *_, **__: pytest.fail("searched again"))
    assert run(inputs, prompts, done.path, METHODS, [blinded]).summary.rows == done.summary.rows
    assert sum(ATTACKED in arm.name for arm in done.summary.arms) >= 3, (
        "the former model, the trained one, the edited one"
    )


def test_images_are_found_in_the_training_set_and_near_duplicates_are_not_kept(inputs, prompts, tmp_path):
    train = as_images(inputs.train)
    index, data = build_index(train, _descriptor(train), None, True), load_training_set(train)
    chosen = next(image for image in data.images if image.captions == (prompts[0],))
    folder = tmp_path / "out"
    folder.mkdir()
    chosen.image.save(folder / "mine.png")
    found = given_images(index, as_images(folder), data, None)
    assert list(found) == [prompts[0]]
    kept = kept_of(data, index, set(found[prompts[0]]))
    pixels = chosen.image.tobytes()
    assert sum(image.image.tobytes() == pixels for image in data.images) > 1
    assert not any(image.image.tobytes() == pixels for image in kept.images)
    chosen.image.rotate(90).point(lambda v: 255 - v).save(folder / "foreign.png")
    with pytest.raises(UsageError, match="not among the training images"):
        given_images(index, as_images(folder), data, None)


def _descriptor(train):
    from diffmem.copies.descriptors import DEFAULT_DESCRIPTOR, make_descriptor

    return make_descriptor(DEFAULT_DESCRIPTOR, train)


def test_wrong_calls_are_refused_in_words(inputs, prompts, tmp_path, capsys):
    with pytest.raises(UsageError, match="No removal"):
        run(inputs, prompts, tmp_path, [])
    with pytest.raises(UsageError, match="Did you mean 'retrack'"):
        parse_removals("retrac")
    with pytest.raises(UsageError, match="expected low < high"):
        parse_removals("selective:low=3,high=1")
    assert main(["remove", "testbed:digits", "a seven"]) == 2
    assert "--train" in capsys.readouterr().err
    assert (
        main(["remove", "testbed:digits", "x", "--train", str(inputs.train), "--method", "all", "--dry-run", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)[0]["models"] == len(list(REMOVALS))
    data = load_training_set(inputs.train, 4)
    with pytest.raises(UsageError, match="expected some of both"):
        remove_images("testbed:digits", parse_removals("retrack")[0], [], data, tmp_path)
    with pytest.raises(ModelError, match="takes none"):
        remove_images(
            "testbed:digits-unconditional",
            parse_removals("negative-guidance")[0],
            [("", data.images[0])],
            data,
            tmp_path,
        )


def test_prompts_that_copy_nothing_leave_nothing_to_remove(inputs, tmp_path):
    found = run(inputs, ["a seven"], tmp_path, METHODS)
    assert found.summary.rows == () and "Nothing to remove" in found.summary.headline
