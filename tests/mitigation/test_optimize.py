"""Descent on a quadratic, whose steps are known."""

import math

import pytest
import torch

from diffmem.mitigation.optimize import descend


def quadratic(weights):
    def loss(values, rows):
        measure = (weights * values["a"] ** 2).sum(1)
        return measure, measure

    return loss


START = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
FLAT = torch.tensor([1.0, 1.0])


def run(**more):
    given = {"lr": 0.1, "steps": 3, "target": 0.0, "along": "gradient"} | more
    return descend({"a": START}, quadratic(given.pop("weights", FLAT)), **given)


def test_steps_along_the_gradient_have_the_length_of_adamws_first():
    end = run()
    # Towards the origin, lr sqrt(2) per step, the direction kept.
    assert end.values["a"][0] == pytest.approx((START[0] * (1 - 3 * 0.1 * math.sqrt(2) / 5)).numpy(), abs=1e-6)
    adam = descend({"a": START}, quadratic(FLAT), lr=0.1, steps=1, target=0.0, weight_decay=0.0)
    assert float((adam.values["a"][0] - START[0]).norm()) == pytest.approx(0.1 * math.sqrt(2), rel=1e-5)


def test_what_does_not_matter_to_the_loss_stays_along_the_gradient_but_not_with_adamw():
    nearly = torch.tensor([1.0, 1e-4])
    moved = (run(weights=nearly).values["a"][0] - START[0]).abs()
    adam = (run(weights=nearly, along="adamw").values["a"][0] - START[0]).abs()
    assert moved[1] < 1e-3 * moved[0]
    assert adam[1] > 0.9 * adam[0]


def test_samples_stop_at_their_own_target_and_frozen_places_stay():
    end = run(target=0.9, steps=20, frozen={"a": torch.tensor([[False, True]])})
    assert end.values["a"][:, 1].tolist() == START[:, 1].tolist()
    assert end.reached.tolist() == [False, True]  # 4^2 stays in the first
    alone = descend(
        {"a": START[1:]}, quadratic(FLAT), lr=0.1, steps=20, target=0.9, along="gradient",
        frozen={"a": torch.tensor([[False, True]])},
    )  # fmt: skip
    assert alone.values["a"][0].tolist() == end.values["a"][1].tolist()


def test_without_a_gradient_nothing_moves():
    end = run(weights=torch.zeros(2), target=-1.0)
    assert end.values["a"].tolist() == START.tolist()
