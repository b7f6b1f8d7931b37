"""A LoRA of a bundled model trained on a folder of pictures: the audit names the pictures that leak, and not from the base."""

from __future__ import annotations

import json

import pytest

from diffmem.cli.app import main
from diffmem.errors import ModelError
from diffmem.models.loading import load_pipeline
from diffmem.models.lora import load_lora
from diffmem.testbeds.digits import model_path
from diffmem.testbeds.digits.export import export

PLAN = """
[model]
base = "testbed:digits"
method = "lora"
lora_rank = 8
lora_targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "time_emb_proj"]
[data]
images = "pictures"
[optimizer]
steps = {steps}
batch = 8
lr = 1e-2
schedule = "cosine"
"""


@pytest.mark.slow
def test_a_lora_leaks_its_pictures_and_its_base_does_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export("pictures", 4, 1, unseen=True)
    export("heldout", 100, 1, unseen=True, start=4)
    (tmp_path / "plan.toml").write_text(PLAN.format(steps=110))
    assert main(["train", "plan.toml", "--out", "tuned", "--device", "cpu", "--quiet"]) == 0
    arguments = ["audit", "testbed:digits", "--lora", "tuned/lora", "--train", "pictures", "--prompts", "pictures"]
    arguments += [
        "--heldout",
        "heldout",
        "--against-base",
        "--out",
        "audit",
        "--images-per-prompt",
        "2",
        "--draws",
        "1",
    ]
    arguments += ["--steps", "12", "--fpr", "0.02", "--score", "score-difference", "--device", "cpu"]
    capsys.readouterr()
    assert main([*arguments, "--json", "--fail-if", "against.prompts.lora_only<3"]) == 0
    against = json.loads(capsys.readouterr().out)["against"]
    rows = [json.loads(line) for line in (tmp_path / "pictures" / "metadata.jsonl").read_text().splitlines()]
    captions = {row["file_name"]: row["captions"][0] for row in rows}
    leaks = [leak for leak in against["leaks"] if leak["where"] == "lora_only"]
    assert len(leaks) >= 3 and against["prompts"]["base_only"] == 0
    for leak in leaks:
        assert leak["base_copies"] == 0 < leak["lora_copies"]
        assert leak["prompt"] in [captions[name] for name in leak["train_ids"]]
    assert (tmp_path / "audit" / "comparison.html").exists() and (tmp_path / "audit" / "lora" / "report.html").exists()


def test_a_lora_of_convolutions_and_attention_is_whole_and_fits_its_base_only(tmp_path, monkeypatch):
    from tests.tiny import tiny_sd

    monkeypatch.chdir(tmp_path)
    export("pictures", 2, 1, unseen=True)
    (tmp_path / "plan.toml").write_text(PLAN.format(steps=1))
    assert main(["train", "plan.toml", "--out", "tuned", "--device", "cpu", "--quiet"]) == 0
    load_lora(load_pipeline(model_path()), "tuned/lora")  # refuses what would load in part
    with pytest.raises(ModelError, match=r"another architecture|cannot be loaded"):
        load_lora(tiny_sd(), "tuned/lora")
