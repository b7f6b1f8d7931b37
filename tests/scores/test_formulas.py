"""Each formula against brute force, and the scores' parameters."""

import numpy as np
import pytest
import torch

from diffmem.errors import ScoreRefused, UsageError
from diffmem.evaluation.text_groups import near_duplicate_groups
from diffmem.models.schedule import DiscreteSchedule
from diffmem.scores.base import PromptSet
from diffmem.scores.prompt.alignment import alignment, pair_of
from diffmem.scores.prompt.anisotropy import anisotropy
from diffmem.scores.prompt.combine import cross_fitted_weights, folds, standard_weights
from diffmem.scores.prompt.score_difference import score_difference
from diffmem.scores.prompt.text_baselines import uppercase_share
from diffmem.scores.spec import parse_score, parse_scores
from diffmem.stages.score.executor import Executor, Noises
from diffmem.testbeds.closed_form import empirical_bayes


def tensors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_score_difference_is_one_norm_per_row():
    c, u = tensors(3, 2, 4, 5), tensors(3, 2, 4, 5, seed=1)
    expected = [np.linalg.norm((c[i] - u[i]).numpy().ravel()) for i in range(3)]
    np.testing.assert_allclose(score_difference(c, u), expected)
    np.testing.assert_allclose(score_difference(c, u, order=1), (c - u).abs().flatten(1).sum(1))


def test_alignment_is_the_mean_over_pixels_of_cosines_over_channels():
    a, b = tensors(2, 3, 4, 5), tensors(2, 3, 4, 5, seed=1)
    by_pixel = [
        [
            a[i, :, y, x] @ b[i, :, y, x] / a[i, :, y, x].norm() / b[i, :, y, x].norm()
            for y in range(4)
            for x in range(5)
        ]
        for i in range(2)
    ]
    np.testing.assert_allclose(alignment(a, b, "channels"), np.mean(by_pixel, 1))
    flat = [float(a[i].flatten() @ b[i].flatten() / a[i].norm() / b[i].norm()) for i in range(2)]
    np.testing.assert_allclose(alignment(a, b, "elements"), flat)


def test_with_one_channel_the_channel_cosine_is_agreement_of_signs():
    a, b = tensors(1, 1, 6, 6), tensors(1, 1, 6, 6, seed=1)
    np.testing.assert_allclose(alignment(a, b, "channels"), [(a.sign() * b.sign()).mean()])


def test_the_three_pairs():
    c, u = tensors(1, 2, 2, 2), tensors(1, 2, 2, 2, seed=1)
    for pair, expected in {
        "unconditional-difference": (u, c - u),
        "conditional-unconditional": (c, u),
        "conditional-difference": (c, c - u),
    }.items():
        for got, want in zip(pair_of(c, u, pair), expected, strict=True):
            assert torch.equal(got, want)


def test_anisotropy_is_the_weighted_sum():
    assert anisotropy(np.array([2.0]), np.array([0.5]), (1.0, 2.0)) == [3.0]


@pytest.mark.parametrize(("name", "gamma"), [("sd-1.4", (1, 2)), ("sd-2", (1, 0.1)), ("realistic-vision-5.1", (2, 1))])
def test_the_published_weights_are_taken_by_the_name_of_their_model(name, gamma):
    """M = g1 norm + g2 cosine with the constants that the paper states for its three models."""
    model = empirical_bayes(tensors(6, 3, 2, 2), [f"c{i}" for i in range(6)])
    label = f"anisotropy-paper:weights={name}"
    (row,) = Executor(model, parse_scores([label]), Noises(model.sample_shape, 0)).run(
        ["c1"], model.encode_prompts(["c1"]), [(0, 0)]
    )
    parts = row.components[label]
    assert row.values[label] == pytest.approx(gamma[0] * parts["norm"] + gamma[1] * parts["cosine"])
    combined = parse_score(f"anisotropy:weights={name}")
    halves = {part.label: np.array([[2.0]]) * (i + 1) for i, part in enumerate(combined.component_scores())}
    values, details = combined.compute(PromptSet(["c"], [None], halves))
    assert values == pytest.approx(gamma[0] * 2 + gamma[1] * 4)
    assert details == {"weights": f"the paper's for {name}", "gamma": list(gamma)}


def test_the_released_treatment_of_v_is_followed():
    images = tensors(6, 3, 2, 2)
    captions = [f"c{i}" for i in range(6)]
    model = empirical_bayes(images, captions, prediction="v")
    executor = Executor(model, parse_scores(["anisotropy-paper"]), Noises(model.sample_shape, 0))
    (row,) = executor.run(["c1"], model.encode_prompts(["c1"]), [(0, 0)])
    x = Noises(model.sample_shape, 0).of_draw(0)[None]
    times = model.schedule.sampling_times(50)
    first, late = times[0], times[-3]
    alpha, sigma = model.schedule.at(first)
    c, u = (model.predict(x, first, m) for m in (model.encode_prompts(["c1"]), model.null()))
    # The released code takes v for x0: its "score" is (alpha v - x) / sigma^2.
    norm = float((((alpha * c - x) - (alpha * u - x)) / sigma**2).norm())
    c, u = (model.predict(x, late, m) for m in (model.encode_prompts(["c1"]), model.null()))
    cosine = float(torch.cosine_similarity(u, c - u, dim=1).mean())
    assert row.components["anisotropy-paper"] == pytest.approx({"norm": norm, "cosine": cosine}, rel=1e-4)
    assert row.values["anisotropy-paper"] == pytest.approx(norm + 2 * cosine, rel=1e-4)


def test_the_low_noise_time_is_where_sigma_over_alpha_is_a_fifth():
    moment = parse_score("alignment").settings.moment
    alpha, sigma = DiscreteSchedule.linear().at(moment.resolve(DiscreteSchedule.linear()))
    assert sigma / alpha == pytest.approx(0.2, rel=0.02)


def test_uppercase_share():
    assert uppercase_share("Ab cD 12") == 0.5
    assert uppercase_share("12 !") == 0.0
    assert uppercase_share("ÄÖ ü") == pytest.approx(2 / 3)


def test_near_duplicate_groups():
    texts = ["Shaw Floors Caress in Grey 12ft", "Shaw Floors Caress in Blue 15ft", "a red fox", "", "  ", "a red foxes"]
    groups = near_duplicate_groups(texts)
    assert groups[0] == groups[1] != groups[2]
    assert groups[3] == groups[4]
    assert near_duplicate_groups([]).shape == (0,)
    assert near_duplicate_groups(["???", "x"]).shape == (2,)


def test_groups_do_not_depend_on_blocks():
    texts = [f"{'abcdefghij'[i % 10] * 9} number {i // 10}" for i in range(1100)]
    groups = near_duplicate_groups(texts)
    assert len(np.unique(groups)) <= 10


def test_standard_weights_ignore_a_minority_of_outliers():
    values = np.random.default_rng(0).normal(5, 2, 1000)
    assert standard_weights(values) == pytest.approx(0.5, rel=0.1)
    values[:100] = 1e6
    assert standard_weights(values) == pytest.approx(0.5, rel=0.25)
    assert standard_weights(values[:19]) is None
    assert standard_weights(np.ones(50)) is None


def test_folds_keep_near_duplicates_together():
    texts = [f"product line {chr(97 + i // 4) * 8} variant {i % 4}" for i in range(80)]
    labels = np.array([(i // 4) % 2 == 0 for i in range(80)])
    groups = near_duplicate_groups(texts)
    for train, test in folds(labels, texts):
        assert not set(groups[train]) & set(groups[test])


def test_cross_fitted_weights_never_saw_what_they_score():
    rng = np.random.default_rng(1)
    texts = ["".join(rng.choice(list("abcdefghijklmnop"), 12)) for _ in range(60)]
    values = rng.normal(size=60)
    labels = [bool(v) for v in rng.integers(0, 2, 60)]
    weights = cross_fitted_weights([values], labels, texts)
    assert weights.shape == (60, 2)
    flipped = list(labels)
    flipped[0] = not flipped[0]
    # Changing one label must not change the weights that this very prompt is scored with, if its fold stays the same.
    same_fold = [i for i in range(60) if np.allclose(weights[i], weights[0])]
    other = cross_fitted_weights([values], flipped, texts)
    assert len({tuple(np.round(w, 9)) for w in other}) == 5
    assert 0 in same_fold
    with pytest.raises(ScoreRefused, match="cross-fitting needs 5"):
        cross_fitted_weights([values], [True] * 60, texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score-difference:over", "no key=value"),
        ("score-difference:over=sideways", "over = 'sideways'"),
        ("anisotropy:weights=1", "weights"),
        ("alignment:rato=1", "Did you mean 'ratio'"),
    ],
)
def test_bad_specs(text, message):
    with pytest.raises(UsageError, match=message):
        parse_score(text)


def test_labels_name_what_is_not_a_default_and_parse_back():
    for text in ("alignment:ratio=0.4,over=elements", "score-difference:over=steps,k=3", "anisotropy:weights=fitted"):
        score = parse_score(text)
        assert parse_score(score.label).parameters == score.parameters
    assert parse_score("alignment:ratio=0.2").label == "alignment"
