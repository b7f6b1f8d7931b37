"""The model card of a training run: everything that was set, in words that a reader can check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffmem.training.plan import TrainPlan


def model_card(plan: TrainPlan, log: Mapping[str, Any], base: str) -> str:
    """Markdown: base model, data, what repeats, which mitigations, every setting, losses, versions."""
    losses = log["loss"]
    few = max(1, min(50, len(losses) // 2))  # the beginning and the end of a short run do not overlap
    first, last = (sum(part) / max(1, len(part)) for part in (losses[:few], losses[-few:]))
    repeats = (
        "no image repeats"
        if plan.duplication.regime == "nodup"
        else f"{plan.duplication.share:.1%} of the images repeat {plan.duplication.weight:g} times ({plan.duplication.regime})"
    )
    changed = plan.changes.model_dump(exclude_defaults=True)
    lines = [
        f"# {base}, trained with diffmem",
        "",
        f"- Method: {plan.model.method}, text encoder {plan.model.text_encoder}, {log['parameters']:,} parameters trained.",
        f"- Data: {log['images']} images, content hash {log['data']}; captions: {plan.data.captions}; {repeats}.",
        f"- Mitigations: {', '.join(f'{k} = {v}' for k, v in changed.items()) or 'none'}.",
        f"- {log['steps']} steps of {plan.optimizer.batch} samples, {log['seconds']:.0f} s on {log['device']} with "
        f"{log['processes']} process(es); mean loss of the first {few} steps {first:.4f}, of the last {few} {last:.4f}.",
    ]
    if plan.changes.drop_score_difference is not None:
        lines.append(f"- {log['left_out']} samples were left out of the loss for their score difference.")
    if (canaries := log.get("canaries")) is not None:
        lines.append(
            f"- Image canaries: {len(canaries['counts'])} of registration {canaries['registration']}, made {canaries['created']}."
        )
    lines += [f"- {note}" for note in log["notes"]]
    lines += ["", "## Every setting", "", "| setting | value |", "|---|---|"]
    for section, values in plan.model_dump().items():
        settings = values if isinstance(values, dict) else {"": values}
        lines += [f"| {section}{'.' if key else ''}{key} | {value} |" for key, value in settings.items()]
    versions = log["provenance"]["packages"]
    lines += ["", "## Versions", "", ", ".join(f"{name} {version}" for name, version in versions.items() if version)]
    return "\n".join(lines) + "\n"
