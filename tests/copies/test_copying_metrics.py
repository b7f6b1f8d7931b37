"""Copying metrics against brute force, closed forms and sets whose answer is known."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.tiny import picture

from diffmem.copies.complexity import complexity, complexity_correlations
from diffmem.copies.copying_metrics import copying_metrics
from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.descriptors.base import Descriptor, Parameters
from diffmem.copies.descriptors.sscd import SSCD
from diffmem.copies.index import CopyIndex
from diffmem.copies.metrics import Metric
from diffmem.copies.precision_recall import kth_similarity, precision_recall
from diffmem.copies.similarity import similarities, split_by_duplication, top1
from diffmem.copies.split_product import split_top1
from diffmem.data.images import load_images
from diffmem.errors import ModelError, UsageError
from diffmem.evaluation.text_alignment import (
    CallableAlignment,
    ClassifierAlignment,
    ClipAlignment,
)
from diffmem.report.copying import copying_rows
from diffmem.testbeds.alignment import digits_alignment, photos_alignment


def distances(metric, a, b):
    return metric.distance(np.stack([metric.exact(np.repeat(x[None], len(b), 0), b) for x in a]))


def inside(points, manifold, metric, k):
    own = distances(metric, manifold, manifold)
    np.fill_diagonal(own, np.inf)
    radius = np.sort(own, 1)[:, k - 1]
    return (distances(metric, points, manifold) <= radius).any(1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 40), st.integers(5, 40), st.integers(1, 4), st.booleans())
def test_precision_and_recall_equal_brute_force(seed, n, m, k, cosine):
    random = np.random.default_rng(seed)
    metric = Metric("cosine") if cosine else Metric("tiled-rms", 2)
    made = np.rint(2 * random.normal(size=(n, 4))).astype(np.float32)  # whole numbers make ties
    real = np.rint(2 * random.normal(size=(m, 4)) + 1).astype(np.float32)
    found = precision_recall(made, real, metric, k)
    assert found.precision.value == pytest.approx(inside(made, real, metric, k).mean())
    assert found.recall.value == pytest.approx(inside(real, made, metric, k).mean())
    assert found.precision.low <= found.precision.value <= found.precision.high


def test_precision_and_recall_of_sets_whose_answer_is_known():
    random = np.random.default_rng(0)
    real = random.normal(size=(1500, 4)).astype(np.float32)
    narrow = (0.05 * random.normal(size=(1500, 4))).astype(np.float32)
    far = real + 100
    metric = Metric("tiled-rms")
    one_mode = precision_recall(narrow, real, metric)
    assert one_mode.precision.value > 0.95 and one_mode.recall.value < 0.2
    nothing = precision_recall(far, real, metric)
    assert nothing.precision.value == nothing.recall.value == 0
    assert nothing.precision.high < 0.01
    with pytest.raises(UsageError, match="at least 4 of each"):
        precision_recall(real[:3], real, metric)


def test_the_kth_neighbour_counts_copies_but_not_itself():
    rows = np.array([[0.0], [0.0], [1.0], [3.0]], np.float32)
    assert kth_similarity(rows, Metric("tiled-rms"), 1) == pytest.approx([1, 1, 0, -1])
    assert kth_similarity(rows, Metric("tiled-rms"), 2) == pytest.approx([0, 0, 0, -2])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Training pictures, three of them eight times; generated: copies of those three, of others, and new pictures."""
    root = tmp_path_factory.mktemp("copying")
    for name in ("train", "made"):
        (root / name).mkdir()
    for i in range(40):
        for copy in range(8 if i < 3 else 1):
            picture(i).save(root / "train" / f"{i:02d}-{copy}.png")
    for i in range(24):
        base = i % 3 if i < 9 else i - 5 if i < 14 else 500 + i
        picture(base, 0.002 if i < 9 else 0.05).save(root / "made" / f"{i:02d}.png")
        (root / "made" / f"{i:02d}.txt").write_text(f"picture {base}")
    Image.new("RGB", (16, 16)).save(root / "made" / "black.png")
    (root / "made" / "black.txt").write_text("black")
    listed = load_images(root / "train")
    return root, CopyIndex.build(listed, make_descriptor("l2-tiled", listed))


def test_similarities_equal_their_definitions(world):
    _, index = world
    vectors = index.vectors[np.arange(len(index))]
    made, rows = top1(vectors[::5] + 0.01, index)
    found = similarities(made, index, threshold=0.9)
    everything = 1 - distances(index.metric, vectors, vectors)
    np.fill_diagonal(everything, -np.inf)
    background = everything.max(1)
    assert found.background.mean.value == pytest.approx(background.mean())
    assert found.background.std.value == pytest.approx(background.std(ddof=1))
    assert found.background.p90.value == pytest.approx(np.percentile(background, 90))
    assert found.background.share_above.value == pytest.approx((background > 0.9).mean())
    assert sum(found.background.histogram) == len(index) == found.background_images
    assert sum(found.generated.histogram) == len(made)
    assert found.generated.p75.value == pytest.approx(np.percentile(made, 75))
    own = index.duplicates().group
    everything[own[:, None] == own[None]] = -np.inf
    assert found.background_distinct.mean.value == pytest.approx(everything.max(1).mean())
    # 24 of the 61 training images have exact copies, which the distinct background leaves out.
    assert found.background.share_above.value >= 24 / 61 > found.background_distinct.share_above.value
    assert (rows == np.arange(0, len(index), 5) - (np.arange(0, len(index), 5) % 8) * (rows < 24)).sum() > 0


def test_the_share_is_counted_where_the_paper_of_the_descriptor_counts_it():
    """DCR's tables count SSCD similarities above .5 (its own copy threshold is .75); four of these five exceed that."""

    class Vectors(Descriptor):
        about, duplicate_cut, copy_similarity = SSCD.about, SSCD.duplicate_cut, SSCD.copy_similarity
        metric, recipe = Metric("cosine"), {}

        def describe(self, images):
            raise NotImplementedError

    values = np.array([0.49, 0.51, 0.6, 0.76, 0.9])
    index = CopyIndex.from_vectors(np.eye(6), Vectors(Parameters()))
    found = similarities(values, index)
    assert found.threshold == 0.5
    assert found.generated.share_above.value == pytest.approx(4 / 5)
    assert found.generated.p95.value == pytest.approx(0.76 + 0.8 * (0.9 - 0.76))  # place .95 * 4 = 3.8
    assert similarities(values, index, threshold=0.75).generated.share_above.value == pytest.approx(2 / 5)
    Vectors.about = replace(SSCD.about, name="another")
    assert (
        similarities(values, CopyIndex.from_vectors(np.eye(6), Vectors(Parameters()))).threshold == SSCD.copy_similarity
    )


def test_the_split_product_stands_beside_the_plain_similarity(world):
    root, index = world
    found = copying_metrics(root / "made", index, parts=4)
    vectors = index.vectors[np.arange(len(index))]
    sound = [item.image for item in load_images(root / "made") if item.id != "black.png"]
    values = split_top1(index.describe(sound), vectors, 4)[0]
    assert found.split.generated.mean.value == pytest.approx(values.mean())
    assert found.split.generated.p95.value == pytest.approx(np.percentile(values, 95))
    assert found.split.generated.share_above.value == pytest.approx((values > 0.5).mean())
    rows = np.arange(len(index))
    background = split_top1(vectors, vectors, 4, exclude=(rows, rows))[0]
    assert found.split.background.mean.value == pytest.approx(background.mean())
    said = {row["figure"]: row["value"] for row in copying_rows(found)}
    assert said["split product of 4 parts, mean"] == found.split.generated.mean.value
    assert copying_metrics(root / "made", index).split is None


def test_all_metrics_of_a_known_world(world):
    root, index = world
    even = CallableAlignment(lambda images, texts: [float(t.split()[-1] < "3") for t in texts], "rule", "share")
    found = copying_metrics(root / "made", index, alignment=even, threshold=0.9)
    assert (found.generated, found.training) == (24, 61)
    assert found.set_aside == [{"image": "black.png", "reason": "black"}]
    assert found.duplication["duplicated"].value > found.duplication["single"].value
    assert found.similarity.generated.share_above.value >= 9 / 24
    assert {row["train_id"][:2] for row in found.top_matches[:9]} == {"00", "01", "02"}
    assert found.frechet.n == (24, 61) and found.frechet.low < found.frechet.high
    assert found.alignment_judge == "rule" and 0 < found.alignment.value < 1
    assert set(found.complexity_of_match) == {"entropy", "jpeg_bytes", "total_variation", "entropy_jpeg"}
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain["similarity"]["generated"]["mean"]["value"] == found.similarity.generated.mean.value
    again = copying_metrics(root / "made", index, alignment=even, threshold=0.9)
    assert again == found


def test_images_of_one_caption_count_as_dependent(world):
    root, index = world
    by_caption = copying_metrics(root / "made", index).similarity.generated.mean
    apart = copying_metrics(root / "made", index, groups=list(range(25))).similarity.generated.mean
    assert by_caption.value == apart.value
    assert "18 independent" in by_caption.note and "24 independent" in apart.note


def test_without_a_judge_or_with_few_images_it_says_so(world, tmp_path):
    _, index = world
    for i in range(3):
        picture(900 + i).save(tmp_path / f"{i}.png")
    found = copying_metrics(tmp_path, index)
    assert found.alignment.value is None and "no judge" in found.alignment.note
    assert found.frechet is None and found.precision_recall is None
    assert any("Fréchet" in note for note in found.notes) and any("precision" in note for note in found.notes)
    assert found.similarity.generated.mean.low is None
    with pytest.raises(UsageError, match="caption for every image"):
        copying_metrics(tmp_path, index, alignment=digits_alignment())
    with pytest.raises(UsageError, match="2 groups for 3 images"):
        copying_metrics(tmp_path, index, groups=[0, 1])


def test_complexity_orders_pictures_as_it_should():
    flat = Image.new("RGB", (32, 32), (90, 90, 90))
    half = Image.fromarray(np.repeat(np.repeat([[0, 255]], 16, 1), 32, 0).astype(np.uint8))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8))
    a, b, c = map(complexity, (flat, half, noise))
    assert (a.entropy, b.entropy) == (0, 1)
    assert b.total_variation == pytest.approx(32 / (2 * 31 * 32))
    assert a.total_variation == 0 and a.jpeg_bytes < b.jpeg_bytes < c.jpeg_bytes
    packed = io.BytesIO()
    noise.save(packed, "JPEG", quality=90)
    assert c.jpeg_bytes == len(packed.getvalue())
    assert c.entropy_jpeg == pytest.approx(c.entropy * len(packed.getvalue()) ** 0.5)


def test_correlations_have_the_right_sign_and_intervals():
    images = [
        Image.fromarray(np.random.default_rng(i).integers(0, 8 * (i + 2), (16, 16)).astype(np.uint8)) for i in range(30)
    ]
    found = complexity_correlations([complexity(image) for image in images], -np.arange(30.0))
    assert found["total_variation"].value < -0.99 and found["total_variation"].high < -0.9
    flat = complexity_correlations([complexity(images[0])] * 5, np.arange(5.0))
    assert flat["entropy"].value is None


def test_split_by_duplication():
    random = np.random.default_rng(0)
    twice = random.random(200) < 0.3
    found = split_by_duplication(0.2 * twice + 0.05 * random.normal(size=200), twice)
    assert found["difference"].low <= 0.2 <= found["difference"].high
    assert found["difference"].value == pytest.approx(found["duplicated"].value - found["single"].value)
    none = split_by_duplication([0.1, 0.2], [False, False])
    assert none["difference"].value is None and none["single"].value == pytest.approx(0.15)


def test_the_digits_judge_reads_captions_and_pictures():
    from diffmem.testbeds.digits.captions import captions_for
    from diffmem.testbeds.digits.data import load

    judge = digits_alignment()
    for digit in range(10):
        assert {judge._named(caption) for caption in captions_for(digit)} == {digit}
    data = load()
    held = data.held_out[::5]
    images = [Image.fromarray(np.asarray(np.rint(image.pixels * (255 / 16)), np.uint8)) for image in held]
    right = judge.judge(images, [f"the digit {word_of(image.digit)}" for image in held])
    wrong = judge.judge(images, [f"the digit {word_of((image.digit + 1) % 10)}" for image in held])
    assert right.mean() > 0.9 > 0.1 > wrong.mean()
    assert np.isnan(judge.judge(images[:1], ["a house"]))


def test_the_photos_judge_reads_captions_and_pictures():
    from diffmem.testbeds.photos.data import load
    from diffmem.testbeds.photos.sources import KINDS

    judge, held = photos_alignment(), load().held_out[::12]
    images = [Image.fromarray(image.pixels) for image in held]
    for right, least, most in ((True, 0.6, 1), (False, 0, 0.15)):
        kinds = [KINDS[(KINDS.index(image.kind) + (not right)) % len(KINDS)] for image in held]
        assert least <= judge.judge(images, [f"Velvet Harbor {kind.title()}" for kind in kinds]).mean() <= most
    assert np.isnan(judge.judge(images[:1], ["a blue house"]))


def word_of(digit):
    from diffmem.testbeds.digits.captions import DIGIT_WORDS

    return DIGIT_WORDS[int(digit)]


def test_a_judge_that_miscounts_or_is_missing_is_named(tmp_path):
    judge = CallableAlignment(lambda images, texts: [1.0], "rule", "share")
    with pytest.raises(UsageError, match="rule gave values"):
        judge.judge([picture(0)] * 2, ["a", "b"])
    sees = ClassifierAlignment(lambda images: [1] * len(images), {"one": 1, "two": 2}.get, "toy")
    np.testing.assert_array_equal(sees.judge([picture(0)] * 3, ["one", "two", "?"]), [1, 0, np.nan])
    with pytest.raises(ModelError, match="leave text alignment out"):
        ClipAlignment(tmp_path / "no-model")


def test_clip_alignment_is_the_cosine_of_the_models_embeddings(tmp_path):
    import torch
    from tests.tiny import tiny_tokenizer
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer, size = tiny_tokenizer()
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config=shared | {"vocab_size": size, "max_position_embeddings": 16, "eos_token_id": size - 1,
                                  "bos_token_id": size - 2, "pad_token_id": size - 1},
            vision_config=shared | {"image_size": 16, "patch_size": 8}, projection_dim=8,
        )
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    judge = ClipAlignment(tmp_path)
    images, texts = [picture(i) for i in range(40)], [f"fox {i}" for i in range(40)]
    found = judge.judge(images, texts)
    assert found.shape == (40,) and np.abs(found).max() <= 1 and np.ptp(found) > 0
    np.testing.assert_allclose(judge.judge(images[35:36], texts[35:36]), found[35:36], atol=1e-5)
