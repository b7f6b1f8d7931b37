"""The figures of the InvMM benchmark, from its rows."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from diffmem.evaluation.bootstrap import auroc_interval
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.testbeds import digits

REPLICATES = 2000


def summary(report):
    rows = report["rows"]
    found = {"groups": groups(rows), "trend with duplicates": {}, "separation": [], "settings": {}, "training": {}}
    for section, model in (("text", "text"), ("unconditional", "unconditional")):
        for name in (section, f"long, {section}"):
            found["trend with duplicates"][name] = trend([r for r in rows if r["section"] == name])
        found["separation"] += separations(rows, section, model)
        found["separation"] += separations(rows, f"long, {section}", model, ())
    base = {r["id"]: r for r in rows if r["section"] == "settings" and r["model"] == "guidance 2"}
    for name in dict.fromkeys(r["model"] for r in rows if r["section"] == "settings"):
        some = [r for r in rows if r["section"] == "settings" and r["model"] == name]
        found["settings"][name] = paired(some, base)
    full = {r["id"]: r for r in rows if r["section"] == "text"}
    found["beta"] = {
        name: paired(some, full) | {"trend with duplicates": trend(some)}
        for name, some in by_model(rows, "beta").items()
    }
    found["restarts"] = restarts(rows)
    for name in dict.fromkeys(r["model"] for r in rows if r["section"] == "training"):
        some = [r for r in rows if r["section"] == "training" and r["model"] == name]
        found["training"][name] = paired(some, full) | {"trend with duplicates": trend(some)}
    found["prompt words found"] = {}
    for spec, group in dict.fromkeys((r["spec"], r["group"]) for r in rows if r["section"] == "prompt"):
        some = [r for r in rows if r["section"] == "prompt" and (r["spec"], r["group"]) == (spec, group)]
        count = [sum(r[k] for r in some) for k in ("words_found", "words")]
        found["prompt words found"][f"{group} | {spec}"] = {"images": len(some), "found": count[0], "of": count[1]}
    return found


def by_model(rows, section):
    found = {}
    for row in rows:
        if row["section"] == section:
            found.setdefault(row["model"], []).append(row)
    return found


def restarts(rows):
    """One search against the best of all of the same image: statuses that differ, ratio of values, rank correlation."""
    searches = [[r for r in rows if r["section"] == "long, text"], *by_model(rows, "restarts").values()]
    by_id = {r["id"]: [{x["id"]: x for x in some}.get(r["id"]) for some in searches] for r in searches[0]}
    known = {i: some for i, some in by_id.items() if len(some) > 1 and None not in some}
    if len(known) < 3:
        return None
    values = [[np.inf if r["value"] is None else r["value"] for r in some] for some in known.values()]
    evidence = np.array([[r["evidence"] for r in some] for some in known.values()])
    both = [(min(v), max(v)) for v in values if np.isfinite(v).all() and min(v) > 0]
    return {
        "images": len(known), "searches": len(searches),
        "found_by_all": sum(bool(np.isfinite(v).all()) for v in values),
        "found_by_some": sum(bool(np.isfinite(v).any() and not np.isfinite(v).all()) for v in values),
        "found_by_none": sum(not np.isfinite(v).any() for v in values),
        "median_ratio_of_worst_to_best": float(np.median([high / low for low, high in both])) if both else None,
        "spearman_of_one_with_best": float(spearmanr(evidence[:, 0], evidence.max(1)).statistic),
    }  # fmt: skip


def groups(rows):
    """Share reached with its 95 % interval and the median refined KL of those reached, per section, model and group."""
    found = {}
    for row in rows:
        if row["spec"].startswith("invmm") and row["section"] not in ("settings", "beta", "restarts"):
            found.setdefault(f"{row['section']} | {row['model']} | {row['group']} | {row['spec']}", []).append(row)
    return {name: described(some) for name, some in found.items()}


def described(some):
    values = [r["value"] for r in some if r["value"] is not None]
    low, high = clopper_pearson(len(values), len(some))
    return {
        "images": len(some), "reached": len(values), "reached_low": low, "reached_high": high,
        "median_value_of_reached": float(np.median(values)) if values else None,
        "zero": sum(v == 0 for v in values),
        "median_worst_similarity": float(np.median([r["worst_similarity"] for r in some])),
    }  # fmt: skip


def trend(some):
    """Spearman correlation of evidence (higher = more memorized) with the number of copies; bootstrap over images."""
    pairs = np.array(
        [(int(r["group"].split()[1]) if r["group"].startswith("plant") else 1, r["evidence"])
         for r in some if r["group"].startswith("plant") or r["group"] == "hard"]
    )  # fmt: skip
    if len(pairs) < 8 or len(set(pairs[:, 0])) < 2:
        return None
    random = np.random.default_rng(0)
    resampled = (pairs[random.integers(0, len(pairs), len(pairs))] for _ in range(REPLICATES))
    drawn = [spearmanr(*some.T).statistic for some in resampled if len(set(some[:, 0])) > 1]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return {"images": len(pairs), "spearman": spearmanr(*pairs.T).statistic, "low": low, "high": high}


def separations(rows, section, model, others=("loss", "pia", "secmi")):
    """AUROC of evidence with 95 % intervals, for InvMM and the membership scores."""
    hit = memorized(model)
    specs = {r["spec"]: "invmm" for r in rows if r["section"] == section}
    specs |= {name: name for name in others}
    contrasts = {
        "memorized against other members": (lambda r: r["id"] in hit, lambda r: r["group"] in ("hard", "generic")),
        "members against non-members, de-duplicated": (
            lambda r: r["group"] == "generic", lambda r: r["group"] == "held out"
        ),
        "seen once with its caption against never seen": (
            lambda r: r["group"] == "hard", lambda r: r["group"] == "held out, unseen caption"
        ),
    }  # fmt: skip
    found = []
    for spec, name in specs.items():
        mine = [
            r for r in rows
            if r["spec"] == spec and r["model"] == model and r["section"] in (section, "membership")
            and r["evidence"] is not None
        ]  # fmt: skip
        for contrast, (positive, negative) in contrasts.items():
            some = [(r["evidence"], bool(positive(r))) for r in mine if positive(r) or negative(r)]
            count = sum(label for _, label in some)
            if min(count, len(some) - count) >= 2:
                area = auroc_interval(*zip(*some, strict=True))
                found.append(
                    {"model": model, "score": name, "spec": spec, "contrast": contrast, "positives": count,
                     "negatives": len(some) - count, "auroc": area.value, "low": area.low, "high": area.high}
                )  # fmt: skip
    return found


def memorized(model):
    """Images that the model was measured to reproduce: by their own caption, or among 8192 unconditional samples."""
    if model == "text":
        return {r["id"] for r in digits.truth("text") if r["tier"] == "plant" and r["label"] == "reproduced"}
    return {r["group"] for r in digits.truth("unconditional") if r["tier"] == "plant" and r["hits"] > 0}


def paired(some, base):
    """The same images under another setting: share reached, and in how many the evidence is higher than at the base."""
    both = [(r["evidence"], base[r["id"]]["evidence"]) for r in some if r["id"] in base]
    higher, lower = sum(a > b for a, b in both), sum(a < b for a, b in both)
    found = described(some) | {"compared": len(both), "more_memorized": higher, "less_memorized": lower}
    if higher + lower:
        low, high = clopper_pearson(higher, higher + lower)
        found |= {"share_more": higher / (higher + lower), "share_more_low": low, "share_more_high": high}
    return found
