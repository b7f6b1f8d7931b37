"""Small runs written row by row, so that every number of their digest can be computed by hand."""

import json

import numpy as np
from PIL import Image

from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.index import CopyIndex
from diffmem.data.images import load_images
from diffmem.data.png import png_bytes
from diffmem.keys import row_key
from diffmem.runs.facts import write_fact
from diffmem.runs.manifest import open_run, record_stage
from diffmem.runs.provenance import provenance
from diffmem.runs.store import RunStore

COMMAND = ("diffmem", "audit", "./model", "--prompts", "p.csv", "--out", "r")
PLAN = {"generate": {"seed": 7, "draws": 2, "sampling": {"steps": 20, "guidance": 2.0, "scheduler": None}}}
THRESHOLD = {
    "statistic": "normalised", "value": -0.5, "nominal_fpr": 0.01, "per_image_fpr": 0.005, "images_per_prompt": 2,
    "reference": "held-out", "n_reference": 1000, "realised_fpr": 0.004, "realised_interval": [0.001, 0.01],
    "calibrated": True, "note": "",
}  # fmt: skip


def new_run(folder, plan=PLAN, command=COMMAND):
    open_run(folder, plan, {"model": "f" * 32}, provenance(), command)
    write_fact(folder, "model", {"name": "model", "fingerprint": "f" * 32})
    return RunStore(folder)


def add_prompts(store, prompts):
    """Prompts as (id, text, label)."""
    rows = [
        {"key": row_key(p=key, n=i), "prompt_id": key, "text": text, "label": label, "text_sha": "0", "extra": "{}"}
        for i, (key, text, label) in enumerate(prompts)
    ]
    store.append("prompts", rows)


def score_row(key, score, draw, value, per_draw=None, turn=0, status="ok", error=None):
    parts = None if per_draw is None else json.dumps({"per_draw": per_draw})
    return {
        "key": row_key(p=key, s=score, d=draw, turn=turn), "prompt_id": key, "score": score, "version": "1",
        "draw": draw, "value": value, "components": parts, "status": status, "error": error,
    }  # fmt: skip


def picture(seed, side=32):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def image_row(key, draw, image, **more):
    return {
        "key": row_key(i=key, d=draw), "prompt_id": key, "draw": draw, "seed": 1000 + draw, "width": image.width,
        "height": image.height, "png": png_bytes(image), "status": "ok", **more,
    }  # fmt: skip


def match_row(key, draw, train_id, normalised, group=None, turn=0, rank=1, **more):
    return {
        "key": row_key(m=key, d=draw, turn=turn, r=rank), "prompt_id": key, "draw": draw,
        "image_key": row_key(i=key, d=draw), "rank": rank, "train_id": train_id, "similarity": 1 - normalised / 2,
        "ratio": normalised, "normalised": normalised, "group": group or train_id, "group_size": 1,
        "background": False, "descriptor": "l2-tiled", "status": "ok", **more,
    }  # fmt: skip


def small_run(folder, texts=None, side=32):
    """Five prompts a to e, labelled yes, yes, no, no, unknown; two scores; six matched images; a training set."""
    texts = texts or {}
    store = new_run(folder)
    labels = {"a": True, "b": True, "c": False, "d": False, "e": None}
    add_prompts(store, [(key, texts.get(key, f"prompt {key}"), label) for key, label in labels.items()])
    values = {"a": [3.0, 5.0], "b": [1.0, 1.0], "c": [2.0, 2.0], "d": [0.0, 0.0]}
    store.append("scores", [score_row(k, "s", d, v) for k, pair in values.items() for d, v in enumerate(pair)])
    store.append("scores", [score_row("e", "s", 0, None, status="error", error="empty prompt")])
    store.append("scores", [score_row(k, "j", None, 99.0, [99.0, 99.0]) for k in values])  # of an earlier set
    store.append("scores", [score_row(k, "j", None, sum(v), [0.0, 2 * sum(v)], turn=1) for k, v in values.items()])
    train = folder.with_name(folder.name + "-train")
    train.mkdir()
    for i in range(6):
        picture(i, side).save(train / f"t{i}.png")
    images = load_images(train)
    CopyIndex.build(images, make_descriptor("l2-tiled", images), folder / "index" / "l2-tiled")
    shown = {("a", 0): 0, ("a", 1): 100, ("b", 0): 101, ("c", 0): 0, ("d", 0): 102, ("e", 0): 103}
    store.append("images", [image_row(k, d, picture(n, side)) for (k, d), n in shown.items()])
    store.append("images", [image_row("e", 1, picture(5, side), degenerate="black")])
    store.append("matches", [match_row("b", 0, "t3.png", 0.01, turn=9)])  # against an earlier training set
    store.append(
        "matches",
        [match_row("a", 0, "t0.png", 0.1, "g"), match_row("a", 1, "t2.png", 0.9), match_row("b", 0, "t3.png", 0.7),
         match_row("c", 0, "t1.png", 0.2, "g"), match_row("d", 0, "t4.png", 0.8), match_row("e", 0, "t5.png", 0.6),
         match_row("d", 0, "t5.png", 0.3, rank=2)],
    )  # fmt: skip
    descriptor = {"name": "l2-tiled", "misses": "crops", "images": 6}
    write_fact(folder, "copies", {"threshold": THRESHOLD, "descriptor": descriptor, "problems": {"bad.png": "torn"}})
    passed = {"passed": True, "calls": 4, "message": "agrees"}
    write_fact(folder, "check", passed)
    record_stage(folder, "score", state="done", done=9, total=9, seconds=1.0)
    return store
