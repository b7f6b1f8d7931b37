"""Robustness of mitigations: conditions, worst of N seeds, what is refused and bypassed, and the adversarial search."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

import diffmem
from diffmem.errors import DataError, MitigationRefused, UsageError
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.evaluation.text_alignment import CallableAlignment
from diffmem.experiments.robustness.compare import share_interval, worst_of_share
from diffmem.experiments.robustness.conditions import RobustnessPlan, paraphrases_in, word_variants
from diffmem.experiments.robustness.kept import Kept
from diffmem.experiments.robustness.run import Robustness
from diffmem.mitigation.adversarial import AdversarialParameters, handed_over, search
from diffmem.models.generation import Sampling
from diffmem.testbeds import digits
from tests.tiny import tiny_sd
from tests.tiny_families import dit, sd3

SHORT = AdversarialParameters(steps=3, batch=2)


@pytest.fixture(scope="module")
def bed():
    """The digits model, two captions that it copies, the judge of copies, and the pictures by name."""
    from diffmem.testbeds.digits.data import to_bytes
    from diffmem.testbeds.digits.matching import References

    data = digits.load()
    references, pictures = References(data), {image.group: image for image in reversed(data.training)}

    def judge(images):
        pixels = np.stack([np.asarray(image.convert("L"), np.float32) / 127.5 - 1 for image in images])
        found = references.match(pixels)
        return [(bool(c), references.groups[n]) for c, n in zip(found.copies, found.nearest, strict=True)]

    captions = [row["caption"] for row in digits.truth() if row["label"] == "reproduced" and row["rate"] == 1][:2]
    target = diffmem.Target.from_pretrained(digits.model_path())
    return target, captions, judge, lambda name: Image.fromarray(to_bytes(pictures[name].pixels))


@pytest.fixture(scope="module")
def made(bed):
    target, captions, judge, pictures = bed
    plan = RobustnessPlan(
        sampling=Sampling(steps=10, guidance=2.0), worst_of=(1, 2), guidance=(1.0, 2.0), samplers=("ddim:5", "own:6"),
        draws=2, adversarial=SHORT, seed=1,
    )  # fmt: skip
    return Robustness(target, captions, judge, plan, paraphrase=word_variants, pictures=pictures)


def test_what_is_kept_is_not_generated_again_and_belongs_to_its_model_and_mitigation(
    bed, tmp_path, monkeypatch, capsys
):
    target, captions, judge, pictures = bed
    plan = RobustnessPlan(
        sampling=Sampling(steps=4, guidance=2.0), worst_of=(1,), guidance=(1.0, 2.0), samplers=("ddim:4",), draws=1,
        adversarial=SHORT,
    )  # fmt: skip

    def begun(model="m", silent=True):
        kept = Kept(tmp_path, {"model": model})
        return Robustness(target, captions, judge, plan, pictures=pictures, kept=kept, silent=silent)

    first = begun(silent=False).rows("transition-static:until=150")
    assert capsys.readouterr().err.count("transition-static:until=150.0: ") == 5
    assert [row["status"] for row in first].count("refused") == 1
    seen = []
    whole = Robustness._generated
    monkeypatch.setattr(
        Robustness, "_generated", lambda self, c, m: seen.append((c.label, m and m.label)) or whole(self, c, m)
    )
    assert begun().rows("transition-static:until=150") == first
    assert seen == [("guidance 1", "transition-static:until=150.0")], "what was refused is tried again"
    seen.clear()
    begun().rows("attenuation")
    assert {label for _, label in seen} == {"attenuation"}, "the arm without mitigation is common"
    seen.clear()
    begun("another").rows("attenuation")
    assert len(seen) == 10


def test_every_condition_is_generated_without_and_with_the_mitigation(made):
    rows = {(row["kind"], row["setting"]): row for row in made.rows("transition-static:until=150")}
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
    assert rows["sampler", "ddim:5"]["nfe_per_image"] == 10
    # The same sampling in two conditions gives the same images.
    assert made.plain["guidance 2"].hits == made.plain["seeds 2 seeds"].hits
    assert json.dumps(list(rows.values()), allow_nan=False)


def test_alignment_says_where_copies_vanish_because_the_picture_does(bed):
    """A judge that calls an image aligned if it is no flat grey, against a mitigation that leaves flat grey only."""
    target, captions, judge, _ = bed
    asked = []

    def known(images, texts):
        asked.extend(texts)
        return [
            np.nan if text == captions[1] else float(np.asarray(image).std() > 20) for image, text in zip(images, texts)
        ]

    plan = RobustnessPlan(
        sampling=Sampling(steps=10, guidance=2.0),
        worst_of=(1,),
        guidance=(),
        samplers=(),
        draws=2,
        adversarial=None,
        seed=1,
    )
    alignment = CallableAlignment(known, "contrast", "share")
    (row,) = Robustness(target, captions, judge, plan, alignment=alignment).rows("transition-dynamic:before=0")
    assert set(asked) == set(captions)
    assert row["alignment_before"] == 1 and row["alignment_change"] == row["alignment_after"] - 1
    outcome = Robustness(target, captions, judge, plan, alignment=alignment).without()["seeds 1 seeds"]
    assert outcome.aligned[1] == [None] * len(outcome.aligned[0]) and set(outcome.aligned[0]) == {1.0}
    (plain,) = Robustness(target, captions, judge, plan).rows("transition-dynamic:before=0")
    assert plain["alignment_before"] is plain["alignment_change"] is None


def test_a_mitigation_of_the_prompt_is_bypassed_by_an_embedding(made):
    row = next(row for row in made.rows("random-tokens") if row["kind"] == "adversarial")
    assert row["status"] == "bypassed" and "no change of the text" in row["reason"]
    assert row["copied_after"] == row["copied_before"]


def test_what_is_missing_is_refused_with_a_reason(bed):
    target, captions, judge, _ = bed
    plan = RobustnessPlan(
        sampling=Sampling(steps=2, guidance=2.0), worst_of=(1,), guidance=(), samplers=("ddim:2",), draws=1,
        adversarial=SHORT,
    )  # fmt: skip
    (row,) = [
        r for r in Robustness(target, captions[:1], judge, plan).rows("attenuation") if r["kind"] == "adversarial"
    ]
    assert row["status"] == "refused" and "give the images" in row["reason"]
    with pytest.raises(UsageError, match="NAME:STEPS"):
        Robustness(target, captions, judge, plan.model_copy(update={"samplers": ("ddim",)}))
    with pytest.raises(UsageError, match="no prompts"):
        Robustness(target, [], judge, plan)
    with pytest.raises(UsageError, match=f"no paraphrase of '{captions[1]}'"):
        Robustness(target, captions, judge, plan, paraphrase=lambda text: ["x"] if text == captions[0] else [])


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
    target, captions, judge, pictures = bed
    sampling = Sampling(steps=10, guidance=2.0)
    name = judge(target.generate(captions[:1], [0], 1, sampling))[0][1]
    pixels = torch.from_numpy(np.array(pictures(name), np.float32) / 127.5 - 1)[None, None]
    before = [judge(target.generate([""], [d], 1, sampling))[0] for d in range(4)]
    found = search(target.denoiser, ["x"], pixels, AdversarialParameters(start="empty"))
    assert found.after < found.before
    assert found.nfe.total == 50 * 8 * 3 + 2 * 32
    with handed_over(target, {"x": found.conditioning}):
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
    target, captions, _, _ = bed
    cls, sampling = type(target.pipeline), Sampling(steps=2, guidance=2.0)
    before = np.asarray(target.generate(captions[:1], [0], 1, sampling)[0])
    cond = target.denoiser.encode_prompts(captions[1:2])
    with handed_over(target, {captions[0]: cond}):
        other = np.asarray(target.generate(captions[:1], [0], 1, sampling)[0])
    assert type(target.pipeline) is cls and not np.array_equal(before, other)
    assert np.array_equal(before, np.asarray(target.generate(captions[:1], [0], 1, sampling)[0]))
    assert all(p.grad is None for p in target.pipeline.unet.parameters())
    with pytest.raises(MitigationRefused, match="embedded texts"):
        search(diffmem.Target.from_pipeline(dit()).denoiser, ["1"], torch.zeros(1, 3, 16, 16), SHORT)
