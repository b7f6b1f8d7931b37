"""evaluate, compare, calibrate and score --threshold as typed, on the shipped testbed."""

import json

import pytest

from diffmem.cli.app import main
from diffmem.testbeds import digits


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Two small audits of the testbed on the same prompts, with other guidance."""
    root = tmp_path_factory.mktemp("runs")
    inputs = digits.materialize(root / "in", 60)
    for name, guidance in (("strong", 2), ("weak", 1)):
        assert main(
            ["audit", "testbed:digits", "--prompts", str(inputs.prompts), "--labels", "label", "--train", str(inputs.train),
             "--heldout",
             str(inputs.held_out), "--out", str(root / name), "--steps", "10", "--guidance", str(guidance),
             "--images-per-prompt", "2", "--draws", "2", "--quiet"]
        ) == 0  # fmt: skip
    return root


def test_the_audit_writes_its_report(audited):
    assert (audited / "strong" / "report.html").stat().st_size > 10_000
    digest = json.loads((audited / "strong" / "digest.json").read_text())
    assert digest


@pytest.mark.parametrize("labels", ["given", "measured"])
def test_evaluate(audited, capsys, labels):
    code, out, _ = run(capsys, "evaluate", audited / "strong", "--labels", labels, "--json")
    assert code == 0
    rows = json.loads(out)
    by = {(r["score"], r["negatives"]): r for r in rows}
    assert {"all", "generic", "hard", "unseen"} <= {r["negatives"] for r in rows}
    row = by[("anisotropy", "all")]
    assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]
    assert row["n_positives"] >= 5
    assert by[("anisotropy", "generic")]["auroc"] > 0.9
    assert by[("seed-agreement", "all")]["auroc"] > 0.7
    assert row["tpr"] is None, "with so few negatives 1 % cannot be measured"
    assert "takes at least 100" in row["reason"]


def test_measured_labels_are_written_as_a_prompt_list(audited, capsys, tmp_path):
    code, _, err = run(capsys, "evaluate", audited / "strong", "--write-labels", tmp_path / "l.jsonl", "--json")
    assert code == 0
    assert "60 measured labels" in err
    from diffmem.data.prompts import load_prompts

    prompts = load_prompts(tmp_path / "l.jsonl", labels="label")
    tiers = {p.extra["tier"] for p in prompts}
    assert tiers <= {"reproduced", "sometimes", "not reproduced"}
    assert {p.label for p in prompts if p.extra["tier"] == "reproduced"} == {True}
    assert all(len(p.extra["similarities"]) == 2 for p in prompts)
    truth = {row["id"]: row["label"] for row in digits.truth("text")}
    agree = [truth[p.id] == p.extra["tier"] for p in prompts if truth[p.id] != "sometimes"]
    assert sum(agree) > 0.9 * len(agree)


def test_compare_two_runs(audited, capsys):
    code, out, _ = run(capsys, "compare", audited / "strong", audited / "weak", "--despite-settings", "--json")
    assert code == 0
    rows = {r["what"]: r for r in json.loads(out)}
    copies = rows["share of images called copies"]
    assert copies["prompts"] == 60
    assert copies["low"] <= copies["difference"] <= copies["high"]
    same = rows["AUROC of score-difference"]
    assert same["difference"] == 0, "the scores do not depend on the guidance of the images"
    code, _, err = run(capsys, "compare", audited / "strong", audited)
    assert code == 2
    assert "no run directory" in err


def test_calibrate_and_decide(audited, capsys, tmp_path):
    file = tmp_path / "t.json"
    reference = tmp_path / "ref.txt"
    reference.write_text("\n".join(r["caption"] for r in digits.truth("text") if r["tier"] == "generic"))
    code, out, _ = run(
        capsys, "calibrate", "testbed:digits", "--out", file, "--reference", reference, "--fpr", "0.05", "--draws", "2",
        "--score", "alignment", "--quiet",
    )  # fmt: skip
    assert code == 0
    assert "alignment >=" in out
    code, out, _ = run(
        capsys, "score", "testbed:digits", "--prompts", audited / "in" / "prompts.jsonl", "--threshold", file, "--json"
    )
    assert code == 0
    rows = {r["prompt_id"]: r for r in json.loads(out)["prompts"]}
    truth = {r["id"]: r for r in digits.truth("text")}
    generic = [rows[i]["flagged"] for i in rows if truth[i]["tier"] == "generic"]
    planted = [rows[i]["flagged"] for i in rows if truth[i]["label"] == "reproduced"]
    assert sum(generic) <= 0.2 * len(generic)
    assert sum(planted) >= 0.8 * len(planted)
    assert all(0 < r["p_value"] <= r["q_value"] <= 1 for r in rows.values())
    for changed, message in ((["--seed", "1"], "noise regime"), (["--noise", "per-prompt"], "noise regime")):
        code, _, err = run(capsys, "score", "testbed:digits", "a seven", "--threshold", file, *changed)
        assert code == 4
        assert message in err
    code, _, err = run(capsys, "score", "testbed:digits", "a seven", "--threshold", file, "--score", "alignment")
    assert code == 2


def test_early_exit_saves_draws_and_agrees_with_the_full_decision(capsys, tmp_path, audited):
    file, reference = tmp_path / "t.json", tmp_path / "ref.txt"
    reference.write_text("\n".join(r["caption"] for r in digits.truth("text") if r["tier"] in ("generic", "unseen")))
    code, *_ = run(
        capsys, "calibrate", "testbed:digits", "--out", file, "--reference", reference, "--fpr", "0.05", "--quiet"
    )
    assert code == 0
    arguments = [
        "score",
        "testbed:digits",
        "--prompts",
        audited / "in" / "prompts.jsonl",
        "--threshold",
        file,
        "--json",
    ]
    _, full, _ = run(capsys, *arguments)
    _, early, _ = run(capsys, *arguments, "--early-exit")
    full, early = json.loads(full), json.loads(early)
    assert early["saved"] > 0.2
    assert early["nfe"] < full["nfe"]
    agree = [a["flagged"] == b["flagged"] for a, b in zip(full["prompts"], early["prompts"], strict=True)]
    assert sum(agree) >= 0.85 * len(agree)
    code, _, err = run(capsys, "score", "testbed:digits", "x", "--early-exit")
    assert code == 2
    assert "needs --threshold" in err
