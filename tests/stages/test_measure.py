"""The measuring stage: rows, resume in the middle of an image, faults, conversion, shards, held-out images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests import measuring
from tests.measuring import ToyBatch, ToyLong, ToyParameters, memorizer, strangers, write_folder

from diffmem.errors import DataError, IncompatibleRun, ModelError, ScoreRefused, UsageError
from diffmem.models.model_image import ModelImage, convert
from diffmem.models.target import Target
from diffmem.runs.facts import read_fact
from diffmem.stages.measure import shift
from diffmem.stages.measure.bench import RunBench, pack, unpack
from diffmem.stages.measure.measure import measure

COLUMNS = ("image_id", "score", "value", "evidence", "error_bar", "components", "status", "error", "nfe")


@pytest.fixture(autouse=True)
def _fresh():
    ToyBatch.calls, ToyBatch.fail_above, ToyBatch.poison = [], None, None
    ToyLong.done, ToyLong.stop_after = 0, None
    measuring.register()


def rows(run):
    table = run.store.read("measures").to_pylist()
    return {row["key"]: tuple(row[name] for name in COLUMNS) for row in table}


def test_trained_images_are_told_from_others_and_rows_say_what_they_cost(tmp_path):
    target, pixels = memorizer()
    train = write_folder(tmp_path / "train", pixels)
    held = write_folder(tmp_path / "held", strangers())
    result = measure(target, train, ["toy"], heldout=held, out=tmp_path / "run", trained=True)
    values = result.values("toy")
    inside, outside = ([v for k, v in values.items() if k.startswith("heldout/") is side] for side in (False, True))
    assert len(inside) == len(outside) == 6 and min(inside) > max(outside)
    targets = {row["image_id"]: row for row in result.run.store.read("targets").to_pylist()}
    assert targets["heldout/000.png"]["member"] is False and targets["000.png"]["member"] is True
    row = result.run.store.read("measures").to_pylist()[0]
    assert (row["nfe"], row["nfe_forward"], row["nfe_tangent"], row["seconds"] > 0) == (1, 1, 0, True)
    assert result.nfe.forward == 12


def test_batched_equals_one_by_one(tmp_path):
    target, pixels = memorizer()
    batched, single = (measure(target, list(pixels), ["toy"], batch=size) for size in (4, 1))
    assert ToyBatch.calls == [4, 2, 1, 1, 1, 1, 1, 1]
    assert rows(batched.run) == rows(single.run)


def test_the_same_call_does_nothing_again_and_more_only_adds(tmp_path):
    target, pixels = memorizer()
    run = tmp_path / "run"
    measure(target, list(pixels), ["toy"], out=run, limit=3)
    parts = sorted(run.rglob("*.parquet"))
    again = measure(target, list(pixels), ["toy"], out=run, limit=3)
    assert again.nfe.total == 0 and sorted(run.rglob("*.parquet")) == parts and sum(ToyBatch.calls) == 3
    more = measure(target, list(pixels), ["toy", "toy-long"], out=run, limit=5)
    assert sum(ToyBatch.calls) == 5 and len(rows(more.run)) == 10
    with pytest.raises(IncompatibleRun, match=r"measure\.seed"):
        measure(target, list(pixels), ["toy"], out=run, seed=1)


@pytest.mark.parametrize("stop_after", [1, 7, 17, 35])
def test_an_interruption_in_the_middle_of_an_image_loses_nothing(tmp_path, monkeypatch, stop_after):
    monkeypatch.setenv("DIFFMEM_FLUSH_SECONDS", "0")
    target, pixels = memorizer()
    whole = measure(target, list(pixels), ["toy-long"], out=tmp_path / "whole")
    spent = ToyLong.done
    ToyLong.done, ToyLong.stop_after = 0, stop_after
    with pytest.raises(KeyboardInterrupt):
        measure(target, list(pixels), ["toy-long"], out=tmp_path / "run")
    assert len(list((tmp_path / "run" / "state").glob("*.safetensors"))) == (1 if stop_after % 6 else 0)
    ToyLong.stop_after = None
    resumed = measure(target, list(pixels), ["toy-long"], out=tmp_path / "run")
    assert ToyLong.done == spent  # no step was done twice
    assert rows(resumed.run) == rows(whole.run)
    assert not (tmp_path / "run" / "state").exists()
    row = resumed.run.store.read("measures").to_pylist()[0]
    assert (tmp_path / "run" / row["tensors"]).is_file()


def test_memory_halves_the_batch_and_a_bad_image_takes_no_other_with_it():
    target, pixels = memorizer()
    ToyBatch.fail_above = 2
    result = measure(target, list(pixels), ["toy"], batch=8)
    assert len(result.values("toy")) == 6 and result.batch == 1 and "halved" in result.notes[0]
    ToyBatch.fail_above, ToyBatch.poison = None, "000002"
    result = measure(target, list(pixels), ["toy"], batch=8)
    broken = [row for row in rows(result.run).values() if row[6] == "error"]
    assert [(row[0], row[7]) for row in broken] == [("000002", "ValueError: 000002 is poison")]
    assert len(result.values("toy")) == 5


class Moody(ToyLong):
    """Fails on one image, runs out of memory above a batch, gives no number for another."""

    about = measuring.about("moody")

    def run(self, denoiser, items, bench):
        if bench.batch > 2:
            raise MemoryError
        for result in super().run(denoiser, items, bench):
            if result.id == "000001":
                raise ValueError("this one is bad")
            if result.id == "000003":
                result.value = float("nan")
            if result.id == "000004":
                result.value, result.evidence = float("inf"), -5.0
            if result.id != "000005":
                yield result


def test_faults_of_a_streaming_score_stay_with_their_image():
    target, pixels = memorizer()
    result = measure(target, list(pixels), [Moody()], batch=8)
    found = {row[0]: row for row in rows(result.run).values()}
    assert found["000000"][6] == found["000002"][6] == "ok"
    assert "this one is bad" in found["000001"][7] and "not a number" in found["000003"][7]
    assert found["000004"][2] == float("inf") and found["000004"][3] == -5
    assert "no result" in found["000005"][7]
    assert result.batch == 2


def test_errors_are_measured_again_on_request(tmp_path):
    target, pixels = memorizer()
    ToyBatch.poison = "000002"
    measure(target, list(pixels), ["toy"], out=tmp_path / "run")
    ToyBatch.poison = None
    assert len(measure(target, list(pixels), ["toy"], out=tmp_path / "run").values("toy")) == 5
    assert len(measure(target, list(pixels), ["toy"], out=tmp_path / "run", retry_errors=True).values("toy")) == 6


def test_images_of_another_size_or_mode_are_converted_and_said_or_refused(tmp_path):
    target, pixels = memorizer()
    folder = write_folder(
        tmp_path / "in", [*pixels[:2], np.dstack([np.kron(pixels[2], np.ones((3, 2), np.uint8))] * 3)]
    )
    (folder / "broken.png").write_bytes(b"no picture")
    result = measure(target, folder, ["toy"])
    notes = {row["image_id"]: row["note"] for row in result.run.store.read("targets").to_pylist()}
    assert notes["002.png"] == "RGB turned into grey; 8×12 resized to 4×4, edges cut" and notes["000.png"] is None
    assert any("1 of 4 images were not 4×4 grey" in note for note in result.notes)
    errors = [row for row in rows(result.run).values() if row[6] == "error"]
    assert [row[0] for row in errors] == ["broken.png"] and "not an image" in errors[0][7]
    strict = measure(target, folder, ["toy"], strict_size=True)
    assert set(strict.values("toy")) == {"000.png", "001.png"}


def test_conversion_keeps_what_fits_and_cuts_the_edges_evenly():
    wide = Image.fromarray(np.arange(8, dtype=np.uint8)[None].repeat(4, 0) * 30)
    same, note = convert(wide, ModelImage("L", 8, 4))
    assert note is None and same.tobytes() == wide.tobytes()
    cut, note = convert(wide, ModelImage("L", 4, 4))
    assert np.asarray(cut)[0].tolist() == [60, 90, 120, 150] and "edges cut" in note
    grey, note = convert(wide.convert("RGB"), ModelImage("L", 8, 4))
    assert grey.tobytes() == wide.tobytes() and note == "RGB turned into grey"


def test_equal_pixels_are_measured_once_and_counted(tmp_path):
    target, pixels = memorizer()
    result = measure(target, [*pixels, pixels[1], pixels[1]], ["toy"], out=tmp_path / "run")
    counts = {row["image_id"]: row["duplicates"] for row in result.run.store.read("targets").to_pylist()}
    assert len(counts) == 6 and counts["000001"] == 3 and counts["000000"] == 1
    assert any("2 repeats" in note for note in result.notes)
    with pytest.raises(IncompatibleRun, match="another picture"):
        measure(target, list(pixels[::-1]), ["toy"], out=tmp_path / "run")


def test_captions_condition_the_measure_unless_told_not_to(tmp_path):
    target, pixels = memorizer(captions=True)
    own = write_folder(tmp_path / "own", pixels, captions=[f"plant {i}" for i in range(6)])
    other = write_folder(tmp_path / "other", pixels, captions=[f"plant {(i + 1) % 6}" for i in range(6)])
    score = ToyBatch(ToyParameters(t=990))  # at high noise only the caption says which image it is
    right, wrong, none = (
        np.mean(list(measure(target, folder, [score], condition=how).values(score.label).values()))
        for folder, how in ((own, "caption"), (other, "caption"), (other, "none"))
    )
    assert right > -1e-9 and wrong < none < right


def test_values_are_found_by_the_score_as_it_was_typed_and_never_silently_missing(tmp_path):
    target, pixels = memorizer()
    result = measure(target, write_folder(tmp_path / "own", pixels), ["toy:steps=5,t=990", "toy-long"])
    assert result.labels == ["toy:t=990.0,steps=5", "toy-long"]
    assert len(result.values("toy:steps=5,t=990")) == 6 and result.values("toy") == result.values("toy:t=990,steps=5")
    with pytest.raises(DataError, match="no measures by 'toy:t=1'; it has toy-long"):
        result.values("toy:t=1")
    with pytest.raises(UsageError, match="toy-lon"):
        result.evidence("toy-lon")


def test_captioned_and_uncaptioned_images_in_one_run_are_said(tmp_path):
    target, pixels = memorizer(captions=True)
    own = write_folder(tmp_path / "own", pixels, captions=[f"plant {i}" for i in range(6)])
    bare = write_folder(tmp_path / "bare", strangers(2))

    def notes(images, **more):
        return [note for note in measure(target, images, ["toy"], **more).notes if "caption" in note]

    [mixed] = notes(own, heldout=bare)
    assert mixed.startswith("2 of 8 images have no caption") and "--condition none" in mixed
    assert notes(bare) == ["none of the images has a caption: measured without a prompt"]
    assert notes(own) == [] and notes(own, heldout=bare, condition="none") == []


def test_two_shards_do_all(tmp_path):
    target, pixels = memorizer(12)
    whole = measure(target, list(pixels), ["toy"])
    for i in range(2):
        last = measure(target, list(pixels), ["toy"], out=tmp_path / "run", shard=(i, 2))
    assert rows(last.run) == rows(whole.run) and sum(ToyBatch.calls) == 24 and len(last.targets) < 12


def test_groups_come_from_folders_or_from_the_caller(tmp_path):
    target, pixels = memorizer(2)
    folder = write_folder(tmp_path / "in", pixels, ["cats/a.png", "b.png"])
    result = measure(target, folder, ["toy"])
    read = {r["image_id"]: r["group"] for r in result.run.store.read("targets").to_pylist()}
    assert read == {"cats/a.png": "cats", "b.png": None}
    given = measure(target, folder, ["toy"], groups={"b.png": "dogs"}, duplicates={"b.png": 9})
    read = {r["image_id"]: (r["group"], r["duplicates"]) for r in given.run.store.read("targets").to_pylist()}
    assert read == {"cats/a.png": ("cats", None), "b.png": ("dogs", 9)}


def test_what_cannot_be_measured_says_why(tmp_path):
    target, pixels = memorizer()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        measure(target, tmp_path / "empty", ["toy"])
    with pytest.raises(UsageError, match="No score"):
        measure(target, list(pixels), [])
    with pytest.raises(ModelError, match="only generates"):
        measure(Target.from_callable(generate=lambda p, s: []), list(pixels), ["toy"])
    odd = Target.from_callable(lambda x, t, c: x, (5, 4, 4))
    with pytest.raises(ModelError, match="1 or 3 channels"):
        measure(odd, list(pixels), ["toy"])

    def no_encoder(images):
        raise AttributeError("no vae")

    with pytest.raises(ModelError, match="where there is an encoder"):
        measure(Target.from_callable(lambda x, t, c: x, (3, 4, 4), encode_images=no_encoder), list(pixels), ["toy"])

    class Refusing(ToyBatch):
        about = measuring.about("refusing")

        def check(self, denoiser):
            raise ScoreRefused("it cannot be differentiated")

    with pytest.raises(ScoreRefused, match="cannot be differentiated"):
        measure(target, list(pixels), [Refusing()])
    assert measure(target, list(pixels), [Refusing(), "toy"]).refused == {"refusing": "it cannot be differentiated"}


def test_latent_models_are_measured_at_the_size_their_decoder_gives():
    from tests.tiny import picture, tiny_sd

    target = Target.from_pipeline(tiny_sd())
    seen = []

    class Look(ToyBatch):
        about = measuring.about("look")

        def compute(self, denoiser, items, seed):
            seen.extend((tuple(item.x0.shape), tuple(item.pixels.shape)) for item in items)
            return super().compute(denoiser, [], seed) or [measuring.ImageResult(item.id, 0.0, 0.0) for item in items]

    result = measure(target, [picture(0), picture(1).resize((20, 20))], [Look()])
    assert seen == [((4, 8, 8), (3, 16, 16))] * 2
    assert any("latent" in note for note in result.notes) and any("1 of 2" in note for note in result.notes)


def test_the_estimate_prices_every_kind_of_evaluation():
    from tests.tiny import tiny_ddpm

    from diffmem.stages.measure.cost import estimate_measuring, seconds_per_evaluation

    class Gradients(ToyBatch):
        about = measuring.about("gradients")

        def estimate(self, denoiser):
            return measuring.Nfe(10, 30, 20)

    denoiser = Target.from_pipeline(tiny_ddpm()).need_denoiser()
    found = estimate_measuring(denoiser, [ToyBatch(), Gradients()], 5, 2)
    assert found.nfe == {"forward": 55, "tangent": 150, "backward": 100, "total": 305}
    assert found.per_image["gradients"]["total"] == 60 and found.seconds > 0
    prices = seconds_per_evaluation(denoiser, 2, measuring.Nfe(1, 0, 1))
    assert prices.forward > 0 and prices.tangent == 0 and prices.backward > 0


def test_states_come_back_as_they_were(tmp_path):
    state = {
        "mu": torch.randn(2, 3, dtype=torch.float64), "half": torch.ones(2, dtype=torch.bfloat16), "n": 3,
        "deep": {"list": [1.5, None, "x", torch.arange(3)]}, "limit": float("inf"),
    }  # fmt: skip
    back = unpack(pack(state), tmp_path)
    assert torch.equal(back["mu"], state["mu"]) and back["half"].dtype == torch.bfloat16
    assert back["deep"]["list"][:3] == [1.5, None, "x"] and torch.equal(back["deep"]["list"][3], torch.arange(3))
    assert back["n"] == 3 and back["limit"] == float("inf")
    bench = RunBench(0, 1, tmp_path / "state", {"a": b"1" * 16}, seconds=0)
    bench.save("a", state)
    state["mu"].zero_()
    assert bench.load("a")["mu"].abs().sum() > 0
    bench.path("a").write_bytes(b"damaged")
    with pytest.raises(DataError, match="begins again"):
        bench.load("a")
    rare = RunBench(0, 1, tmp_path / "rare", {"a": b"1" * 16}, seconds=3600)
    rare.save("a", state)
    assert rare.load("a") is None


def test_components_are_strict_json():
    target, pixels = memorizer(1)

    class Wild(ToyBatch):
        about = measuring.about("wild")

        def compute(self, denoiser, items, seed):
            return [
                measuring.ImageResult(i.id, 1.0, 1.0, components={"a": float("nan"), "b": np.float64(2), "c": [np.inf]})
                for i in items
            ]

    result = measure(target, [pixels], [Wild()])
    row = result.run.store.read("measures")
    assert json.loads(row["components"][0].as_py()) == {"a": None, "b": 2.0, "c": [None]}


def test_the_same_two_sets_are_checked_for_a_shift_once(tmp_path, monkeypatch):
    """A monitor and a lab measure the same images of many models, each in its own folder."""
    asked, check = [], shift.shift_check
    monkeypatch.setattr(shift, "shift_check", lambda *sets, seed: asked.append(len(sets[0])) or check(*sets, seed=seed))
    monkeypatch.setattr(shift, "_CHECKED", {})
    target, pixels = memorizer(12)
    train, held = write_folder(tmp_path / "train", pixels), write_folder(tmp_path / "held", strangers(12))
    for run in ("one", "two"):
        measure(target, train, ["toy"], heldout=held, out=tmp_path / run, trained=True)
    facts = [read_fact(tmp_path / run, "shift") for run in ("one", "two")]
    assert asked == [12] and facts[0] == facts[1] and facts[0]["members"] == 12
    held = write_folder(tmp_path / "others", strangers(24)[12:])
    measure(target, train, ["toy"], heldout=held, out=tmp_path / "three", trained=True)
    assert asked == [12, 12] and read_fact(tmp_path / "three", "shift")["of"] != facts[0]["of"]
