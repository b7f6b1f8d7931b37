"""Mitigations compared: pairing, sides, refusals, resuming, the page; and the suite's choice of a headline."""

from __future__ import annotations

import json

import numpy as np
import pytest

from diffmem.bench.mitigation import KEYS, captions, headlines, mitigation_suite, plain_words, settings_of
from diffmem.cli.app import main
from diffmem.data.prompts import Prompt, PromptList
from diffmem.errors import UsageError
from diffmem.experiments import _arm as room
from diffmem.experiments._arm import Arm, Reference
from diffmem.experiments._experiment import ArmResult
from diffmem.experiments._run import Run, open_run
from diffmem.experiments._table import ArmTable
from diffmem.experiments.mitigate.compare import compare_arms
from diffmem.experiments.mitigate.run import mitigate
from diffmem.experiments.mitigate.summary import MitigateSummary
from diffmem.mitigation import MITIGATIONS
from diffmem.mitigation.spec import parse_mitigation
from diffmem.mitigation.sweeps import SWEEPS, sweep_of
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.stages.generate import Generation
from diffmem.stages.match.stage import Matching
from diffmem.testbeds import digits
from diffmem.testbeds.alignment import digits_alignment

SETTINGS = Generation(images_per_prompt=2, seed=1, batch=16, sampling=Sampling(steps=10, guidance=2.0))
METHODS = ("random-tokens", "embedding-noise:strength=0", "rewrite", "random-numbers:count=6")


@pytest.fixture(scope="module")
def target():
    return Target.from_pretrained(digits.model_path("text"), name="testbed:digits")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return digits.materialize(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def done(target, inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mitigate")
    return mitigate(
        target, captions(4), METHODS, inputs.train, out=folder, heldout=inputs.held_out, settings=SETTINGS,
        alignment=digits_alignment(),
    )  # fmt: skip


def test_rows_say_what_each_setting_did(done):
    none, tokens, neutral, rewrite, numbers = done.summary.rows
    assert none["copied_before"] == none["copied_after"] > 0.8  # captions that were measured as reproduced
    assert tokens["copied_after"] < none["copied_after"]
    assert tokens["copied_change"] == pytest.approx(tokens["copied_after"] - tokens["copied_before"])
    assert tokens["copied_change_low"] <= tokens["copied_change"] <= tokens["copied_change_high"]
    assert (tokens["n_prompts"], tokens["n_images"], tokens["others_n_prompts"]) == (4, 8, 4)
    assert tokens["nfe_per_image"] == none["nfe_per_image"] == 20
    assert numbers["alignment_after"] < none["alignment_after"]
    assert rewrite["status"] == "refused"
    assert "function" in rewrite["reason"]
    # A mitigation of strength nothing gives the same images from the same noises.
    assert neutral["side_effect_similarity"] == 1
    assert neutral["copied_change"] == neutral["alignment_change"] == 0
    assert none["side_effect_reference"] < 1
    assert tuple(json.loads((done.path / "summary.json").read_text())["rows"]) == done.summary.rows
    assert open_run(done.path).summary == done.summary


def arm_table(calls, prompts, images=2):
    """Images of prompts, of which those in `calls` (prompt -> near-duplicate group) are called copies."""
    number = np.repeat(np.arange(prompts), images)
    n = len(number)
    group = tuple(calls.get(int(i), f"other {k}") for k, i in enumerate(number))
    return ArmTable(
        number, np.tile(np.arange(images), prompts), np.ones(n, bool), np.ones(n, bool), (None,) * n,
        np.array([int(i) in calls for i in number]), group, group, np.zeros(n), np.zeros(n), np.zeros((n, 0)), ("",) * n,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("calls", "prompts", "calibrated", "state"),
    [
        ({i: f"t{i}" for i in range(12)}, 120, True, "reproduces"),
        (dict.fromkeys(range(12), "one picture"), 120, True, "no-excess"),
        ({}, 120, True, "no-excess"),
        ({}, 8, True, "unknown"),
        ({i: f"t{i}" for i in range(12)}, 120, False, "unknown"),
    ],
)
def test_the_verdict_is_that_under_the_best_setting(calls, prompts, calibrated, state):
    from diffmem.experiments.mitigate.verdict import verdict_of

    random = np.random.default_rng(0)
    listed = [Prompt(f"{i}", "".join(chr(c) for c in random.integers(97, 123, 40))) for i in range(prompts)]
    threshold = {"calibrated": calibrated, "n_reference": 2000, "per_image_fpr": 0.005, "images_per_prompt": 2}
    found = verdict_of("ren", arm_table(calls, prompts), listed, threshold, arm_table({0: "t0"}, prompts))
    assert found.state == state and "under ren" in found.sentence and "(without: 1)" in found.sentence
    assert (found.needs is not None) == (state == "unknown")
    if state == "no-excess" and not calls:
        assert found.bound == pytest.approx(1 - 0.05 ** (1 / prompts))


def test_a_comparison_has_a_verdict_and_an_interval_in_its_headline(done, capsys):
    assert done.summary.verdict.state == "reproduces"
    assert "interval" in done.summary.headline
    assert main(["show", str(done.path)]) == 0
    assert "Verdict  REPRODUCES" in capsys.readouterr().out
    assert main(["show", str(done.path), "--fail-if", "verdict==reproduces"]) == 1
    assert 'class="verdict reproduces"' in done.report(out=done.path / "page.html").read_text()


def test_same_call_makes_no_image_again(done, target, inputs, monkeypatch):
    monkeypatch.setattr(Target, "generate", lambda *_: pytest.fail("an image was made again"))
    again = mitigate(
        target, captions(4), METHODS, inputs.train, out=done.path, heldout=inputs.held_out, settings=SETTINGS,
        alignment=digits_alignment(),
    )  # fmt: skip
    assert again.summary.rows == done.summary.rows


def test_stopped_comparison_goes_on_to_the_same_figures(done, target, inputs, tmp_path, monkeypatch):
    stage, calls = room.generate_stage, []

    def stopping(*arguments, **more):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return stage(*arguments, **more)

    def run():
        return mitigate(
            target, captions(4), METHODS[:2], inputs.train, out=tmp_path, heldout=inputs.held_out, settings=SETTINGS,
            alignment=digits_alignment(),
        )  # fmt: skip

    monkeypatch.setattr(room, "generate_stage", stopping)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert type(target.pipeline).__name__ == "StableDiffusionPipeline"  # nothing is left behind
    assert "_diffmem_layers" not in type(target.pipeline).__dict__
    monkeypatch.undo()
    timed = ("seconds_per_image", "peak_memory_mb")
    rows = [{k: v for k, v in row.items() if k not in timed} for row in run().summary.rows]
    assert rows == [{k: v for k, v in row.items() if k not in timed} for row in done.summary.rows[:3]]


def test_one_bad_prompt_is_an_error_and_not_in_the_pairs(target, inputs, tmp_path):
    listed = PromptList((*captions(2).prompts, Prompt("bad", "", True, problem="empty prompt")), "made")
    result = mitigate(target, listed, ["random-tokens"], inputs.train, out=tmp_path, settings=SETTINGS)
    assert result.summary.rows[1]["errors"] == 2
    assert result.summary.rows[1]["n_prompts"] == 2
    assert result.summary.rows[1]["alignment_after"] is None


def test_wrong_calls_are_refused(target, inputs, tmp_path):
    with pytest.raises(UsageError, match="twice"):
        mitigate(target, captions(2), ["wen", "wen"], inputs.train, out=tmp_path)
    others = PromptList((Prompt("a", "a seven", False),), "made")
    with pytest.raises(UsageError, match="None of the prompts"):
        mitigate(target, others, ["wen"], inputs.train, out=tmp_path)


def test_page_shows_settings_and_refusals(done):
    page = done.report().read_text()
    assert "random-numbers:count=6" in page
    assert "rewrite has no function" in page
    assert page.count("data:image") == 2 * 4 * 4  # two sides of four prompts, four settings
    assert captions(4)[0].text in page
    hidden = open_run(done.path).report("hash", hash_prompts=True).read_text()
    assert hidden.count("data:image") == 0
    assert captions(4)[0].text not in hidden


def table_of(copied, aligned):
    n = len(copied)
    none = (None,) * n
    return ArmTable(
        np.arange(n) // 4, np.arange(n) % 4, np.ones(n, bool), np.ones(n, bool), none, np.array(copied, bool), none, none,
        np.ones(n), np.array(aligned, float), np.ones((n, 2)), none,
    )  # fmt: skip


class Index:
    """As much of an index as comparing takes."""

    def __len__(self):
        return 0


def test_headline_is_chosen_on_one_half_and_reported_on_the_other(tmp_path):
    prompts = [Prompt("p", "one picture", True), Prompt("q", "something else entirely", True)]
    # On draws 0 and 1 "a:x=2" copies less, on 2 and 3 it copies all; "a:x=3" copies nothing and ruins every image.
    tables = {
        "none": table_of([1] * 8, [1] * 8), "random-tokens": table_of([1, 0, 1, 0] * 2, [1, 0.5, 1, 1] * 2),
        "wen": table_of([1, 1, 0, 0] * 2, [1] * 8), "wen:lr=0.2": table_of([0, 0, 1, 1] * 2, [1] * 8),
        "wen:lr=0.3": table_of([0] * 8, [0] * 8), "ren": table_of([0] * 8, [0.1] * 8),
    }  # fmt: skip
    results, rows = {}, []
    for name, table in tables.items():
        mitigations = () if name == "none" else (parse_mitigation(name),)
        results[name] = ArmResult(Arm(name, None, prompts, SETTINGS, mitigations=mitigations), table=table)
        row = compare_arms(name.partition(":")[0], name, tables["none"], table, prompts, Index())
        rows.append(row | {"nfe_per_image": 1.0, "seconds_per_image": 1.0, "peak_memory_mb": None})
    rows.append({"method": "sail", "setting": "sail", "status": "refused", "reason": "no"})
    summary = MitigateSummary(headline="-", model="m", alignment=None, rows=tuple(rows))
    run = Run(tmp_path, "mitigate", summary, results)
    a, b, c = headlines(run, Index(), ["wen", "ren", "sail"], (range(2), range(2, 4)))
    assert list(a)[: len(KEYS)] == list(KEYS)
    assert (a["setting"], a["copied_after"], a["n_prompts"]) == ("wen:lr=0.2", 1.0, 2)
    assert a["alignment_random"] == 1.0
    assert "no setting keeps the alignment" in b["headline"]
    assert (c["status"], c["reason"], c["copied_after"]) == ("refused", "no", None)


def test_every_setting_of_the_suite_is_sound(inputs, target):
    for name in MITIGATIONS:
        for one in settings_of(name):
            one.with_images(inputs.train).check(target.need_denoiser())
            assert one.name == name


def test_published_sweeps_are_sound():
    assert sweep_of("wen:lr=0.1") == ["wen:lr=0.1"]
    assert sweep_of("rewrite") == ["rewrite"]
    for name in SWEEPS:
        settings = [parse_mitigation(text) for text in sweep_of(name)]
        assert len({one.label for one in settings}) == len(SWEEPS[name]) + 1  # none of them is the default


def test_mitigation_that_needs_the_training_images_is_given_them(target, inputs, tmp_path):
    short = Generation(images_per_prompt=1, seed=1, sampling=Sampling(steps=2, guidance=2.0))
    result = mitigate(target, captions(2), ["amg"], inputs.train, out=tmp_path / "a", settings=short)
    assert [row["status"] for row in result.summary.rows] == ["ok", "ok"]
    # An index holds no pictures: the row says what to do.
    index = Reference.of(inputs.train, None, Matching()).index
    alone = mitigate(target, captions(2), ["amg"], index, out=tmp_path / "b", settings=short)
    assert alone.summary.rows[1]["status"] == "refused"
    assert "amg:index=FOLDER" in alone.summary.rows[1]["reason"]
    given = mitigate(target, captions(2), ["amg"], index, out=tmp_path / "b", settings=short, pictures=inputs.train)
    assert given.summary.rows[1]["copied_after"] == result.summary.rows[1]["copied_after"]


def test_suite_gives_a_row_per_method(tmp_path):
    rows = mitigation_suite(draws=2, prompts=2, methods=("random-tokens", "rewrite"), out=tmp_path, silent=True)
    assert [row["method"] for row in rows] == ["random-tokens", "rewrite"]
    assert all(list(row)[: len(KEYS)] == list(KEYS) for row in rows)
    assert rows[1]["copied_after"] == 0
    assert plain_words("Copper Glacier Sunrise Seven") == "a photo of the digit seven"
    assert set(MITIGATIONS) >= {row["method"] for row in rows}


def test_command(inputs, tmp_path, capsys):
    listed = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"id": p.id, "caption": p.text, "label": p.label}) for p in captions(2)]
    listed.write_text("\n".join(lines))
    command = [
        "mitigate", "testbed:digits", "--prompts", str(listed), "--method", "random-tokens:count=2", "--train",
        str(inputs.train), "--images", "2", "--steps", "4", "--guidance", "2", "--text-alignment", "digits", "--out",
        str(tmp_path / "run"), "--json",
    ]  # fmt: skip
    bystanders = tmp_path / "others.txt"
    bystanders.write_text("a three\na four\n")
    assert main([*command, "--sweep", "--method", "ren", "--dry-run", "--others", str(bystanders)]) == 0
    planned, settings = json.loads(capsys.readouterr().out)[0], 1 + len(sweep_of("ren"))
    assert planned == {"settings": settings, "prompts": 6, "images": 6 * 2 * (settings + 1)}
    assert main(["mitigate", "testbed:digits", "a", "--method", "wenn", "--train", "no/such", "--out", "x"]) == 2
    assert "Did you mean 'wen'" in capsys.readouterr().err, "before anything is read"
    assert main(command) == 0
    none, row = json.loads(capsys.readouterr().out)
    assert (none["setting"], row["setting"]) == ("none", "random-tokens:count=2")
    assert (tmp_path / "run" / "mitigations.html").exists()
    ordinary = tmp_path / "ordinary.txt"
    ordinary.write_text("\n".join(row["caption"] for row in digits.truth("text") if row["tier"] == "generic"))
    command[command.index("random-tokens:count=2")] = "low-noise-norm:steps=2"
    assert main([*command, "--method", "wen:pull=0.5,steps=1", "--reference", str(ordinary)]) == 0
    settings = [row["setting"] for row in json.loads(capsys.readouterr().out)]
    assert settings[1].startswith("low-noise-norm:pull=0.03") and settings[2] == "wen:pull=0.5,steps=1"
    assert main(["mitigate", "testbed:digits", "a seven", "--train", str(inputs.train), "--out", str(tmp_path)]) == 2
    assert "--method is missing" in capsys.readouterr().err
