"""What ships with the photos testbed: weights, truth and classifier fit together; inputs of an audit say what the data says."""

import io
import json
from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffmem.errors import DataError, UsageError
from diffmem.testbeds import photos
from diffmem.testbeds.labels import label_of, table
from diffmem.testbeds.matching import NEAR_RATIO, RATIO
from diffmem.testbeds.measuring import file_hash, generate
from diffmem.testbeds.photos.data import load, to_signed
from diffmem.testbeds.photos.measure import DRAWS, SAMPLING, load_pipeline, references
from diffmem.testbeds.photos.sources import KINDS

WEIGHTS = photos.model_path().parent


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return photos.materialize(tmp_path_factory.mktemp("photos"))


def test_truth_belongs_to_the_shipped_model_and_data():
    for name in ("truth.parquet", "truth_samples.parquet"):
        facts = {key.decode(): value.decode() for key, value in pq.read_schema(WEIGHTS / name).metadata.items()}
        for part, folder in (("model", "unet"), ("autoencoder", "vae")):
            assert facts[part] == file_hash(photos.model_path() / folder / "diffusion_pytorch_model.safetensors")
        assert facts["data"] == load().fingerprint()
        assert facts["root_seed"] == "20000"
    assert json.loads((photos.model_path() / "log.json").read_text())["data"] == load().fingerprint()
    assert json.loads((WEIGHTS / "log_classifier.json").read_text())["data"] == load().fingerprint()


def test_all_that_ships_fits_the_budget():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 2.8e6


def test_truth_follows_from_its_raw_values():
    raw = defaultdict(list)
    for row in photos.truth_samples():
        raw[row["id"]].append(row)
    rows = photos.truth()
    assert [row["id"] for row in rows] == [prompt.id for prompt in load().prompts]
    for row in rows:
        mine = raw[row["id"]]
        copies = [sample["d1"] / sample["d2"] < RATIO for sample in mine]
        assert sorted(sample["draw"] for sample in mine) == list(range(DRAWS))
        assert row["rate"] == np.mean(copies)
        assert row["near_rate"] == np.mean([sample["d1"] / sample["d2"] < NEAR_RATIO for sample in mine])
        assert row["label"] == label_of(row["rate"], row["near_rate"])
        own = [copy and sample["nearest"] == row["group"] for copy, sample in zip(copies, mine, strict=True)]
        assert row["own_rate"] == np.mean(own)
        assert row["aligned"] == np.mean([sample["shows"] == row["kind"] for sample in mine])


def test_card_shows_the_measured_table():
    assert table("text", photos.truth()) in (WEIGHTS / "CARD.md").read_text(encoding="utf-8")


def test_plants_are_reproduced_and_images_seen_once_are_not():
    rate = defaultdict(list)
    for row in photos.truth():
        rate[row["tier"], row["count"]].append(row["rate"])
    assert np.mean(rate["plant", 50]) > 0.6
    assert np.mean(rate["plant", 50]) >= np.mean(rate["plant", 10]) >= np.mean(rate["plant", 2])
    assert max(np.mean(rate[key]) for key in (("hard", 1), ("generic", 1), ("unseen", 0))) < 0.05


def test_shipped_model_copies_with_other_seeds_what_the_truth_says_it_copies():
    pipe = load_pipeline(photos.model_path())
    groups = references(load(), pipe.vae)
    rows = photos.truth()
    sure = [row for row in rows if row["own_rate"] >= 0.85 and row["tier"] == "plant"][:5]
    never = [row for row in rows if row["near_rate"] == 0.0 and row["tier"] == "hard"][:5]
    images = generate(pipe, [row["caption"] for row in sure + never], range(4), SAMPLING, root=5)
    verdicts = [groups.match(part) for part in images]
    assert len(sure) == 5
    for row, matches in zip(sure, verdicts, strict=False):
        assert matches.copies.mean() >= 0.5
        assert {groups.groups[index] for index in matches.nearest[matches.copies]} == {row["group"]}
    assert np.mean([matches.copies.mean() for matches in verdicts[len(sure) :]]) < 0.1


def test_classifier_names_held_out_crops_of_pictures_it_knows():
    held_out = load().held_out
    predicted, probabilities = photos.classify(to_signed(np.stack([image.pixels for image in held_out])))
    accuracy = np.mean([KINDS[number] == image.kind for number, image in zip(predicted, held_out, strict=True)])
    logged = json.loads((WEIGHTS / "log_classifier.json").read_text())["held_out_accuracy"]
    assert accuracy == pytest.approx(logged, abs=0.01)
    assert accuracy > 0.7
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    with pytest.raises(DataError, match="32, 32, 3"):
        photos.classify(np.zeros((32, 32, 3)))


def test_training_file_holds_every_duplicate_and_its_exact_pixels(inputs):
    rows = pq.read_table(inputs.train).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows) == len(load().repeated())
    expected = Counter()
    captions = defaultdict(set)
    for image in load().training:
        expected[image.pixels.tobytes()] += image.count
        captions[image.pixels.tobytes()] |= set(image.captions)
    found = Counter()
    for row in rows:
        pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).tobytes()
        assert row["caption"] in captions[pixels]
        found[pixels] += 1
    assert found == expected


def test_held_out_file_is_disjoint_from_training(inputs):
    train = {row["image"]["bytes"] for row in pq.read_table(inputs.train).to_pylist()}
    held_out = pq.read_table(inputs.held_out).to_pylist()
    assert len(held_out) == len(load().held_out) >= 250
    assert not train & {row["image"]["bytes"] for row in held_out}


def test_prompt_file_carries_the_measured_labels(inputs):
    lines = [json.loads(line) for line in inputs.prompts.read_text(encoding="utf-8").splitlines()]
    wanted = {"reproduced": True, "not reproduced": False, "sometimes": None}
    truth = {row["id"]: row for row in photos.truth()}
    assert [line["id"] for line in lines] == list(truth)
    assert all(line["label"] == wanted[truth[line["id"]]["label"]] for line in lines)
    assert all(line["kind"] in KINDS for line in lines)


def test_a_subset_keeps_the_shares_of_tiers(tmp_path):
    chosen = [json.loads(line) for line in photos.materialize(tmp_path, 66).prompts.read_text().splitlines()]
    assert len(chosen) == 66
    tiers = Counter(line["tier"] for line in chosen)
    whole = Counter(row["tier"] for row in photos.truth())
    assert all(abs(tiers[tier] - whole[tier] / 10) <= 2 for tier in whole)
    with pytest.raises(UsageError, match="661"):
        photos.materialize(tmp_path, 661)
