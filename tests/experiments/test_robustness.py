"""Robustness of mitigations: conditions, worst of N seeds, what is refused and bypassed, and the adversarial search."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

import diffmem
from diffmem.errors import DataError, IncompatibleRun, MitigationRefused, UsageError
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.evaluation.text_alignment import CallableAlignment
from diffmem.experiments._arm import Reference
from diffmem.experiments._run import open_run
from diffmem.experiments.robustness.compare import share_interval, worst_of_share
from diffmem.experiments.robustness.conditions import RobustnessPlan, paraphrases_in, word_variants
from diffmem.experiments.robustness.run import robustness
from diffmem.mitigation.adversarial import AdversarialParameters, hand_over, search
from diffmem.models.generation import Sampling
from diffmem.stages.match.stage import Matching
from diffmem.testbeds import digits
from tests.tiny import tiny_sd
from tests.tiny_families import dit, sd3

SHORT = AdversarialParameters(steps=3, batch=2)


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    """The digits model, two captions that it copies, its training and held-out images."""
    captions = [row["caption"] for row in digits.truth() if row["label"] == "reproduced" and row["rate"] == 1][:2]
    inputs = digits.materialize(tmp_path_factory.mktemp("digits"), subset=8)
    return diffmem.Target.from_pretrained(digits.model_path()), captions, inputs


def tried(bed, plan, methods, **more):
    target, captions, inputs = bed
    return robustness(target, captions, methods, inputs.train, plan, heldout=inputs.held_out, **more)


@pytest.fixture(scope="module")
def made(bed):
    plan = RobustnessPlan(
        sampling=Sampling(steps=10, guidance=2.0), worst_of=(1, 2), guidance=(1.0, 2.0), samplers=("ddim:5", "own:6"),
        draws=2, adversarial=SHORT, seed=1,
    )  # fmt: skip
    return tried(bed, plan, ["transition-static:until=150", "random-tokens"], paraphrase=word_variants)


def test_what_is_made_is_kept_and_belongs_to_its_model_and_mitigation(bed, tmp_path, monkeypatch, capsys):
    plan = RobustnessPlan(
        sampling=Sampling(steps=4, guidance=2.0), worst_of=(1,), guidance=(1.0, 2.0), samplers=("ddim:4",), draws=1,
        adversarial=SHORT,
    )  # fmt: skip
    first = tried(bed, plan, "transition-static:until=150", out=tmp_path, silent=False)
    assert capsys.readouterr().err.count(": transition-static:until=150.0: ") >= 5
    assert [row["status"] for row in first.summary.rows].count("refused") == 1
    target, captions, _ = bed
    asked = []
    whole = type(target).generate
    monkeypatch.setattr(type(target), "generate", lambda self, *given: asked.append(given) or whole(self, *given))
    again = tried(bed, plan, "transition-static:until=150", out=tmp_path)
    assert again.summary == first.summary, "and nothing but what was refused is tried again"
    assert {given[3].guidance for given in asked} == {1.0}
    asked.clear()
    assert open_run(tmp_path).summary == first.summary
    tried(bed, plan, "attenuation", out=tmp_path)
    assert len(asked) == 5, "the arms without mitigation are common"
    with pytest.raises(IncompatibleRun, match="seed"):
        tried(bed, plan.model_copy(update={"seed": 5}), "attenuation", out=tmp_path)
    page = open_run(tmp_path).report(hash_prompts=True).read_text()
    assert captions[0] not in page and "attenuation" in page


def test_every_condition_is_generated_without_and_with_the_mitigation(made):
    mine = [row for row in made.summary.rows if row["method"] == "transition-static:until=150.0"]
    rows = {(row["kind"], row["setting"]): row for row in mine}
    assert [kind for kind, _ in rows] == [
        "seeds", "seeds", "guidance", "guidance", "sampler", "sampler", "paraphrase", "adversarial"
    ]  # fmt: skip
    refused = rows.pop(("guidance", "1"))
    assert refused["status"] == "refused" and "without guidance" in refused["reason"]
    assert refused["copied_after"] is None and refused["copied_before"] is not None
    for row in rows.values():
        assert row["status"] == "ok" and row["n_prompts"] == 2
        for when in ("before", "after"):
            assert row[f"copied_{when}_low"] <= row[f"copied_{when}"] <= row[f"copied_{when}_high"]
        assert row["copied_change"] == pytest.approx(row["copied_after"] - row["copied_before"])
    assert rows["seeds", "worst of 1"]["copied_before"] <= rows["seeds", "worst of 2"]["copied_before"]
    assert rows["seeds", "worst of 2"]["copied_before"] > 0.5, "captions that the model was measured to reproduce"
    assert rows["sampler", "ddim:5"]["nfe_per_image"] == 10
    # The same sampling in two conditions gives the same images.
    tables = [made.results[f"plain: {label}"].table for label in ("guidance 2", "seeds 2 seeds")]
    assert np.array_equal(tables[0].copied, tables[1].copied)
    assert np.array_equal(tables[0].similarity, tables[1].similarity)
    assert json.dumps(list(rows.values()), allow_nan=False)


def test_alignment_says_where_copies_vanish_because_the_picture_does(bed):
    """A judge that calls an image aligned if it is no flat grey, against a mitigation that leaves flat grey only."""
    captions, asked = bed[1], []

    def known(images, texts):
        asked.extend(texts)
        return [
            np.nan if text == captions[1] else float(np.asarray(image).std() > 20) for image, text in zip(images, texts)
        ]

    plan = RobustnessPlan(
        sampling=Sampling(steps=10, guidance=2.0), worst_of=(1,), guidance=(), samplers=(), draws=2, adversarial=None, seed=1,
    )  # fmt: skip
    alignment = CallableAlignment(known, "contrast", "share")
    (row,) = tried(bed, plan, "transition-dynamic:before=0", alignment=alignment).summary.rows
    assert set(asked) == set(captions)
    assert row["alignment_before"] == 1 and row["alignment_change"] == row["alignment_after"] - 1
    (plain,) = tried(bed, plan, "transition-dynamic:before=0").summary.rows
    assert plain["alignment_before"] is plain["alignment_change"] is None


def test_flat_images_are_set_aside_as_in_a_comparison_of_mitigations(bed, monkeypatch):
    """A mitigation that leaves grey pictures only leaves no copies and no images without copies: it leaves no answer."""
    target, captions, inputs = bed
    plan = RobustnessPlan(
        sampling=Sampling(steps=4, guidance=2.0), worst_of=(1, 2), guidance=(), samplers=(), adversarial=None
    )  # fmt: skip
    grey = Image.new("L", (8, 8), 128)
    monkeypatch.setattr(type(target), "generate", lambda self, texts, *_: [grey for _ in texts])
    one = robustness(target, captions, "random-tokens", inputs.train, plan).summary.rows[0]
    assert (one["not_judged"], one["copied_before"], one["copied_after"]) == (8, None, None)


def test_a_mitigation_of_the_prompt_is_bypassed_by_an_embedding(made):
    rows = [row for row in made.summary.rows if row["method"] == "random-tokens"]
    row = next(row for row in rows if row["kind"] == "adversarial")
    assert row["status"] == "bypassed" and "no change of the text" in row["reason"]
    assert row["copied_after"] == row["copied_before"]


def test_what_is_missing_is_refused_with_a_reason(bed):
    target, captions, inputs = bed
    plan = RobustnessPlan(
        sampling=Sampling(steps=2, guidance=2.0), worst_of=(1,), guidance=(), samplers=("ddim:2",), draws=1,
        adversarial=SHORT,
    )  # fmt: skip
    index = Reference.of(inputs.train, None, Matching()).index
    found = robustness(target, captions[:1], "attenuation", index, plan).summary.rows
    (row,) = [r for r in found if r["kind"] == "adversarial"]
    assert row["status"] == "refused" and "give the images" in row["reason"]
    with pytest.raises(UsageError, match="NAME:STEPS"):
        tried(bed, plan.model_copy(update={"samplers": ("ddim",)}), "attenuation")
    with pytest.raises(DataError, match="no prompts"):
        robustness(target, [], "attenuation", index, plan)
    with pytest.raises(UsageError, match=f"no paraphrase of '{captions[1]}'"):
        tried(bed, plan, "attenuation", paraphrase=lambda text: ["x"] if text == captions[0] else [])


def test_worst_of_n_is_the_share_of_subsets_with_a_copy():
    hits = [True, False, False, True, False]
    for count in range(1, 6):
        subsets = list(combinations(hits, count))
        assert worst_of_share(hits, count) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_intervals_are_exact_where_every_prompt_is_all_or_nothing_and_wide_elsewhere():
    for hits in (0, 3, 10):
        values = np.array([1.0] * hits + [0.0] * (10 - hits))
        assert share_interval(values, np.arange(10)) == pytest.approx(clopper_pearson(hits, 10))
    # A little above zero the interval is no narrower than at zero.
    assert share_interval(np.array([0.1] + [0.0] * 9), np.arange(10))[1] > clopper_pearson(0, 10)[1]
    # Two prompts that say nearly the same are worth less than two.
    assert share_interval(np.zeros(10), np.array([0, 0, *range(1, 9)]))[1] > clopper_pearson(0, 10)[1]


def test_wordings(tmp_path):
    assert word_variants("A red fox") == ("fox A red", "A red", "fox", "a red fox")
    assert word_variants("fox") == ("a fox",)
    file = tmp_path / "words.csv"
    file.write_text("prompt,paraphrase\na red fox,some red fox\na red fox,a fox that is red\n")
    given = paraphrases_in(file)
    assert given("a red fox") == ["some red fox", "a fox that is red"] and given("x") == []
    file.write_text("paraphrase\na fox\n")
    with pytest.raises(DataError, match="no column 'prompt'"):
        paraphrases_in(file)


def test_a_search_from_the_empty_prompt_brings_the_planted_image_back(bed):
    from diffmem.testbeds.digits.data import to_bytes
    from diffmem.testbeds.digits.matching import References

    target, captions, _ = bed
    data = digits.load()
    references, known = References(data), {image.group: image for image in reversed(data.training)}

    def judge(images):
        pixels = np.stack([np.asarray(image.convert("L"), np.float32) / 127.5 - 1 for image in images])
        found = references.match(pixels)
        return [(bool(c), references.groups[n]) for c, n in zip(found.copies, found.nearest, strict=True)]

    sampling = Sampling(steps=10, guidance=2.0)
    name = judge(target.generate(captions[:1], [0], 1, sampling))[0][1]
    pixels = torch.from_numpy(np.array(Image.fromarray(to_bytes(known[name].pixels)), np.float32) / 127.5 - 1)[
        None, None
    ]
    before = [judge(target.generate([""], [d], 1, sampling))[0] for d in range(4)]
    found = search(target.denoiser, ["x"], pixels, AdversarialParameters(start="empty"))
    assert found.after < found.before
    assert found.nfe.total == 50 * 8 * 3 + 2 * 32
    with hand_over(target, {"x": found.conditioning}):
        after = judge(target.generate(["x"] * 4, list(range(4)), 1, sampling))
    assert not any(copied for copied, _ in before)
    assert all(verdict == (True, name) for verdict in after)


@pytest.mark.parametrize("build", [tiny_sd, lambda: tiny_sd("v_prediction", zero_snr=True), sd3])
def test_a_search_of_several_prompts_is_that_of_each_alone(build):
    denoiser = diffmem.Target.from_pipeline(build()).denoiser
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    names = ["a red fox", "a blue hill", "old sea"]
    together = search(denoiser, names, images, SHORT)
    for i, name in enumerate(names):
        alone = search(denoiser, [name], images[i : i + 1], SHORT)
        for key, value in alone.conditioning.tensors.items():
            torch.testing.assert_close(together.conditioning.tensors[key][i : i + 1], value, atol=1e-3, rtol=1e-3)
        assert torch.isfinite(alone.after).all() and alone.after == pytest.approx(float(together.after[i]), rel=1e-3)


def test_the_search_leaves_nothing_behind_and_refuses_class_labels(bed):
    target, captions, _ = bed
    cls, sampling = type(target.pipeline), Sampling(steps=2, guidance=2.0)
    before = np.asarray(target.generate(captions[:1], [0], 1, sampling)[0])
    cond = target.denoiser.encode_prompts(captions[1:2])
    with hand_over(target, {captions[0]: cond}):
        other = np.asarray(target.generate(captions[:1], [0], 1, sampling)[0])
    assert type(target.pipeline) is cls and not np.array_equal(before, other)
    assert np.array_equal(before, np.asarray(target.generate(captions[:1], [0], 1, sampling)[0]))
    assert all(p.grad is None for p in target.pipeline.unet.parameters())
    with pytest.raises(MitigationRefused, match="embedded texts"):
        search(diffmem.Target.from_pipeline(dit()).denoiser, ["1"], torch.zeros(1, 3, 16, 16), SHORT)
