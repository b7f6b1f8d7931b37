"""A run whose pairs can be reviewed, and a page that serves it."""

import json
import threading
from contextlib import contextmanager

import numpy as np
from PIL import Image
from tests.report.made import add_prompts, image_row, match_row, new_run

from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.index import CopyIndex
from diffmem.data.images import load_images
from diffmem.experiments.review.server import ReviewServer
from diffmem.experiments.review.session import Session
from diffmem.runs.facts import write_fact

THRESHOLD = {
    "statistic": "verified", "value": 10.0, "nominal_fpr": 0.01, "per_image_fpr": 0.01, "images_per_prompt": 1,
    "reference": "held-out", "n_reference": 1000, "realised_fpr": 0.004, "realised_interval": [0.001, 0.01],
    "calibrated": True, "note": "",
}  # fmt: skip
# The training picture's left half, mirrored, fills the generated one.
MIRRORED = {
    "evidence": 400.0, "closeness": 1.0, "area": 0.5, "similarity": 0.9, "matrix": [-2.0, 0, -1.0, 0, 1.0, 0],
    "box": [0.0, 0.0, 0.5, 1.0], "corners": [[1, 0], [0, 0], [0, 1], [1, 1]],
    "words": "50 % of the training picture, mirrored, 2.0 times as large",
}  # fmt: skip


def ramp(seed, side=64):
    """A smooth picture that compresses well and differs from every other."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def review_run(folder, count=12, called=4, texts=None, side=64, training=12):
    """`count` prompts with one image each, the first `called` of them called copies."""
    store = new_run(folder)
    names = [f"p{i:04d}" for i in range(count)]
    add_prompts(store, [(name, (texts or {}).get(name, f"prompt {i}"), None) for i, name in enumerate(names)])
    train = folder.with_name(folder.name + "-train")
    train.mkdir()
    for i in range(training):
        ramp(10_000 + i, side).save(train / f"t{i:04d}.png")
    images = load_images(train)
    index = CopyIndex.build(images, make_descriptor("l2-tiled", images), folder / "index" / "l2-tiled")
    rows = []
    for i, name in enumerate(names):
        alignment = MIRRORED if i < called else None
        rows.append(
            match_row(name, 0, f"t{i % training:04d}.png", 0.5, verified=20.0 if i < called else 9 - i / count,
                      alignment=None if alignment is None else json.dumps(alignment))
        )  # fmt: skip
    store.append("images", [image_row(name, 0, ramp(i, side)) for i, name in enumerate(names)])
    store.append("matches", rows)
    descriptor = {"name": "l2-tiled", "misses": "crops", "images": training}
    about = {"threshold": THRESHOLD, "descriptor": descriptor, "problems": {}, "train": index.images_fingerprint}
    write_fact(folder, "copies", about)
    return folder


@contextmanager
def served(folder, reviewer="anna", **options):
    """A server of a session, in a thread."""
    session = Session(folder, reviewer, **options)
    server = ReviewServer(session)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        session.close()
