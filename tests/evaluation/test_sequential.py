"""Early exit: error rates in simulation, agreement with all draws, and what it saves."""

import numpy as np
import pytest

from diffmem.errors import UsageError
from diffmem.evaluation.calibration import Setting, calibrate_threshold
from diffmem.evaluation.sequential import SequentialRule, calibrate_sequential
from diffmem.evaluation.simulation import Simulation


def rule_of(values, fpr=0.05, early_misses=0.05, **options):
    setting = Setting(score="s", version="1", draws=np.shape(values)[1], noise="common", model="m")
    return calibrate_sequential(values, fpr, early_misses, setting, "simulated", "-", **options)


def prompts(simulation, random, reference=400):
    values, labels, _ = simulation.draw(random)
    return values[~labels][:reference], values[~labels][reference:], values[labels]


@pytest.mark.parametrize(("fpr", "draws"), [(0.01, 4), (0.05, 4), (0.05, 8)])
def test_error_rates_and_saving(fpr, draws):
    random = np.random.default_rng(0)
    simulation = Simulation(700, 0.99, draws=draws, own_noise=1.0)
    alarms, missed, saved, agreement = [], [], [], []
    for i in range(150):
        known, negatives, positives = prompts(simulation, random)
        rule = rule_of(known, fpr, seed=i, date="-")
        decided = rule.decide(negatives)
        alarms.append(decided.flagged.mean())
        final = negatives.mean(1) >= rule.upper[-1]
        missed.append((~decided.flagged & (decided.draws < draws) & final).mean())
        saved.append(decided.saved)
        full = calibrate_threshold(known.mean(1), fpr, Setting(score="s", version="1", draws=draws, noise="-",
                                   model="m"), "-", "-", date="-")  # fmt: skip
        agreement.append((rule.decide(positives).flagged == full.flags(positives.mean(1))).mean())
    assert np.mean(alarms) <= fpr + 3 * np.std(alarms) / np.sqrt(150)
    assert np.mean(alarms) > 0.5 * fpr  # the bound is used, not wasted
    assert np.mean(missed) <= 0.05 * 1.1
    assert np.mean(saved) > 0.4
    assert np.mean(agreement) > 0.85


def test_step_by_step_is_the_same_as_all_at_once():
    random = np.random.default_rng(1)
    known, negatives, positives = prompts(Simulation(500, 0.95, draws=5), random)
    rule = rule_of(known)
    values = np.concatenate([negatives, positives])[::7]
    decided = rule.decide(values)
    for row, flagged, used in zip(values, decided.flagged, decided.draws, strict=True):
        verdicts = [rule.step(row[:k]) for k in range(1, 6)]
        first = next(k for k, verdict in enumerate(verdicts, 1) if verdict != "undecided")
        assert (verdicts[first - 1], first) == ("flag" if flagged else "pass", used)
    assert decided.saved == pytest.approx(1 - decided.draws.mean() / 5)
    assert SequentialRule.model_validate_json(rule.model_dump_json()) == rule


def test_draws_that_say_the_same_are_needed_once_and_one_draw_saves_nothing():
    random = np.random.default_rng(0)
    prompt = random.standard_normal((400, 1))
    rule = rule_of(prompt + 1e-6 * random.standard_normal((400, 4)))
    decided = rule.decide(random.standard_normal((300, 1)) + np.zeros(4))
    # Only prompts between the stricter first boundary and the last one have to wait.
    assert decided.draws.mean() < 1.3
    assert rule_of(prompt).decide(prompt).saved == 0


def test_wrong_arguments():
    values = np.random.default_rng(0).standard_normal((200, 3))
    with pytest.raises(UsageError, match="200 reference prompts; these rates take at least 1998"):
        rule_of(values, 0.001)
    with pytest.raises(UsageError, match="expected numbers between 0 and 1"):
        rule_of(values, 0.0)
    with pytest.raises(UsageError, match="do not vary"):
        rule_of(np.ones((200, 3)))
    rule = rule_of(values)
    with pytest.raises(UsageError, match="3 draws"):
        rule.decide(values[:, :2])
    with pytest.raises(UsageError, match="1 to 3"):
        rule.step(np.zeros(4))
