"""Claims: planted works come out with their proofs, chance ones do not, and bounds are exact."""

import csv
import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from diffmem.cli.app import main
from diffmem.errors import DataError, UsageError
from diffmem.experiments.claim.evidence import Candidate, best_images, enough_decoys, findings, null_of
from diffmem.experiments.claim.pool import Units
from diffmem.experiments.claim.run import claim as claim_by
from diffmem.experiments.extract.proof import remake
from diffmem.models.target import Target
from diffmem.stages.generate import Generation
from tests.tiny import picture, tiny_sd

claim = partial(claim_by, descriptor="l2-tiled")
WORKS, DECOYS, PLANTED = 6, 130, {"work 1", "work 4"}


def write(folder, names, first):
    folder.mkdir()
    for i, name in enumerate(names):
        picture(first + i).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(name)
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("claim")
    works = write(root / "works", [f"work {i}" for i in range(WORKS)], 0)
    return works, write(root / "decoys", [f"decoy {i}" for i in range(DECOYS)], 1000)


def planted(prompts, seeds):
    """Half the seeds of two works' captions give them, a little changed."""
    return [
        picture(int(text[-1]), 0.02) if text in PLANTED and seed % 2 else picture(10_000 + seed % 2**31)
        for text, seed in zip(prompts, seeds, strict=True)
    ]


@pytest.fixture(scope="module")
def run(places, tmp_path_factory):
    target = Target.from_callable(generate=planted, name="planted")
    return claim(target, *places, budget=12, out=tmp_path_factory.mktemp("run")), target


def test_planted_works_come_out_and_their_proofs_make_the_images_again(run, tmp_path):
    found, target = run
    rows = {row["work"]: row for row in found.summary.works}
    assert {rows[name]["caption"] for name in rows if rows[name]["status"] == "reproduced"} == PLANTED
    assert found.summary.verdict.state == "reproduces" and found.summary.decoys == DECOYS
    assert [row["caption"] for row in found.summary.works[:2]] == ["work 1", "work 4"]
    for rank in (1, 2):
        folder = found.path / "claims" / f"{rank:04d}"
        proof = json.loads((folder / "proof.json").read_text())
        with Image.open(folder / "generated.png") as kept:
            assert np.array_equal(np.asarray(kept), np.asarray(remake(folder, target)))
        assert proof["prompt"] in PLANTED and proof["search"] == "captions"
    page = found.report(out=tmp_path / "page.html").read_text()
    assert "Works that come out" in page and "000.png" in page


def test_what_was_not_found_has_the_exact_bound(run):
    row = next(row for row in run[0].summary.works if row["caption"] == "work 0")
    assert (row["status"], row["images"], row["called"]) == ("not found", 6, 0)
    assert row["bound"] == pytest.approx(1 - 0.05 ** (1 / 6))
    recall = run[0].summary.recall
    assert recall["of"] == 6 * WORKS and row["bound_after_recall"] == pytest.approx(
        min(1, row["bound"] * recall["of"] / recall["seen"])
    )


def one(image, nearest, value, asked=(), seed=None, called=False):
    return Candidate(image, "captions", nearest, str(nearest), value, called, False, asked, seed)


def test_512_seeds_give_the_bound_of_the_textbook_and_a_seed_counts_once():
    listed = [one(f"{i}", 9, 0.0, (0,), str(i)) for i in range(512)]
    null = null_of(0, [*listed, *listed, one("adaptive", 0, 1.0, (0,), None, True)], 0.6)
    assert (null.images, null.called) == (512, 0)
    assert null.bound == pytest.approx(1 - 0.05 ** (1 / 512)) and null.bound < 0.006 < null.after_recall < 0.01
    assert null_of(0, [*listed, one("x", 0, 1.0, (0,), "new", True)], None).called == 1


def units(works, decoys):
    return Units({}, {i: [str(i)] for i in range(works)}, list(range(works, works + decoys)), {}, {})


def test_chance_makes_no_more_false_works_than_the_rate():
    """All works are like decoys: any finding is false. 400 claims on 20 works and 1,000 decoys at 5 %."""
    random, trials, wrong = np.random.default_rng(1), 400, 0
    both = units(20, 1000)
    for _ in range(trials):
        values = random.normal(size=1020)
        tests = [best_images("images", [one(str(i), i, v) for i, v in enumerate(values)], both)]
        wrong += any(row["status"] == "reproduced" for row in findings(both, tests, [], 0.05, None))
    assert 0 < wrong <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5


def test_decoys_for_which_less_was_tried_say_nothing():
    both = units(1, 40)
    listed = [one("w", 0, 5.0, (0,)), *(one("again", 0, 0.0, (0,)) for _ in range(3))]
    listed += [one(f"d{d}", d, 1.0, (d,)) for d in range(1, 41) for _ in range(1 if d <= 20 else 4)]
    (row,) = findings(both, [best_images("images", listed, both)], listed, 0.05, None)
    assert row["decoys"] == 20 and row["p_value"] == pytest.approx(1 / 21)
    assert enough_decoys(1, 1, 0.05) == 19 and enough_decoys(20, 2, 0.05) == 799


def test_too_few_decoys_are_said_and_never_a_pass(places, tmp_path):
    target = Target.from_callable(generate=lambda p, s: [picture(10_000 + x % 2**31) for x in s], name="other")
    few = write(tmp_path / "few", ["decoy 1", "decoy 2"], 1000)
    found = claim(target, places[0], few, budget=2, search=["captions"], out=tmp_path / "run").summary
    assert found.verdict.state == "unknown" and "117 more decoys" in found.verdict.needs
    assert claim(target, places[0], budget=2, out=tmp_path / "none").summary.verdict.state == "unknown"


def test_images_with_their_log(places, tmp_path):
    works, decoys = places
    made = tmp_path / "made"
    made.mkdir()
    rows = []
    for kind, folder in (("work", works), ("decoy", decoys)):
        for i, file in enumerate(sorted(folder.glob("*.png"))):
            for seed in range(3):
                image = picture(2, 0.02) if (kind, i, seed) == ("work", 2, 1) else picture(50_000 + len(rows))
                image.save(made / f"{len(rows)}.png")
                rows.append((f"{len(rows)}.png", file.with_suffix(".txt").read_text(), seed, seed == 2))
    log = tmp_path / "log.csv"
    with log.open("w", newline="") as stream:
        csv.writer(stream).writerows([("file_name", "prompt", "seed", "adaptive"), *rows, ("gone.png", "x", 1, False)])
    out = tmp_path / "run"
    command = [
        "claim",
        "--images",
        made,
        "--log",
        log,
        "--works",
        works,
        "--decoys",
        decoys,
        "--out",
        out,
        "--quiet",
        "--descriptor",
        "l2-tiled",
    ]
    assert main([str(part) for part in command]) == 0
    values = json.loads((out / "summary.json").read_text())
    (found,) = [row for row in values["works"] if row["status"] == "reproduced"]
    assert found["work"] == "002.png" and found["image"] == "7.png" and found["decoys"] == DECOYS
    assert {row["images"] for row in values["works"]} == {2}  # adaptive ones do not count
    assert any("1 row of the log name" in text for text in values["notes"])
    assert json.loads((out / "claims/0001/proof.json").read_text())["prompt"] == "work 2"
    assert main(["show", str(out), "--fail-if", "verdict==reproduces"]) == 1
    (tmp_path / "bad.csv").write_text("prompt,seed\nx,1\n")
    with pytest.raises(DataError, match="no column with file names"):
        claim(made, works, log=tmp_path / "bad.csv")


def test_works_that_nobody_asked_for_are_compared_with_all_decoys(places, tmp_path):
    made = [picture(3, 0.02), *(picture(50_000 + i) for i in range(40))]
    found = claim(made, *places, out=tmp_path / "run").summary
    assert [row["work"] for row in found.works if row["status"] == "reproduced"] == ["003.png"]
    assert {row["bound"] for row in found.works} == {None}


def test_every_search_on_a_real_pipeline(places, tmp_path):
    target = Target.from_pipeline(tiny_sd(), name="tiny")
    works = write(tmp_path / "works", ["a red fox", "a blue bird"], 0)
    decoys = write(tmp_path / "decoys", ["a green hen", "a grey cat", "a white cow"], 50)
    from diffmem.models.generation import Sampling

    found = claim(
        target, works, decoys, budget=4, search=["captions", "paraphrases", "inversion", "measure"], out=tmp_path / "run",
        settings=Generation(sampling=Sampling(steps=2)), inversion="invmm:steps=2,sampler_steps=2",
    ).summary  # fmt: skip
    assert [name.split(":")[0] for name in found.tests] == ["images", "inversion", "inversion", "measure"]
    assert {arm.name for arm in found.arms} == {"captions", "paraphrases", "inversion"}
    assert {row["images"] for row in found.works} == {2} and found.verdict.state == "unknown"


def test_images_that_no_work_aligns_with_are_counted_as_unlike(tmp_path):
    """The descriptor `aligned` has no evidence for most pictures; a work that is there, cut a little, comes out all the same."""
    made = [picture(1, 0.02).resize((60, 60)), *(picture(50_000 + i) for i in range(4))]
    works, decoys = [picture(i) for i in range(2)], [picture(1000 + i) for i in range(45)]
    found = claim_by(made, works, decoys, descriptor="aligned", out=tmp_path / "run").summary
    assert found.judged == 5 and found.works[0]["status"] == "reproduced"


def test_searches_that_make_no_sense_are_refused(places):
    target = Target.from_callable(generate=planted, name="planted")
    for options, text in (
        ({"search": ["guess"]}, "no search 'guess'"),
        ({"search": ["measure"]}, "makes no images"),
        ({"budget": 0}, "--budget is 0"),
        ({"log": "x.csv"}, "belongs to images"),
        ({"fdr": 1.5}, "--fdr is 1.5"),
    ):
        with pytest.raises(UsageError, match=text):
            claim(target, *places, **options)
    with pytest.raises(UsageError, match="No work has a caption"):
        claim(target, [picture(1), picture(2)])
    with pytest.raises(UsageError, match="--budget belongs to a model"):
        claim([picture(1)], places[0], budget=3)
    assert main(["claim", "--works", "x"]) == 2
