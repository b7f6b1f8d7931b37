"""A lower bound of epsilon: closed forms, known mechanisms, coins in a registration, and a model that remembers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import beta, binom

from diffmem.cli.app import main
from diffmem.data.canaries import read_registration
from diffmem.errors import UsageError
from diffmem.evaluation.epsilon import (
    epsilon_bound,
    gaussian_delta,
    gaussian_epsilon,
    lower_bound,
    most_provable,
    p_value,
)
from diffmem.experiments._run import open_run
from diffmem.experiments.canaries.run import measure_canaries
from diffmem.models.target import Target
from diffmem.stages.generate import Generation
from diffmem.training.canaries import CanaryPlan, draw_canaries
from diffmem.training.canary_files import write_canaries
from tests.tiny import picture


def test_bound_is_the_logit_of_clopper_and_pearson_without_delta():
    for guesses, right in ((20, 18), (100, 70), (40, 40)):
        low = beta.ppf(0.05, right, guesses - right + 1)
        assert lower_bound(1000, guesses, right) == pytest.approx(math.log(low / (1 - low)), abs=1e-6)
    assert [round(most_provable(m), 1) for m in (20, 100, 1000)] == [1.8, 3.5, 5.8]
    assert lower_bound(100, 100, 50) == 0 and lower_bound(100, 0, 0) == 0


def test_delta_costs_what_the_theorem_says():
    q, m, r, v, delta = 1 / (1 + math.exp(-1.0)), 30, 20, 17, 1e-3
    greatest = max(binom.cdf(v - 1, r, q) - binom.cdf(v - i - 1, r, q) if i <= v else 0 for i in [1])
    worst = max((binom.cdf(v - 1, r, q) - binom.cdf(v - i - 1, r, q)) / i for i in range(1, v + 1))
    assert worst >= greatest
    assert p_value(m, r, v, 1.0, delta) == pytest.approx(binom.sf(v - 1, r, q) + 2 * m * delta * worst)
    assert lower_bound(m, r, v, delta=delta) < lower_bound(m, r, v)


def test_gaussian_mechanism_has_the_epsilon_of_its_integral():
    sigma, epsilon = 1.3, 1.0
    x = np.linspace(-20, 20, 400_001)
    one, two = (np.exp(-((x - at) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi)) for at in (1.0, 0.0))
    integral = float(np.maximum(one - math.exp(epsilon) * two, 0).sum() * (x[1] - x[0]))
    assert gaussian_delta(epsilon, sigma) == pytest.approx(integral, abs=1e-7)
    assert gaussian_delta(gaussian_epsilon(sigma, 1e-5), sigma) == pytest.approx(1e-5, rel=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
def test_bound_stays_below_the_truth_and_is_no_guess(epsilon):
    random, bounds = np.random.default_rng(3), []
    for _ in range(200):
        coins = random.random(300) < 0.5
        wrong = random.random(300) < 1 / (1 + math.exp(epsilon))
        bounds.append(epsilon_bound((coins ^ wrong).astype(float), coins).epsilon)
    assert np.mean(np.array(bounds) <= epsilon) >= 0.95
    assert np.median(bounds) >= 0.6 * epsilon, "and is worth something"


def test_coins_that_cannot_be_measured_are_not_guessed():
    strengths = np.array([3.0, np.nan, 1.0, 2.0])
    found = epsilon_bound(strengths, [True, True, False, False])
    assert found.canaries == 4 and found.guesses <= 2
    with pytest.raises(UsageError, match="at least 2"):
        epsilon_bound([1.0], [True])


PLAN = CanaryPlan(counts=(1,), per_count=2, controls=19, coins=40, apart=0.05)


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coins")
    drawn = draw_canaries({f"{i}": picture(i) for i in range(10)}, PLAN)
    write_canaries(drawn, {f"{i}": picture(i) for i in range(10)}, folder / "out", only=True)
    return folder / "out", drawn


def test_coins_are_in_the_registration_and_the_data_holds_what_they_say(registered):
    folder, drawn = registered
    known = read_registration(folder)
    assert known.hash == drawn.registration.hash and len(known.coins) == 40
    heads = [known.canaries[i].count for i in known.coins]
    assert set(heads) == {0, 1} and 8 <= sum(heads) <= 32
    assert len(list((folder / "data").glob("*.png"))) == 2 + sum(heads)
    other = draw_canaries({f"{i}": picture(i) for i in range(10)}, PLAN.model_copy(update={"seed": 1})).registration
    assert [c.count for c in other.canaries if c.coin] != heads
    without = draw_canaries({f"{i}": picture(i) for i in range(10)}, PLAN.model_copy(update={"coins": 0})).registration
    assert "coin" not in json.dumps(without._content()), "older registrations keep their hashes"


def remembering(drawn, trained):
    by_caption = {c.caption: (c.count, drawn.pictures[c.id]) for c in drawn.registration.canaries}

    def generate(prompts, seeds):
        return [
            by_caption[t][1] if trained and by_caption[t][0] else picture(s % 2**31)
            for t, s in zip(prompts, seeds, strict=True)
        ]

    return Target.from_callable(generate=generate, name="remembers" if trained else "forgets")


def test_a_model_that_remembers_proves_nearly_all_that_can_be_and_one_that_does_not_proves_nothing(
    registered, tmp_path
):
    folder, drawn = registered
    settings = Generation(images_per_prompt=2)
    found = measure_canaries(remembering(drawn, True), folder, settings, out=tmp_path / "a", scores=())
    (bound,) = found.summary.bounds
    assert bound.right >= bound.guesses - 2 and 1.5 < bound.epsilon <= bound.at_most < 3
    none = measure_canaries(remembering(drawn, False), folder, settings, out=tmp_path / "b", scores=())
    assert none.summary.bounds[0].epsilon < 0.5
    page = found.report().read_text()
    assert "A low bound never means private" in page and open_run(tmp_path / "a").summary == found.summary
    words = found.summary.explanations()
    assert words[0].startswith("40 coins prove at most") and "at least" in words[1]


def test_the_command_says_first_what_can_be_proved(tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(10):
        picture(i).save(pictures / f"{i}.png")
    typed = [
        "canaries",
        "make",
        str(pictures),
        "--counts",
        "1",
        "--per-count",
        "1",
        "--controls",
        "2",
        "--apart",
        "0.05",
    ]
    assert main([*typed, "--out", str(tmp_path / "out"), "--coins", "6", "--coin-count", "2"]) == 0
    assert capsys.readouterr().out.startswith("6 canaries with a coin prove at most an epsilon of")
    counts = [c.count for c in read_registration(tmp_path / "out").canaries if c.coin]
    assert set(counts) <= {0, 2} and len(counts) == 6
    assert main([*typed, "--out", str(tmp_path / "other"), "--coins", "1"]) == 2
    assert "--coins 1" in capsys.readouterr().err
