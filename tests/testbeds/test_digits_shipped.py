"""What ships: weights, truth and classifier fit together, and the files an audit reads say what the data says."""

import io
import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffmem.errors import DataError, UsageError
from diffmem.models.bundled import bundled_path
from diffmem.testbeds import digits
from diffmem.testbeds.digits.data import load, to_signed
from diffmem.testbeds.digits.matching import RATIO, References
from diffmem.testbeds.digits.measure import generate_text, how_generated
from diffmem.testbeds.digits.model import PREDICTIONS
from diffmem.testbeds.labels import label_of, table
from diffmem.testbeds.measuring import file_hash

WEIGHTS = digits.model_path("text").parent


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return digits.materialize(tmp_path_factory.mktemp("digits"))


MODELS = [("text", "epsilon"), ("text", "v"), ("text", "flow"), ("unconditional", "epsilon")]


@pytest.mark.parametrize(("kind", "prediction"), MODELS)
def test_truth_belongs_to_the_shipped_model_and_data(kind, prediction):
    folder = digits.model_path(kind, prediction)
    facts = digits.truth_facts(kind, prediction)
    assert facts["model"] == file_hash(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert facts["data"] == load().fingerprint()
    assert facts["root_seed"] == "20000"
    assert facts.items() >= how_generated(kind, folder).items()
    assert {"epsilon": "epsilon", "v": "v_prediction", "flow": "flow_prediction"}[prediction] == facts["prediction"]
    assert json.loads((folder / "log.json").read_text())["data"] == load().fingerprint()
    if prediction == "epsilon":
        metadata = pq.read_schema(WEIGHTS / f"truth_{kind}_samples.parquet").metadata
        assert {key.decode(): value.decode() for key, value in metadata.items()} == facts


@pytest.mark.parametrize("prediction", ["v", "flow"])
def test_truth_of_the_variants_is_complete_and_labelled_by_the_rule(prediction):
    rows = digits.truth("text", prediction)
    assert [row["id"] for row in rows] == [prompt.id for prompt in load().prompts]
    draws = int(digits.truth_facts("text", prediction)["images"]) / len(rows)
    for row in rows:
        assert row["label"] == label_of(row["rate"], row["near_rate"])
        assert (row["rate"] * draws).is_integer()
        assert row["own_rate"] <= row["rate"] <= row["near_rate"]


def test_all_text_models_were_trained_alike():
    logs = [json.loads((digits.model_path("text", p) / "log.json").read_text()) for p in ("epsilon", "v", "flow")]
    same = ("seed", "steps", "batch", "rate", "warm_up", "ema", "caption_drop", "data", "training_images", "parameters")
    assert all(log[key] == logs[0][key] for log in logs for key in same)


def test_truth_follows_from_its_raw_values():
    raw = defaultdict(list)
    for row in digits.truth_samples("text"):
        raw[row["id"]].append(row)
    rows = digits.truth("text")
    assert [row["id"] for row in rows] == [prompt.id for prompt in load().prompts]
    for row in rows:
        mine = raw[row["id"]]
        copies = [sample["d1"] < sample["d2"] / 3 for sample in mine]
        assert sorted(sample["draw"] for sample in mine) == list(range(32))
        assert row["rate"] == np.mean(copies)
        assert row["near_rate"] == np.mean([sample["d1"] < sample["d2"] / 2 for sample in mine])
        assert row["label"] == label_of(row["rate"], row["near_rate"])
        own = [copy and sample["nearest"] == row["group"] for copy, sample in zip(copies, mine, strict=True)]
        assert row["own_rate"] == np.mean(own)
        assert row["aligned"] == np.mean([sample["shows"] == row["digit"] for sample in mine])


def test_labels_at_their_cuts():
    cases = [(0, 0), (0, 2), (2, 2), (0, 3), (15, 32), (16, 16), (32, 32)]
    assert [label_of(copies / 32, near / 32) for copies, near in cases] == [
        "not reproduced", "not reproduced", "not reproduced", "sometimes", "sometimes", "reproduced", "reproduced",
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "prediction"), MODELS)
def test_card_shows_the_measured_tables(kind, prediction):
    assert table(kind, digits.truth(kind, prediction)) in (WEIGHTS / "CARD.md").read_text(encoding="utf-8")


def test_unconditional_truth_follows_from_its_raw_values():
    samples = digits.truth_samples("unconditional")
    hits = Counter(row["nearest"] for row in samples if row["d1"] < RATIO * row["d2"])
    rows = digits.truth("unconditional")
    assert len(samples) >= 8192
    assert sorted(row["group"] for row in rows) == sorted({image.group for image in load().training})
    assert all(row["hits"] == hits[row["group"]] and row["samples"] == len(samples) for row in rows)
    assert sum(row["count"] for row in rows) == len(load().repeated())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_plants_are_reproduced_and_hard_negatives_are_not(prediction):
    rate = defaultdict(list)
    for row in digits.truth("text", prediction):
        rate[row["tier"], row["count"]].append(row["rate"])
    assert np.mean(rate["plant", 50]) > 0.9
    assert np.mean(rate["plant", 50]) >= np.mean(rate["plant", 10]) >= np.mean(rate["plant", 2])
    assert max(np.mean(rate[key]) for key in (("hard", 1), ("generic", 1), ("unseen", 0))) < 0.05


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_shipped_model_copies_with_other_seeds_what_the_truth_says_it_copies(prediction):
    references = References(load())
    rows = digits.truth("text", prediction)
    sure = [row for row in rows if row["own_rate"] == 1.0 and row["tier"] == "plant"][:6]
    never = [row for row in rows if row["rate"] == 0.0 and row["tier"] == "hard"][:6]
    captions = [row["caption"] for row in sure + never]
    images = list(generate_text(digits.model_path("text", prediction), captions, range(4), root=5))
    verdicts = [references.match(part) for part in images]
    for row, matches in zip(sure, verdicts, strict=False):
        assert matches.copies.mean() >= 0.75
        assert {references.groups[index] for index in matches.nearest[matches.copies]} == {row["group"]}
    assert np.mean([matches.copies.mean() for matches in verdicts[len(sure) :]]) < 0.1


def test_classifier_reads_held_out_digits():
    held_out = load().held_out
    predicted, probabilities = digits.classify(to_signed(np.stack([image.pixels for image in held_out])))
    assert np.mean(predicted == [image.digit for image in held_out]) > 0.97
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (probabilities.argmax(1) == predicted).all()
    with pytest.raises(DataError, match="8, 8"):
        digits.classify(np.zeros((8, 8)))


def test_training_file_holds_every_duplicate(inputs):
    table = pq.read_table(inputs.train)
    rows = table.to_pylist()
    assert len(rows) == len(load().repeated())
    assert len({row["id"] for row in rows}) == len(rows)
    expected = Counter()
    captions = defaultdict(set)
    for image in load().training:
        expected[image.pixels.tobytes()] += image.count
        captions[image.pixels.tobytes()] |= set(image.captions)
    found = Counter()
    for row in rows:
        decoded = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        pixels = np.round(decoded * (16 / 255)).astype(np.uint8)
        assert np.abs(decoded / 127.5 - 1 - to_signed(pixels)).max() < 0.005
        assert row["caption"] in captions[pixels.tobytes()]
        found[pixels.tobytes()] += 1
    assert found == expected


def test_held_out_file_is_disjoint_from_training(inputs):
    train = {row["image"]["bytes"] for row in pq.read_table(inputs.train).to_pylist()}
    held_out = pq.read_table(inputs.held_out).to_pylist()
    assert len(held_out) == len(load().held_out)
    assert not train & {row["image"]["bytes"] for row in held_out}


def test_prompt_file_carries_the_measured_labels(inputs):
    lines = [json.loads(line) for line in inputs.prompts.read_text(encoding="utf-8").splitlines()]
    truth = {row["id"]: row["label"] for row in digits.truth("text")}
    names = {True: "reproduced", False: "not reproduced", None: "sometimes"}
    assert len(lines) == len(truth)
    for line in lines:
        assert names[line["label"]] == truth[line["id"]]
        assert {"caption", "tier", "digit"} <= set(line)


@pytest.mark.parametrize("subset", [1, 37, 148, 740])
def test_subset_keeps_the_shares_of_tiers_and_counts(tmp_path, subset):
    lines = digits.materialize(tmp_path, subset=subset).prompts.read_text(encoding="utf-8").splitlines()
    chosen = Counter((row["tier"], row["count"]) for row in map(json.loads, lines))
    everything = Counter((prompt.tier, prompt.count) for prompt in load().prompts)
    assert sum(chosen.values()) == subset
    for key, size in everything.items():
        assert abs(chosen[key] - size * subset / 740) <= 1
    if subset >= 148:
        hard = [row for row in map(json.loads, lines) if row["tier"] == "hard"]
        per_digit = Counter(row["digit"] for row in hard)
        assert max(per_digit.values()) - min(per_digit.values()) <= 1


def test_impossible_subsets_are_refused(tmp_path):
    for subset in (0, 741):
        with pytest.raises(UsageError, match="740"):
            digits.materialize(tmp_path, subset=subset)
    assert not list(tmp_path.iterdir())


def test_each_variant_gives_its_own_model_and_labels(tmp_path):
    chosen = digits.materialize(tmp_path, prediction="flow")
    assert chosen.model == digits.model_path("text", "flow") != digits.model_path("text")
    names = {True: "reproduced", False: "not reproduced", None: "sometimes"}
    lines = map(json.loads, chosen.prompts.read_text(encoding="utf-8").splitlines())
    assert [names[line["label"]] for line in lines] == [row["label"] for row in digits.truth("text", "flow")]


def test_every_variant_has_a_name_that_commands_take():
    for name, folder in (("digits", "text"), ("digits-v", "text-v"), ("digits-flow", "text-flow")):
        assert bundled_path(f"testbed:{name}") == WEIGHTS / folder
        assert (WEIGHTS / folder / "model_index.json").exists()
    with pytest.raises(UsageError, match="digits-flow"):
        bundled_path("testbed:digits-x0")


def test_unknown_models_are_refused():
    with pytest.raises(UsageError, match="epsilon, v, flow"):
        digits.truth("text", "x0")
    with pytest.raises(UsageError, match="only the text model"):
        digits.model_path("unconditional", "v")
    with pytest.raises(UsageError, match="text, unconditional"):
        digits.model_path("video")


def test_what_ships_stays_small():
    assert not any(path.is_symlink() for path in Path(WEIGHTS).rglob("*"))
    sizes = [path.stat().st_size for path in Path(WEIGHTS).rglob("*") if path.is_file()]
    assert sum(sizes) < 9_300_000


def test_import_is_light():
    code = (
        "import sys, diffmem.testbeds.digits as d; assert d.model_path; "
        "assert not {'torch', 'sklearn', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
