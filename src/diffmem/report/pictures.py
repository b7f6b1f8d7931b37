"""The pictures of a run: which pairs are shown, and where they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffmem.copies.index import CopyIndex
from diffmem.data.png import decode_png
from diffmem.errors import DataError
from diffmem.report.gallery import Pair, draw_pairs
from diffmem.report.summary import STATISTICS, copy_rows
from diffmem.runs.store import RunStore

MOST = 25


def write_pictures(folder: Path) -> list[Path]:
    """Write sheets of pairs into `pictures/` of a run: copies found, and with labels the false and the missed ones.

    Each training image is shown once per sheet, in its most similar pair.
    """
    store = RunStore(folder)
    fact, rows = copy_rows(folder, store)
    if fact is None:
        return []
    prompts = {row["prompt_id"]: row for row in store.read("prompts").to_pylist()}
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["statistic"] is not None and (
            row["prompt_id"] not in best or row["statistic"] > best[row["prompt_id"]]["statistic"]
        ):
            best[row["prompt_id"]] = row
    labels = {p: prompts[p]["label"] for p in best if p in prompts}
    labelled = any(label is not None for label in labels.values())
    sheets = {
        "copies": (
            "Called a copy",
            [r for p, r in best.items() if r["copy"] and not (labelled and labels.get(p) is False)],
        ),
    }
    if labelled:
        sheets["false"] = ("Called a copy, but measured as not reproduced",
                           [r for p, r in best.items() if r["copy"] and labels.get(p) is False])  # fmt: skip
        sheets["missed"] = ("Measured as reproduced, but not called a copy",
                            [r for p, r in best.items() if not r["copy"] and labels.get(p) is True])  # fmt: skip
    index = _open_index(folder, fact)
    written = []
    for name, (heading, chosen) in sheets.items():
        shown = _distinct(sorted(chosen, key=lambda r: r["statistic"], reverse=True))
        path = folder / "pictures" / f"{name}.png"
        if not shown:
            path.unlink(missing_ok=True)
            continue
        path.parent.mkdir(exist_ok=True)
        kind = STATISTICS[fact["threshold"]["statistic"]]
        text = f"{heading}: {len(chosen)} prompts, {len(shown)} shown"
        text += f" (left: generated, right: nearest training image, its id and {kind})"
        pngs = _generated(store, {row["image_key"] for row in shown})
        draw_pairs([_pair(row, prompts, pngs, index) for row in shown], text).save(path)
        written.append(path)
    return written


def _distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: dict[str, dict[str, Any]] = {}
    for row in rows:
        seen.setdefault(row["group"], row)
    return list(seen.values())[:MOST]


def _open_index(folder: Path, fact: dict[str, Any]) -> CopyIndex | None:
    try:
        return CopyIndex.load(folder / "index" / fact["descriptor"]["name"])
    except DataError:
        return None


def _pair(row: dict[str, Any], prompts: dict[str, Any], generated: dict[bytes, Any], index: CopyIndex | None) -> Pair:
    training = index.image(row["train_id"]).image if index is not None else None
    detail = f"{row['train_id']}  {abs(row['statistic']):.3f}" + (
        f"  x{row['group_size']}" if row["group_size"] > 1 else ""
    )
    detail += "  (background)" if row["background"] else ""
    return Pair(decode_png(generated[row["image_key"]]), training, prompts[row["prompt_id"]]["text"], detail)


def _generated(store: RunStore, keys: set[bytes]) -> dict[bytes, bytes]:
    """PNG bytes of the images with these keys, in one pass over the store."""
    found: dict[bytes, bytes] = {}
    for table in store.stream("images", ["key", "png"]):
        wanted = [key in keys for key in table["key"].to_pylist()]
        found |= {row["key"]: row["png"] for row in table.filter(wanted).to_pylist()}
    if keys - found.keys():
        raise DataError("Images of this run are missing; run the same command again.")
    return found
