"""Canaries: drawn apart and alike, registered before training, refused when touched, and exactly as often in the data."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tests.tiny import picture, tiny_sd

from diffmem import atomic
from diffmem.copies.descriptors import make_descriptor
from diffmem.data.canaries import pixel_hash, read_registration
from diffmem.data.canary_pictures import draw_picture, known_phrases, phrases
from diffmem.data.images import load_images
from diffmem.errors import DataError, UsageError
from diffmem.models.target import Target
from diffmem.training import canary_files
from diffmem.training.canaries import CanaryPlan, draw_canaries
from diffmem.training.canary_files import registered_in, write_canaries
from diffmem.training.data import load_training_set
from diffmem.training.loop import train
from diffmem.training.plan import TrainPlan, check_plan

PLAN = CanaryPlan(counts=(1, 3), per_count=2, controls=4, seed=5)


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for i in range(12):
        picture(i).save(folder / f"{i:02d}.png")
        rows.append({"file_name": f"{i:02d}.png", "captions": [f"a red fox {i}", "brown hens run"], "label": "farm"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_canaries_are_apart_from_all_and_their_captions_are_new(dataset):
    drawn = draw_canaries(dataset, PLAN)
    registered = drawn.registration
    assert sorted(c.count for c in registered.canaries) == [0] * 4 + [1] * 2 + [3] * 2
    assert all((p.size, p.mode) == ((16, 16), "RGB") for p in drawn.pictures.values())
    maker = make_descriptor("l2-tiled", load_images(dataset))
    mine = maker.describe(list(drawn.pictures.values()))
    everything = np.concatenate([mine, maker.describe([item.image for item in load_images(dataset)])])
    for at, canary in enumerate(registered.canaries):
        others = np.delete(everything, at, 0)
        distance = 1 - maker.metric.exact(np.repeat(mine[at : at + 1], len(others), 0), others)
        assert distance.min() >= registered.facts["apart"] == pytest.approx(0.225)
        assert canary.nearest == pytest.approx(distance.min(), abs=1e-4)
    words = [word for canary in registered.canaries for word in canary.caption.split()]
    assert len(set(words)) == len(words) == 3 * 8 and not set(words) & {"a", "red", "fox", "brown", "hens", "run"}
    again, other = draw_canaries(dataset, PLAN), draw_canaries(dataset, PLAN.model_copy(update={"seed": 6}))
    assert [c.pixels for c in again.registration.canaries] == [c.pixels for c in registered.canaries]
    assert not {c.pixels for c in other.registration.canaries} & {c.pixels for c in registered.canaries}


def test_roles_are_dealt_out_after_drawing(dataset):
    """Controls and canaries take every place in the order of drawing: nothing but the count tells them apart."""
    first = [draw_canaries(dataset, PLAN.model_copy(update={"seed": s})).registration.canaries for s in range(12)]
    assert len({tuple(c.count for c in canaries) for canaries in first}) > 8


def test_the_folder_holds_each_canary_as_often_as_registered(dataset, tmp_path):
    drawn = draw_canaries(dataset, PLAN)
    out = tmp_path / "out"
    data = load_training_set(write_canaries(drawn, dataset, out))
    assert len(data) == 12 + 2 * 1 + 2 * 3
    hashes = [pixel_hash(image.image) for image in data.images]
    for canary in drawn.registration.canaries:
        assert hashes.count(canary.pixels) == canary.count
        assert [i.captions for i in data.images].count((canary.caption,)) == canary.count
    own = [image for image in data.images if image.label == "farm"]
    assert len(own) == 12 and all(len(image.captions) == 2 for image in own)
    read = read_registration(out)
    assert read.hash == drawn.registration.hash and read.pictures().keys() == drawn.pictures.keys()
    facts = registered_in(out / "data", data)
    assert facts["registration"] == read.hash and facts["as_registered"]
    with pytest.raises(DataError, match="4 negative controls"):
        registered_in(out, load_training_set(out))
    with pytest.raises(UsageError, match="not empty"):
        write_canaries(drawn, dataset, out)
    only = load_training_set(write_canaries(drawn, dataset, tmp_path / "only", only=True))
    assert len(only) == 8


@pytest.mark.parametrize("writes", [0, 1, 7, 15, 30])
def test_a_registration_that_was_stopped_goes_on(dataset, tmp_path, monkeypatch, writes):
    drawn = draw_canaries(dataset, PLAN)
    write_canaries(drawn, dataset, tmp_path / "whole")
    left = [writes]

    def stopping(path, data):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        atomic.write_atomic(path, data)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(canary_files, "write_atomic", stopping)
        with pytest.raises(KeyboardInterrupt):
            write_canaries(drawn, dataset, out)
    if writes > 1:  # with one, only the mark is there
        other = draw_canaries(dataset, PLAN.model_copy(update={"seed": 1}))
        with pytest.raises(UsageError, match="not empty"):
            write_canaries(other, dataset, out)
    write_canaries(drawn, dataset, out)
    names = [{str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}
             for place in (tmp_path / "whole", out)]  # fmt: skip
    assert names[0] == names[1]


def test_a_registration_that_was_touched_is_refused(dataset, tmp_path):
    write_canaries(draw_canaries(dataset, PLAN), dataset, tmp_path / "out", only=True)
    file = tmp_path / "out" / "canaries.json"
    file.write_text(file.read_text().replace('"count": 3', '"count": 30', 1))
    with pytest.raises(DataError, match="was changed after it was written"):
        read_registration(file)
    beside = read_registration(tmp_path / "out" / "data")  # the copy is whole, its pictures lie one folder up
    assert len(beside.pictures()) == 8
    Image.new("RGB", (16, 16)).save(tmp_path / "out" / "registered" / "canary-0000.png")
    with pytest.raises(DataError, match="another picture than was registered"):
        beside.pictures()
    with pytest.raises(DataError, match="no registration"):
        read_registration(tmp_path)


def test_training_records_the_registration(dataset, tmp_path):
    data = write_canaries(draw_canaries(dataset, PLAN), dataset, tmp_path / "out")
    plan = check_plan(
        {"model": {"base": "given"}, "data": {"images": str(data)}, "optimizer": {"steps": 1, "batch": 2}},
        TrainPlan,
        "p",
    )
    result = train(plan, tmp_path / "run", target=Target.from_pipeline(tiny_sd()), device="cpu")
    registered = read_registration(tmp_path / "out")
    assert result.log["canaries"]["registration"] == registered.hash
    assert not any("canaries" in note for note in result.notes)
    assert result.log["canaries"]["counts"] == {c.id: c.count for c in registered.trained}
    assert registered.hash in (tmp_path / "run" / "README.md").read_text()
    next(data.glob("canary-*.png")).unlink()
    changed = train(plan, tmp_path / "less", target=Target.from_pipeline(tiny_sd()), device="cpu")
    assert any("not as often" in note for note in changed.notes)


def test_pictures_and_phrases():
    whole = [np.asarray(draw_picture((64, 48), "RGB", 0, i), float) for i in range(8)]
    assert whole[0].shape == (48, 64, 3) and min(image.std() for image in whole) > 20
    assert np.asarray(draw_picture((8, 8), "L", 0, 1)).shape == (8, 8)
    made = phrases(0, ["blum gra"])
    assert len({next(made) for _ in range(200)}) == 200
    taken = ["red fox runs", "blue hen sits", "old dog eats", "new cat naps"]
    known = known_phrases(0, taken, words=2)
    pairs = [frozenset(next(known).split()) for _ in range(10)]
    assert len(set(pairs)) == 10 and not any(pair <= set(text.split()) for pair in pairs for text in taken)
    with pytest.raises(UsageError, match="for 0 new phrases"):
        next(known_phrases(0, ["a b"], words=4))
    with pytest.raises(UsageError, match="different numbers"):
        draw_canaries({"a": picture(0)}, CanaryPlan(counts=(2, 2)))
    with pytest.raises(UsageError, match=r"ask for fewer canaries or a smaller distance"):
        draw_canaries({"a": picture(0)}, CanaryPlan(apart=0.9))
