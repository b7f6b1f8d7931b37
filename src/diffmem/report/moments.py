"""Where on a model's noise scale the scores look, by kind of schedule: asked of the schedules themselves."""

from __future__ import annotations

from typing import Any

from diffmem.models.families._schedulers import schedule_of
from diffmem.scores.prompt.needs import NoiseRatio, SamplerStep

NOTES = (
    "t_hi is the sampler's first step (of 50), t_lo the time whose sigma/alpha is closest to .2: on a flow schedule "
    "s/(1 - s) = .2, so s = 1/6, whatever the shift of its sampling times.",
    "Norms are taken in the network's own output (epsilon, v or the velocity u = epsilon - x0), which is finite where "
    "alpha = 0. At one time the differences of all parameterisations are proportional (those of v and of u are 1/alpha "
    "times that of epsilon), so the choice cannot change the order of prompts there; at alpha = 0 that of epsilon is "
    "exactly 0 and only the own output ranks at all. Means over several steps do depend on it.",
    "Cosines are taken in epsilon at t_lo, where alpha is about .98 (.83 on flow schedules) and every conversion exists.",
)


def moments() -> list[dict[str, Any]]:
    """One row per kind of schedule: {"schedule", "t_hi", "alpha at t_hi", "sigma/alpha at t_hi", "t_lo", ...}.

    sigma/alpha is None where alpha = 0. Times are in the schedule's units.
    """
    rows = []
    for name, scheduler in _examples().items():
        schedule = schedule_of(scheduler)
        row: dict[str, Any] = {"schedule": name}
        for label, moment in (("t_hi", SamplerStep(0)), ("t_lo", NoiseRatio(0.2))):
            t = moment.resolve(schedule)
            alpha, sigma = schedule.at(t)
            row |= {label: round(t, 1), f"alpha at {label}": round(alpha, 4)}
            row[f"sigma/alpha at {label}"] = round(sigma / alpha, 3) if alpha > 0 else None
        rows.append(row)
    return rows


def moments_markdown() -> str:
    """The table and its notes as Markdown."""
    rows = moments()
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join("infinite" if v is None else str(v) for v in row.values()) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in NOTES)])


def _examples() -> dict[str, Any]:
    """Schedulers as well-known models configure them; the model under audit is always asked for its own."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    stable: dict[str, Any] = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    }  # fmt: skip
    zero: dict[str, Any] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return {
        "DDPM, linear betas (the digits testbed)": DDIMScheduler(beta_start=1e-4, beta_end=0.02, steps_offset=1),
        "Stable Diffusion 1.x and 2.x, SDXL": DDIMScheduler(**stable),
        "the same with zero terminal SNR (v)": DDIMScheduler(**stable, **zero, prediction_type="v_prediction"),
        "flow matching (SD3: shift 3)": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "DPM-Solver on flow sigmas (the flow digits)": DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=1
        ),
    }
