"""Measured images for people, on stdout."""

from __future__ import annotations

from typing import Any

from diffmem.cli.output import say


def print_measures(summary: dict[str, Any], top: int = 10) -> None:
    """The measures of a run (as plain values): groups, separations, the images that the model memorizes most."""
    from diffmem.cli.output import emit_table, plain

    if not summary:
        return
    say(f"Images   {summary['headline']}")
    if summary["unusable"]:
        say(f"         {summary['unusable']} cannot be measured")
    if summary["shift"] is not None:
        say(f"Shift    {'WARNING: ' if summary['shift']['shifted'] else ''}{plain(summary['shift']['message'])}")
    for score in summary["scores"]:
        say("")
        seen = score["membership"]  # was it in the training set? That is not whether it is memorized
        means = score["high_means"].replace("memorized", "surely seen in training") if seen else score["high_means"]
        infinite = f", {score['infinite']} infinite (not found within the steps)" if score["infinite"] else ""
        errors = (
            f", {score['errors']} without a value (the first: {plain(score['reason'] or '')})"
            if score["errors"]
            else ""
        )
        say(f"{score['score']}: {score['images']} images{infinite}{errors}; unit: {plain(score['unit'])}; "
              f"a high value means {means}")  # fmt: skip
        if score["warning"]:
            say(f"WARNING  {score['warning']}")
        emit_table([_group(group) for group in score["groups"]], title="Median with its 95 % interval, and quartiles")
        for found in score["separations"]:
            say(f"  {_separation(found)}")
        if top and score["top"]:
            emit_table(
                [_image(image) for image in score["top"][:top]],
                title="Most surely seen first" if seen else "Most memorized first",
            )
        if score["cost"] is not None:
            say(f"  {_cost(score['cost'])}")


def value_text(value: float | str | None) -> str:
    """A measure in words: infinite ones too."""
    from diffmem.cli.output import number

    if value is None:
        return "-"
    return {"inf": "∞", "-inf": "-∞"}[value] if isinstance(value, str) else number(value)


def _group(group: dict[str, Any]) -> dict[str, Any]:
    low, high = (value_text(group[name]) for name in ("median_low", "median_high"))
    return {
        "group": group["name"], "images": group["images"], "median": value_text(group["median"]),
        "interval": f"{low} to {high}" if group["median_low"] is not None else "too few",
        "quartiles": f"{value_text(group['low'])} to {value_text(group['high'])}",
    }  # fmt: skip


def _separation(found: dict[str, Any]) -> str:
    interval = found["interval"]
    ends = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    p_value = "" if found["p_value"] is None else f", p = {found['p_value']:.2g}"
    note = f" ({found['note']})" if found["note"] else ""
    return (
        f"{found['positives']} ({found['n_positives']}) above {found['negatives']} ({found['n_negatives']}): AUROC "
        f"{found['auroc']:.3f}{ends}{p_value}{note}"
    )


def _image(image: dict[str, Any]) -> dict[str, Any]:
    from diffmem.cli.output import number

    return {
        "rank": image["rank"], "value": value_text(image["value"]),
        "error bar": number(image["error_bar"]) if image["error_bar"] is not None else "none",
        "times in set": image["duplicates"], "group": image["group"], "image": image["image_id"],
    }  # fmt: skip


def _cost(cost: dict[str, Any]) -> str:
    from diffmem.cli.output import duration, number

    parts = ", ".join(
        f"{number(cost[f'nfe_{kind}'])} {kind}" for kind in ("forward", "tangent", "backward") if cost[f"nfe_{kind}"]
    )
    return (
        f"per image tried {number(cost['nfe'])} network evaluations ({parts or 'none'}) and {duration(cost['seconds'])}; "
        f"all together {number(cost['nfe_total'])} in {duration(cost['seconds_total'])}, {cost['dtype']} on {cost['device']}"
    )
