"""One digest of a run: everything that is shown of it, from its rows and facts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from diffmem.copies.calibration import clopper_pearson
from diffmem.report.scores import per_prompt
from diffmem.runs.facts import read_fact
from diffmem.runs.manifest import read_manifest
from diffmem.runs.store import RunStore

TOP = 20
STATISTICS = {"similarity": "similarity", "ratio": "d1/d2", "normalised": "normalised distance"}
"""How the statistic of a match is called where people read it; for the two distances lower is more alike."""


def summarize(path: str | Path) -> dict[str, Any]:
    """The digest of a run directory.

    Returns:
        {"run", "created", "model", "check", "stages", "prompts", "scores", "images", "agreement", "copies", "limits"};
        a part that was not run is None.
    """
    folder = Path(path)
    manifest, store = read_manifest(folder), RunStore(folder)
    prompts = {row["prompt_id"]: row for row in store.read("prompts").to_pylist()}
    scores = per_prompt(store)
    images = _images(store)
    copies = _copies(folder, store, prompts, images)
    return {
        "run": str(folder),
        "created": manifest.created,
        "diffmem": manifest.diffmem_version,
        "model": read_fact(folder, "model") or {"fingerprint": manifest.fingerprints.get("model")},
        "check": read_fact(folder, "check"),
        "plan": manifest.plan,
        "stages": {name: stage.model_dump() for name, stage in manifest.stages.items()},
        "prompts": {
            "total": len(prompts),
            "labelled": sum(row["label"] is not None for row in prompts.values()),
            "truncated": sum('"truncated"' in (row["extra"] or "") for row in prompts.values()),
        },
        "scores": [_score(label, entries, prompts) for label, entries in scores.items()],
        "images": None if images is None else {key: images[key] for key in ("made", "errors", "degenerate")},
        "copies": copies,
        "limits": _limits(copies, images),
    }


def _score(label: str, entries: dict[str, dict[str, Any]], prompts: dict[str, Any]) -> dict[str, Any]:
    values = {p: e["value"] for p, e in entries.items() if e["status"] == "ok"}
    ranked = sorted(values, key=lambda p: values[p], reverse=True)
    spread = np.quantile(list(values.values()), [0.05, 0.5, 0.95]).tolist() if values else [None] * 3
    problems = [e["error"] for e in entries.values() if e["status"] != "ok"]
    return {
        "score": label, "prompts": len(values), "errors": sum(e["status"] == "error" for e in entries.values()),
        "skipped": sum(e["status"] == "skipped" for e in entries.values()),
        "reason": problems[0] if problems else None,
        "p05": spread[0], "median": spread[1], "p95": spread[2], "calibrated": False,
        "top": [{"prompt_id": p, "prompt": prompts[p]["text"] if p in prompts else None, "value": values[p],
                 "sd": entries[p]["sd"]} for p in ranked[:TOP]],
    }  # fmt: skip


def _images(store: RunStore) -> dict[str, Any] | None:
    rows = store.read("images", ["key", "prompt_id", "draw", "degenerate", "status"]).to_pylist()
    if not rows:
        return None
    sound = [r for r in rows if r["status"] == "ok"]
    return {
        "made": len(sound), "errors": len(rows) - len(sound),
        "degenerate": sum(r["degenerate"] is not None for r in sound), "rows": rows,
    }  # fmt: skip


def copy_rows(folder: Path, store: RunStore) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The threshold and the nearest match of every image, each with "statistic" (higher = more alike) and "copy"."""
    fact = read_fact(folder, "copies")
    if fact is None or fact["threshold"] is None:
        return None, []
    threshold = fact["threshold"]
    rows = [row for row in store.read("matches").to_pylist() if row["status"] == "ok" and row["rank"] == 1]
    for row in rows:
        value = row["similarity"] if threshold["statistic"] == "similarity" else row[threshold["statistic"]]
        sign = 1.0 if threshold["statistic"] == "similarity" else -1.0
        row["statistic"] = None if value is None else sign * value
        row["copy"] = row["statistic"] is not None and row["statistic"] >= threshold["value"]
    return fact, rows


def _copies(
    folder: Path, store: RunStore, prompts: dict[str, Any], images: dict[str, Any] | None
) -> dict[str, Any] | None:
    fact, rows = copy_rows(folder, store)
    if fact is None or images is None:
        return None
    judged: dict[str, bool] = {}
    for row in rows:
        judged[row["prompt_id"]] = judged.get(row["prompt_id"], False) or row["copy"]
    labels = {p: prompts[p]["label"] for p in judged if p in prompts}
    planted = [p for p, label in labels.items() if label is True]
    negatives = [p for p, label in labels.items() if label is False]
    false = sum(judged[p] for p in negatives)
    threshold = fact["threshold"]
    copied = sum(judged.values())
    return {
        "descriptor": fact["descriptor"]["name"], "misses": fact["descriptor"].get("misses"),
        "searched": fact["descriptor"]["images"], "unreadable": len(fact["problems"]),
        "threshold": threshold, "calibrated": threshold["calibrated"], "nominal_fpr": threshold["nominal_fpr"],
        "images_matched": len(rows), "images_copied": sum(row["copy"] for row in rows),
        "prompts_matched": len(judged), "prompts_copied": copied,
        "prompts_copied_interval": list(clopper_pearson(copied, len(judged))) if judged else None,
        "training_images_copied": len({row["group"] for row in rows if row["copy"]}),
        "planted": len(planted), "found": sum(judged[p] for p in planted),
        "negatives": len(negatives), "false": false,
        "realised_fpr": false / len(negatives) if negatives else None,
        "realised_fpr_interval": list(clopper_pearson(false, len(negatives))) if negatives else None,
        "unlabelled": len(judged) - len(planted) - len(negatives),
        "unlabelled_copied": copied - false - sum(judged[p] for p in planted),
    }  # fmt: skip


def _limits(copies: dict[str, Any] | None, images: dict[str, Any] | None) -> list[str]:
    said = ["Scores rank the prompts of one model; without a calibration on reference prompts they are no verdict."]
    if images is None:
        said.append("No images were generated: whether a training image is copied was not looked at.")
    elif copies is None:
        said.append(
            "No training set was searched: agreement between seeds hints at memorization, but which image is copied, "
            "and whether any is, cannot be known."
        )
    else:
        said.append(
            f"Copies were searched among {copies['searched']} training images with {copies['descriptor']}, which misses "
            f"{copies['misses']}. Images that are not among these cannot be found."
        )
        if not copies["calibrated"]:
            said.append("The threshold of a copy is uncalibrated: its false-positive rate is unknown.")
        said.append("That no copy was found from a prompt does not show that there is none: few seeds were tried.")
    return said
