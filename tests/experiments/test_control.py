"""The positive control: models whose memory of the planted pictures is known, its budget, and what it is refused for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.index import CopyIndex
from diffmem.copies.rule import CopyRule
from diffmem.data.canaries import read_registration
from diffmem.data.images import as_images
from diffmem.errors import ModelError, UsageError
from diffmem.experiments.audit.control import (
    BATCH,
    FEWEST,
    PLANTED,
    budget,
    look_for,
    require_trainable,
    run_control,
)
from diffmem.experiments.audit.run import audit
from diffmem.models.fingerprint import pipeline_fingerprint
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.report.control import control_check, read_control
from diffmem.runs.facts import read_fact, write_fact
from diffmem.runs.store import RunStore
from diffmem.stages.generate import Generation
from diffmem.training.canaries import CanaryPlan, draw_canaries
from diffmem.training.canary_files import write_canaries
from tests.tiny import picture, tiny_sd

TRAIN = {f"train-{i:02d}": picture(i) for i in range(60)}


@pytest.fixture(scope="module")
def index():
    images = as_images(TRAIN)
    return CopyIndex.build(images, make_descriptor("l2-tiled", images))


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("control")
    drawn = draw_canaries(TRAIN, CanaryPlan(counts=(1,), per_count=40, controls=40, apart=0.1))
    write_canaries(drawn, TRAIN, folder, only=True)
    return read_registration(folder)


def remembers(known, count):
    """Gives the first `count` planted pictures for their captions, and training pictures or new ones for all others."""
    pictures = known.pictures()
    own = {c.caption: pictures[c.id] for c in known.trained[:count]}
    new = [TRAIN["train-00"], *(picture(seed) for seed in range(900, 940))]
    return Target.from_callable(
        generate=lambda prompts, seeds: [own.get(p) or new[s % 41] for p, s in zip(prompts, seeds, strict=True)],
        name="remembers",
    )


def test_what_is_remembered_is_found_and_a_blind_matcher_is_told_by_it(known, index, tmp_path):
    settings = Generation(images_per_prompt=2)
    found = look_for(remembers(known, 23), known, tmp_path / "sees", index, CopyRule("similarity", 0.95), settings)
    assert (found["planted"], found["found"], found["given_back"], found["found_of_given_back"]) == (40, 23, 23, 23)
    assert (found["controls"], found["controls_found"], found["images_per_prompt"]) == (40, 0, 2)
    # Ratios are at most 1: no picture but an equal one is called at a threshold above all of them, and these are noisy.
    noisy = remembers(known, 23)
    exact = noisy._generator
    noisy._generator = lambda prompts, seeds: [_noisy(image) for image in exact(prompts, seeds)]
    blind = look_for(noisy, known, tmp_path / "blind", index, CopyRule("similarity", 0.9999), settings)
    assert (blind["found"], blind["given_back"], blind["found_of_given_back"]) == (0, 23, 0)
    nothing = look_for(remembers(known, 0), known, tmp_path / "none", index, CopyRule("similarity", 0.95), settings)
    assert nothing["found"] == nothing["controls_found"] == 0


def _noisy(image):
    from PIL import Image

    pixels = np.asarray(image, float) + np.random.default_rng(0).normal(0, 12, np.asarray(image).shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def test_an_index_with_more_images_finds_both_and_stays_as_it_is(index, known):
    before = (len(index), index.fingerprint, index.duplicates().count)
    joined = index.with_images(as_images(known.pictures()))
    assert (len(index), index.fingerprint, index.duplicates().count) == before
    assert (len(joined), joined.duplicates().count) == (len(index) + 80, before[2] + 80)
    from diffmem.copies.match import match

    some = [TRAIN["train-07"], known.pictures()["canary-0003"]]
    assert [found.train_id for found in match(some, joined)] == ["train-07", "canary-0003"]
    assert joined.image("canary-0003").image is not None and joined.image("train-07").image is not None


def test_the_budget_is_a_quarter_at_most_and_too_small_audits_are_told_how_many_images_it_takes():
    target = Target.from_pipeline(tiny_sd(), name="tiny")
    for images in (1100, 2000, 100_000):
        settings = Generation(images_per_prompt=4, sampling=Sampling(steps=50, guidance=7.5))
        allowed = budget(target, images, settings)
        assert 1 <= allowed.images <= 4 and allowed.share <= 0.25
        assert allowed.steps >= FEWEST * PLANTED // BATCH
        own = target.generation_nfe(settings.sampling)
        assert math.isclose(allowed.evaluations, allowed.share * images * own)
    with pytest.raises(UsageError, match=r"make 1,040 images or more"):
        budget(target, 1039, Generation(sampling=Sampling(steps=50, guidance=7.5)))
    assert budget(target, 1040, Generation(sampling=Sampling(steps=50, guidance=7.5))).images == 1
    # What the message asks for is enough, also where half of the quarter would pay for several images of a caption.
    for steps in (3, 10, 20, 50, 200):
        settings = Generation(images_per_prompt=3, sampling=Sampling(steps=steps, guidance=3.0))
        with pytest.raises(UsageError, match=r"make [0-9,]+ images") as refused:
            budget(target, 10, settings)
        asked = int(refused.value.args[0].split("make ")[1].split(" images")[0].replace(",", ""))
        for images in (asked, asked + 100, 2 * asked):
            assert budget(target, images, settings).share <= 0.25


@pytest.mark.parametrize("generates_only", [True, False])
def test_models_that_cannot_be_fine_tuned_are_refused_before_any_work(generates_only, tmp_path):
    made = []

    def generate(prompts, seeds):
        made.append(prompts)
        return [picture(s) for s in seeds]

    def network(x, t, cond):
        return x

    target = Target.from_callable(None if generates_only else network, (3, 16, 16), generate=generate, name="service")
    with pytest.raises(ModelError, match="'service' cannot be fine-tuned: it was given as a function"):
        audit(target, ["a"], TRAIN, scores=["text-uppercase"], control=True, out=tmp_path / "run")
    assert not made
    only = Target.from_pipeline(tiny_sd(), name="only")
    only.denoiser, only.generates_only = None, "its network has two inputs"
    with pytest.raises(ModelError, match="it only generates images \\(its network has two inputs\\)"):
        require_trainable(only)
    with pytest.raises(UsageError, match="give the images"):
        audit(target, ["a"], scores=["text-uppercase"], control=True)


def test_a_control_of_a_real_pipeline_leaves_it_as_it_was_and_is_not_made_twice(index, tmp_path):
    from diffmem.experiments.audit.control import Budget

    target = Target.from_pipeline(tiny_sd(), name="tiny")
    before = pipeline_fingerprint(target.pipeline)
    write_fact(tmp_path, "copies", {"threshold": {"statistic": "similarity", "value": 0.95}})
    settings, allowed = Generation(images_per_prompt=2, sampling=Sampling(steps=1)), Budget(1, 3, 0, 0.2)
    arguments = (target, tmp_path, as_images(TRAIN), index, allowed, settings, True)
    run_control(*arguments)
    fact = read_fact(tmp_path, "control")
    assert "refused" not in fact, fact
    assert (fact["planted"], fact["controls"], fact["steps"], fact["cost"]) == (40, 40, 3, 0.2), fact
    made = RunStore(tmp_path / "control" / "images").read("images", ["key"])
    assert (fact["images_per_prompt"], len(made)) == (1, 80)  # as the budget says, not as the audit makes
    assert (tmp_path / fact["page"]).exists()
    assert pipeline_fingerprint(target.pipeline) == before
    written = (tmp_path / "facts" / "control.json").stat().st_mtime_ns
    run_control(*arguments)
    assert (tmp_path / "facts" / "control.json").stat().st_mtime_ns == written
    shown = read_control(tmp_path)
    assert shown.recall is None and shown.sensitivity is None and shown.sensitivity_interval is None
    assert "does not say what this audit would find" in shown.sentence and control_check(shown).state == "note"


@pytest.mark.parametrize(
    ("found", "back", "seen", "says", "recall"),
    [
        (0, 9, 0, False, None),
        (9, 9, 9, False, None),
        (10, 4, 4, True, None),
        (0, 10, 0, True, 0.0),
        (7, 28, 7, True, 0.25),
    ],
)
def test_a_control_of_which_little_came_out_says_nothing(found, back, seen, says, recall, tmp_path):
    fact = {
        "planted": 40,
        "found": found,
        "given_back": back,
        "found_of_given_back": seen,
        "controls": 40,
        "controls_found": 0,
    }
    write_fact(
        tmp_path, "control", fact | {"images_per_prompt": 1, "steps": 750, "cost": 0.2, "page": "x.html", "notes": []}
    )
    shown = read_control(tmp_path)
    assert (shown.sensitivity, shown.recall) == (found / 40 if says else None, recall)
    assert (shown.sensitivity_interval is not None) == says == ("planted too little" not in shown.sentence)
    assert control_check(shown).state == ("passed" if says and found else "note")


def test_a_class_conditional_network_without_adapters_is_refused_before_any_work():
    from diffmem.experiments.audit.control import require_trainable
    from tests.tiny_families import dit

    target = Target.from_pipeline(dit(), name="dit")
    with pytest.raises(ModelError, match="its network takes no adapter"):
        require_trainable(target)
