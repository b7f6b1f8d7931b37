"""The verbs as a user types them, in process, on a tiny pipeline on disk."""

import json

import pytest
import torch
from tests.tiny import tiny_ddpm, tiny_sd

from diffmem.cli.app import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sd"
    tiny_sd().save_pretrained(folder)
    return str(folder)


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_score_one_prompt_from_the_shell(model, capsys):
    code, out, err = run(capsys, "score", model, "a fox", "--score", "score-difference", "--quiet")
    assert code == 0
    assert "a fox" in out
    assert "score-difference" in out
    assert "uncalibrated" in err


def test_score_gives_percentiles_among_ordinary_captions(model, capsys, tmp_path):
    """By hand: the share of the captions of the file that score lower, in the run in which both were scored."""
    ordinary, texts = [f"an ordinary caption {i}" for i in range(9)], ["a red fox", "a blue bird"]
    (tmp_path / "ordinary.txt").write_text("\n".join(ordinary))
    command = ["score", model, "--score", "score-difference", "--draws", "2", "--json"]
    assert main([*command, *texts, "--reference", str(tmp_path / "ordinary.txt")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ranked_by"] == "score-difference"
    assert main([*command, *texts, *ordinary]) == 0
    value = {row["prompt"]: row["score-difference"] for row in json.loads(capsys.readouterr().out)["prompts"]}
    for row in found["prompts"]:
        lower = sum(value[text] < value[row["prompt"]] for text in ordinary)
        assert row["percentile"] == pytest.approx(100 * lower / 9, abs=0.06)
    assert main([*command, *texts, "--threshold", "x.json", "--reference", "builtin"]) == 2
    assert "--reference" in capsys.readouterr().err


def test_score_json_from_a_file(model, capsys, tmp_path):
    prompts = tmp_path / "p.csv"
    prompts.write_text('caption\na fox\n"one, two"\n', encoding="utf-8")
    code, out, _ = run(
        capsys, "score", model, "--prompts", str(prompts), "--json", "--draws", "2", "--out", str(tmp_path / "r")
    )
    assert code == 0
    found = json.loads(out)
    assert {row["prompt"] for row in found["prompts"]} == {"a fox", "one, two"}
    assert found["nfe"]["forward"] == 2 * 2 * 2 + 2 * 2
    assert "needs 20" in found["refused"]["anisotropy"]
    code, out, _ = run(
        capsys, "score", model, "--prompts", str(prompts), "--json", "--draws", "2", "--out", str(tmp_path / "r")
    )
    assert code == 0
    assert json.loads(out)["nfe"]["forward"] == 0


def test_noises_from_a_file(model, capsys, tmp_path):
    from safetensors.torch import save_file

    save_file({"noises": torch.randn(3, 4, 8, 8)}, tmp_path / "n.safetensors")
    code, out, _ = run(
        capsys,
        "score",
        model,
        "a fox",
        "--score",
        "alignment",
        "--noise-file",
        str(tmp_path / "n.safetensors"),
        "--json",
    )
    assert code == 0
    assert json.loads(out)["nfe"]["forward"] == 6
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    code, _, err = run(capsys, "score", model, "a fox", "--noise-file", str(tmp_path / "bad.safetensors"))
    assert code == 2
    assert "cannot be read" in err


def test_dry_run_counts_what_the_run_spends(model, capsys):
    arguments = ["score", model, "a fox", "a hen", "--score", "anisotropy:weights=1/2", "--draws", "3", "--json"]
    _, planned, _ = run(capsys, *arguments, "--dry-run")
    _, spent, _ = run(capsys, *arguments)
    assert json.loads(planned)["nfe"] == json.loads(spent)["nfe"]["forward"]
    assert json.loads(planned)["seconds"] > 0
    code, out, _ = run(capsys, "generate", model, "a fox", "--images-per-prompt", "3", "--steps", "5", "--dry-run")
    assert code == 0
    assert "30 network evaluations, 3 images" in out


def test_generate_resumes(model, capsys, tmp_path):
    arguments = [
        "generate",
        model,
        "a fox",
        "--images-per-prompt",
        "3",
        "--steps",
        "2",
        "--json",
        "--out",
        str(tmp_path / "r"),
    ]
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert json.loads(out)["made"] == 3
    _, out, _ = run(capsys, *arguments)
    assert json.loads(out)["made"] == 0
    code, _, err = run(capsys, *arguments[:-1], str(tmp_path / "r"), "--guidance", "2")
    assert code == 4
    assert "guidance" in err


def test_shards_share_the_work(model, capsys, tmp_path):
    prompts = [f"prompt {i}" for i in range(6)]
    spent = []
    for shard in ("0/2", "1/2"):
        _, out, _ = run(
            capsys, "score", model, *prompts, "--score", "score-difference", "--shard", shard, "--json", "--draws", "1",
            "--out", str(tmp_path / "r"),
        )  # fmt: skip
        spent.append(json.loads(out)["nfe"]["forward"])
    assert sum(spent) == 6 + 2, "six conditional evaluations, and one shared one per process"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["score", "MODEL"], 2, "No prompts"),
        (["score", "MODEL", "x", "--score", "nope"], 2, "no 'nope' among the scores"),
        (["score", "MODEL", "x", "--shard", "2/2"], 2, "--shard takes I/N"),
        (["score", "not-there", "x"], 2, "no folder not-there"),
        (["score", "testbed:letters", "x"], 2, "no bundled model 'letters'"),
        (["score", "MODEL", "--prompts", "nowhere.txt"], 2, "nowhere.txt"),
        (["generate", "MODEL", "x"], 2, "--out is missing"),
        (["generate", "MODEL", "x", "--scheduler", "magic", "--out", "r"], 2, "Unknown scheduler"),
        (["generate", "MODEL", "x", "--steps", "0", "--out", "r"], 2, "--steps"),
        (["methods", "anisotropie"], 2, "Did you mean 'anisotropy'"),
        (["bench", "--suite", "numbers"], 2, "no 'numbers' among the suites"),
        (["skore", "MODEL"], 2, "Did you mean 'score'"),
    ],
)
def test_clear_errors(model, capsys, arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    got, _, err = run(capsys, *[model if a == "MODEL" else a for a in arguments])
    assert got == code, err
    assert message in err
    assert err.strip().count("\n") == 0, "one line"


def test_an_unconditional_model_refuses_prompt_scores_with_the_reason(capsys, tmp_path):
    tiny_ddpm().save_pretrained(tmp_path / "m")
    code, out, err = run(
        capsys, "score", str(tmp_path / "m"), "x", "--score", "score-difference", "--score", "text-uppercase"
    )
    assert code == 3, "only a control has values"
    assert "takes no prompts" in err
    assert "text-uppercase" in out


def test_methods_lists_every_score(capsys):
    from diffmem.scores import SCORES

    code, out, _ = run(capsys, "methods", "--json")
    assert code == 0
    assert {row["name"] for row in json.loads(out)} == set(SCORES)
    code, out, _ = run(capsys, "methods", "anisotropy")
    assert "Asthana" in out


def test_doctor_finds_this_installation_sound(capsys):
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 0
    states = {row["check"]: row["state"] for row in json.loads(out)}
    assert states["torch"] == "ok"
    assert states["bundled model"] == "ok"


def test_the_matrix_says_what_runs_where(capsys):
    from diffmem.models.families import FAMILIES

    code, out, _ = run(capsys, "methods", "--matrix", "--json")
    assert code == 0
    rows = {row["score"]: row for row in json.loads(out)}
    assert {key.split(" ")[0] for key in rows["anisotropy"]} == {"score", *FAMILIES}
    assert rows["anisotropy"]["sd3"] == "works"
    assert "takes no prompts" in rows["anisotropy"]["pixel-unet"]
    assert "guidance-distilled" in rows["score-difference"]["flux (distilled)"]
    assert all(text == "works" for key, text in rows["text-uppercase"].items() if key != "score")
