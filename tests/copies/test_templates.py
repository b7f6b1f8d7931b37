import numpy as np
import pytest

from diffmem.copies.calibration import calibrate
from diffmem.copies.descriptors.l2 import L2Tiled
from diffmem.copies.duplicates import Template, near_duplicates
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.copies.metrics import Metric
from diffmem.copies.statistics import DISTANCES, neighbourhood
from diffmem.copies.templates import background_distances, with_templates
from diffmem.copies.vectors import Vectors


def variants(rng, background, n, pixels):
    """Copies of a background [D] with some of its pixels replaced."""
    made = np.repeat(background[None], n, 0)
    made[:, pixels] = rng.uniform(size=(n, len(pixels)))
    return made


def planted(seed=0, n=200, templates=3, each=12):
    rng = np.random.default_rng(seed)
    backgrounds = rng.uniform(size=(templates, 64))
    sets = [variants(rng, b, each, np.arange(i, i + 8)) for i, b in enumerate(backgrounds)]
    vectors = np.concatenate([rng.uniform(size=(n, 64)), *sets]).astype(np.float32)
    order = rng.permutation(len(vectors))
    return rng, vectors[order], backgrounds, np.argsort(order)[n:].reshape(templates, each)


def grouped(vectors, metric=Metric("tiled-rms"), cut=0.95):
    return with_templates(Vectors([vectors], vectors.shape[1]), metric, near_duplicates(vectors, metric, cut))


def test_variants_become_one_group_with_their_background():
    _, vectors, backgrounds, members = planted()
    groups = grouped(vectors)
    assert groups.count == 203 and len(groups.templates) == 3
    assert groups.size.tolist() == np.bincount(groups.group).tolist()
    assert np.array_equal(groups.group[groups.first], np.arange(203))
    assert groups.first.tolist() == sorted(groups.first.tolist())
    for i, rows in enumerate(members):
        (name,) = set(groups.group[rows])
        assert groups.size[name] == 12
        template = next(t for t in groups.templates if t.group == name)
        assert np.flatnonzero(~template.mask).tolist() == list(range(i, i + 8))
        np.testing.assert_allclose(template.mean[template.mask], backgrounds[i][template.mask], atol=1e-6)


def test_storage_noise_does_not_hide_a_template():
    rng, vectors, _, members = planted()
    noisy = (np.rint(vectors * 255 + rng.uniform(-1.5, 1.5, vectors.shape)) / 255).astype(np.float32)
    groups = grouped(noisy)
    assert [len(set(groups.group[rows])) for rows in members] == [1, 1, 1] and groups.count == 203


def test_images_without_a_shared_background_are_left_alone():
    vectors = np.random.default_rng(0).uniform(size=(100, 64)).astype(np.float32)
    before = near_duplicates(vectors, "tiled-rms", 0.95)
    assert with_templates(Vectors([vectors], 64), Metric("tiled-rms"), before) is before
    cosine = near_duplicates(vectors, "cosine", 0.99)
    assert with_templates(Vectors([vectors], 64), Metric("cosine"), cosine) is cosine


def test_a_plain_margin_is_no_template():
    rng = np.random.default_rng(0)
    white = variants(rng, np.ones(64), 60, np.arange(8))  # different objects on white
    others = rng.uniform(size=(40, 64))
    groups = grouped(np.concatenate([white, others]).astype(np.float32))
    assert groups.templates == () and groups.count == 100


def test_a_frame_that_many_other_images_have_is_no_template():
    rng = np.random.default_rng(0)
    frame = np.where(np.arange(64) % 2, 0.9, 0.1)
    close = variants(rng, frame, 10, np.arange(8))
    # The same frame, but with noise beyond the template cut and within the near-duplicate distance.
    alike = variants(rng, frame, 60, np.arange(8)) + rng.normal(0, 0.03, (60, 64))
    groups = grouped(np.concatenate([close, alike, rng.uniform(size=(40, 64))]).astype(np.float32))
    assert groups.templates == ()


def test_background_distance_is_the_worst_tiles_rms_on_shared_pixels():
    rng = np.random.default_rng(0)
    metric = Metric("tiled-rms", 4)
    mean, query = rng.uniform(size=(2, 64)).astype(np.float32)
    mask = rng.random(64) < 0.7
    mask[16:32] = False
    mask[16:19] = True  # three of 16 pixels: too few for a tile to count
    template = Template(0, mean, mask)
    expected = max(
        np.sqrt(np.square(query[a:b][mask[a:b]].astype(float) - mean[a:b][mask[a:b]]).mean())
        for a, b in ((0, 16), (32, 48), (48, 64))
    )
    assert background_distances(query[None], metric, (template,))[0, 0] == pytest.approx(expected, abs=1e-12)


def test_matches_name_the_nearest_variant_and_say_what_was_compared():
    rng, vectors, backgrounds, members = planted()
    index = CopyIndex.from_vectors(vectors, L2Tiled.of(side=8, channels=1))
    new = variants(rng, backgrounds[1], 1, np.arange(1, 9)) + rng.normal(0, 0.01, (1, 64))
    first, second = match(new, index, k=2)
    assert first.background and first.row in members[1] and first.group_size == 12
    whole = np.sqrt(np.square(vectors[members[1]] - new).mean(1))
    assert first.row == members[1][whole.argmin()]
    assert first.distance == pytest.approx(0.01, abs=0.004) and first.distance < whole.min() / 3
    assert (
        not second.background and first.ratio == pytest.approx(first.distance / second.distance) and first.ratio < 0.1
    )
    exact = match(vectors[members[1][5:6]], index)[0]
    assert exact.row == members[1][5] and exact.similarity == 1 and not exact.background
    plain = match(vectors[:1] if 0 not in members else vectors[members.max() :][1:2], index)[0]
    assert not plain.background


def test_neighbours_stay_sorted_distinct_and_complete():
    rng, vectors, backgrounds, _ = planted()
    index = CopyIndex.from_vectors(vectors, L2Tiled.of(side=8, channels=1))
    groups = index.duplicates()
    queries = np.concatenate([rng.uniform(size=(20, 64)), backgrounds, vectors[:20]])
    for nearest in (2, 7, 203, 210):
        found = neighbourhood(queries, index, nearest=nearest)
        n = min(nearest, 203)
        assert (found.row[:, :n] >= 0).all() and (found.row[:, n:] == -1).all()
        assert (np.diff(found.similarity[:, :n]) <= 0).all()
        assert all(len(set(groups.group[row])) == n for row in found.row[:, :n])
        assert not found.background[:, n:].any()


def test_own_template_is_excluded():
    _, vectors, _, members = planted()
    index = CopyIndex.from_vectors(vectors, L2Tiled.of(side=8, channels=1))
    groups = index.duplicates()
    own = groups.group[members[0]]
    found = neighbourhood(vectors[members[0]], index, groups, exclude=own)
    assert (groups.group[found.row[:, 0]] != own).all() and found.distance[:, 0].min() > 0.1


@pytest.mark.parametrize("statistic", DISTANCES)
@pytest.mark.parametrize("held_out", [False, True])
def test_new_variants_are_found_at_the_stated_rate(statistic, held_out):
    found, false = [], []
    for seed in range(6):
        rng, vectors, backgrounds, _ = planted(seed, n=400)
        index = CopyIndex.from_vectors(vectors, L2Tiled.of(side=8, channels=1))
        threshold = calibrate(index, rng.uniform(size=(300, 64)) if held_out else None, 0.02, statistic=statistic)
        new = np.concatenate([variants(rng, b, 20, np.arange(i, i + 8)) for i, b in enumerate(backgrounds)])
        noisy = new + rng.normal(0, 0.05, new.shape)
        found.append(threshold.flags(neighbourhood(noisy, index).oriented(statistic)).mean())
        fresh = rng.uniform(size=(500, 64))
        false.append(threshold.flags(neighbourhood(fresh, index).oriented(statistic)).mean())
    assert np.mean(found) > 0.95
    assert 0.005 < np.mean(false) < 0.03
