"""The whole audit on small models with known truth: stages, resume, verdicts, models without training set or images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffmem.data.prompts import load_prompts
from diffmem.errors import IncompatibleRun, UsageError
from diffmem.experiments.audit.run import audit
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.randomness import gaussian
from diffmem.runs.manifest import read_manifest
from diffmem.runs.store import RunStore
from diffmem.stages.generate import Generation, generate
from diffmem.stages.match.stage import Matching
from tests.tiny import picture, tiny_ddpm, tiny_sd

SCORES = ["score-difference", "text-uppercase"]
FAST = Sampling(steps=2)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    for i in range(300):
        picture(i).save(folder / f"{i:03d}.png")
    for copy in range(5):
        picture(0).save(folder / f"000-copy-{copy}.png")
    return folder


def copier(prompts_to_seeds):
    """A service that answers known prompts with a training image and others with something new."""

    def make(prompts, seeds):
        new = [prompts_to_seeds.get(p) for p in prompts]
        return [picture(10_000 + s % 1000) if k is None else picture(k, 0.01) for k, s in zip(new, seeds, strict=True)]

    return Target.from_callable(generate=make, name="service")


def test_copies_are_found_and_others_are_not(train, tmp_path):
    memorized = {f"copied {i}": i for i in range(10)}
    texts = [*memorized, *(f"new {i}" for i in range(40))]
    prompts = load_prompts(texts)
    prompts = type(prompts)(tuple(type(p)(p.id, p.text, p.text in memorized) for p in prompts), "memory")
    run = audit(copier(memorized), prompts, train, out=tmp_path / "run", scores=["text-uppercase"], images_per_prompt=2)
    copies = run.summary.as_dict()["copies"]
    assert (copies["planted"], copies["found"], copies["negatives"]) == (10, 10, 40)
    assert copies["false"] <= 2
    assert copies["calibrated"]
    assert copies["threshold"]["reference"] == "train-train distinct groups"
    assert copies["threshold"]["n_reference"] == 300, "a duplicate counts once, so it does not spoil the threshold"
    # Training images against each other count half, and 150 state 1 in 150 per image.
    assert copies["nominal_fpr"] == pytest.approx(1 - (1 - 1 / 150) ** 2) and copies["threshold"]["asked_fpr"] == 0.01
    assert copies["training_images_copied"] == 10 + copies["false"]
    assert {p.name for p in run.results["audit"].made.after.pictures} >= {"copies.png"}
    agreement = {e["score"]: e for e in run.summary.as_dict()["scores"]}["seed-agreement"]
    assert agreement["top"][0]["prompt"].startswith("copied")


@pytest.mark.parametrize("named", [None, "l2-tiled:side=8"])
def test_an_audit_compares_by_its_matching_plan_unless_a_descriptor_is_named(named, train, tmp_path):
    plan = Matching(descriptor="l2-tiled:side=16")
    audit(
        copier({"a fox": 3}), ["a fox"], train, scores=["text-uppercase"], descriptor=named, matching=plan,
        images_per_prompt=1, out=tmp_path / "run",
    )  # fmt: skip
    assert read_manifest(tmp_path / "run").plan["match"]["descriptor"] == (named or "l2-tiled:side=16")


def test_looks_end_where_copies_are_found_and_share_the_error_of_one(train, tmp_path):
    heldout = [picture(20_000 + i) for i in range(900)]
    common = {"heldout": heldout, "scores": ["text-uppercase"]}
    memorized = {f"copied {i}": i for i in range(20)}
    found = audit(copier(memorized), [*memorized, *(f"new {i}" for i in range(40))], train, looks=(2, 4, 8), **common)
    assert found.summary.verdict.state == "reproduces" and found.summary.images.made == 120
    out, texts = tmp_path / "run", [f"new {i}" for i in range(60)]
    safe = audit(copier({}), texts, train, looks=(1, 2), out=out, **common).summary
    assert safe.verdict.state != "reproduces" and safe.images.made == 120
    assert json.loads((out / "facts" / "looks.json").read_text())["made"] == [1, 2]
    with pytest.raises(IncompatibleRun, match="has the looks 1, 2"):
        audit(copier({}), texts, train, looks=(1, 4), out=out, **common)
    audit(copier({}), texts, train, images_per_prompt=1, out=tmp_path / "plain", **common)
    with pytest.raises(IncompatibleRun, match="without a plan"):
        audit(copier({}), texts, train, looks=(1, 2), out=tmp_path / "plain", **common)
    with pytest.raises(UsageError, match="leave images_per_prompt"):
        audit(copier({}), texts, train, looks=(1, 2), images_per_prompt=2, **common)


def test_agreement_is_of_the_images_that_were_asked_for_last(tmp_path):
    """Four images, then two of them, then all four again, then one: never the row of another number of images."""

    def make(prompts, seeds):
        return [picture(s % 7 if p == "a" else 3) for p, s in zip(prompts, seeds, strict=True)]

    def agreement(out, images):
        target = Target.from_callable(generate=make, name="s")
        run = audit(target, ["a", "b"], out=tmp_path / out, scores=["text-uppercase"], images_per_prompt=images)
        (found,) = [e for e in run.summary.as_dict()["scores"] if e["score"] == "seed-agreement"] or [None]
        return None if found is None else {one["prompt_id"]: one["value"] for one in found["top"]}

    four, two, again = agreement("run", 4), agreement("run", 2), agreement("run", 4)
    assert four == again
    assert two == agreement("afresh", 2) != four
    assert agreement("run", 1) == {}, "one image agrees with no other"
    assert agreement("run", 2) == two
    rows = [r for r in RunStore(tmp_path / "run").read("scores").to_pylist() if r["score"] == "seed-agreement"]
    assert len(rows) == 2 * 5
    assert agreement("run", 2) == two
    rows = [r for r in RunStore(tmp_path / "run").read("scores").to_pylist() if r["score"] == "seed-agreement"]
    assert len(rows) == 2 * 5, "the same command writes nothing"


def test_degenerate_images_are_set_aside_and_counted(train, tmp_path):
    black = Image.new("RGB", (16, 16))
    target = Target.from_callable(generate=lambda p, s: [black if "nsfw" in t else picture(1) for t in p], name="s")
    summary = audit(
        target, ["nsfw one", "fine"], train, out=tmp_path / "r", scores=["text-uppercase"], images_per_prompt=2
    ).summary.as_dict()
    assert summary["images"] == {"made": 4, "errors": 0, "degenerate": 2, "uncounted": 0}
    assert summary["copies"]["images_matched"] == 2


def test_without_a_training_set_it_says_what_cannot_be_known(tmp_path):
    target = Target.from_pipeline(tiny_sd())
    summary = audit(
        target, ["a", "b"], out=tmp_path / "r", scores=SCORES, images_per_prompt=2, sampling=FAST
    ).summary.as_dict()
    assert summary["copies"] is None
    assert summary["check"]["passed"]
    assert {e["score"] for e in summary["scores"]} == {*SCORES, "seed-agreement"}
    assert any("cannot be known" in text for text in summary["limits"])
    json.dumps(summary, allow_nan=False)


def test_a_model_that_cannot_generate_is_scored_all_the_same(tmp_path):
    from diffmem.testbeds.closed_form import empirical_bayes

    images = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    target = Target.from_denoiser(empirical_bayes(images, list("abcde"), dtype=torch.float32))
    run = audit(target, ["a", "z"], out=tmp_path / "r", scores=SCORES)
    assert any("cannot generate" in note for note in run.results["audit"].made.before.notes)
    assert run.summary.as_dict()["images"] is None


def test_an_unconditional_model_is_generated_from_and_matched(train, tmp_path):
    target = Target.from_pipeline(tiny_ddpm())
    summary = audit(
        target, ["one", "two"], train, out=tmp_path / "r", scores=SCORES, images_per_prompt=2, sampling=FAST
    ).summary.as_dict()
    assert summary["images"]["made"] == 4
    assert summary["copies"]["images_matched"] == 4


def test_the_same_audit_again_does_nothing_and_more_images_only_add(train, tmp_path):
    target = Target.from_pipeline(tiny_sd())
    arguments = {"scores": SCORES, "sampling": FAST, "out": tmp_path / "r"}
    audit(target, ["a", "b"], train, images_per_prompt=2, **arguments)
    before = {r["key"]: r for r in RunStore(tmp_path / "r").read("images").to_pylist()}
    again = audit(target, ["a", "b"], train, images_per_prompt=2, **arguments)
    assert again.results["audit"].made.before.nfe.total == again.results["audit"].made.generation.made == 0
    assert again.results["audit"].made.matching.matched == 0
    more = audit(target, ["a", "b"], train, images_per_prompt=3, **arguments)
    assert more.results["audit"].made.generation.made == more.results["audit"].made.matching.matched == 2
    after = {r["key"]: r for r in RunStore(tmp_path / "r").read("images").to_pylist()}
    assert before.items() <= after.items()
    with pytest.raises(IncompatibleRun, match="steps"):
        audit(
            target,
            ["a", "b"],
            train,
            images_per_prompt=2,
            scores=SCORES,
            sampling=Sampling(steps=3),
            out=tmp_path / "r",
        )


def test_heldout_without_train_is_refused(train):
    with pytest.raises(UsageError, match="training set too"):
        audit(Target.from_pipeline(tiny_sd()), ["a"], heldout=train)


def test_recorded_seeds_make_the_image_again(tmp_path):
    target = Target.from_pipeline(tiny_sd())
    run = generate(target, ["a fox"], Generation(images_per_prompt=2, sampling=FAST), out=tmp_path / "r").run
    row = run.store.read("images").to_pylist()[1]
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(row["seed"]))
    assert torch.equal(noise, gaussian((4, 8, 8), 0, "generation", "a fox", 1))
    image = target.pipeline("a fox", latents=noise[None], num_inference_steps=2, output_type="np").images[0]
    import io

    stored = np.asarray(Image.open(io.BytesIO(row["png"])), float)
    assert np.abs(stored - 255 * image).max() <= 1


def test_an_image_that_fails_is_an_error_row_and_the_others_go_on(tmp_path):
    def make(prompts, seeds):
        if "bad" in prompts:
            raise ValueError("the service choked")
        return [picture(1) for _ in prompts]

    target = Target.from_callable(generate=make, name="s")
    result = generate(target, ["good", "bad", "fine", " "], Generation(images_per_prompt=2), out=tmp_path / "r")
    rows = result.run.store.read("images").to_pylist()
    texts = {p["prompt_id"]: p["text"] for p in result.run.store.read("prompts").to_pylist()}
    errors = {(texts[r["prompt_id"]], r["error"]) for r in rows if r["status"] == "error"}
    assert errors == {("bad", "ValueError: the service choked"), (" ", "empty prompt")}
    assert sum(r["status"] == "ok" for r in rows) == 4
    assert result.failed == 4
