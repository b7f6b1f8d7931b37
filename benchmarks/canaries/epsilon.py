"""Does the lower bound of epsilon stay below the truth? 1,000 simulations of each mechanism whose epsilon is known.

Randomized response tells each coin wrongly with probability 1 / (1 + e^epsilon); the Gaussian mechanism adds noise to one
coordinate per canary (sensitivity 1; its epsilon at delta = 1e-5 in closed form, Balle & Wang 2018). Goal: the bound lies
at or below the truth in at least 95 % of the simulations; how tight it is stands beside it. Seconds, one core.

    python benchmarks/canaries/epsilon.py
"""

from __future__ import annotations

import json
import time
from functools import lru_cache
from pathlib import Path

import numpy as np

from diffmem.evaluation import epsilon as room
from diffmem.evaluation.epsilon import DELTA, epsilon_bound, gaussian_delta, gaussian_epsilon, most_provable
from diffmem.runs.provenance import provenance

RESULT = Path(__file__).with_name("epsilon.json")
RUNS = 1000


def sigma_of(epsilon: float) -> float:
    """The noise at which the Gaussian mechanism has this epsilon at DELTA."""
    low, high = 0.05, 100.0
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if gaussian_epsilon(middle, DELTA) > epsilon else (low, middle)
    return high


def strengths(
    mechanism: str, epsilon: float, coins: np.ndarray, random: np.random.Generator, sigma: float
) -> np.ndarray:
    """What the mechanism lets out of each coin."""
    if mechanism == "randomized response":
        wrong = random.random(len(coins)) < 1 / (1 + np.exp(epsilon))
        return (coins ^ wrong).astype(float)
    return coins + sigma * random.standard_normal(len(coins))


def main() -> None:
    """Every mechanism, epsilon and number of canaries."""
    room.lower_bound = lru_cache(None)(room.lower_bound)  # few different counts come up
    started, rows = time.perf_counter(), []
    for mechanism in ("randomized response", "gaussian"):
        delta = DELTA if mechanism == "gaussian" else 0.0
        for epsilon in (0.5, 1.0, 2.0, 4.0):
            sigma = sigma_of(epsilon) if mechanism == "gaussian" else 0.0
            assert mechanism != "gaussian" or gaussian_delta(epsilon, sigma) <= DELTA * 1.001
            for m in (50, 200, 1000):
                random = np.random.default_rng([int(epsilon * 10), m, len(mechanism)])
                bounds = []
                for _ in range(RUNS):
                    coins = random.random(m) < 0.5
                    values = strengths(mechanism, epsilon, coins, random, sigma)
                    bounds.append(epsilon_bound(values, coins, delta=delta).epsilon)
                rows.append({
                    "mechanism": mechanism, "epsilon": epsilon, "delta": delta, "canaries": m, "runs": RUNS,
                    "at_or_below": float(np.mean(np.array(bounds) <= epsilon)), "median_bound": float(np.median(bounds)),
                    "at_most": most_provable(m, 0.05 / len(room.SHARES), delta),
                })  # fmt: skip
                print(rows[-1], flush=True)
    result = {
        "rows": rows,
        "seconds": time.perf_counter() - started,
        "provenance": provenance().model_dump(mode="json"),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
