"""The two-gallery control of an audit: what the run keeps of it, against matching by hand."""

import numpy as np
from PIL import Image

from diffmem.copies.index import CopyIndex
from diffmem.data.images import load_images
from diffmem.experiments.audit.gallery import compare_with_gallery
from diffmem.report.digest import build_digest
from diffmem.runs.facts import read_fact, write_fact
from diffmem.stages.match.stage import open_index
from tests.report.made import small_run


def test_equal_images_are_called_on_their_own_side(tmp_path):
    run = tmp_path / "run"
    store = small_run(run)
    (tmp_path / "unseen").mkdir()
    for i in range(6):
        noise = np.random.default_rng(500 + i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "unseen" / f"{i}.png")
    index = open_index(run / "index" / "l2-tiled")
    assert isinstance(index, CopyIndex)
    fact = read_fact(run, "copies")
    write_fact(run, "copies", fact | {"threshold": fact["threshold"] | {"statistic": "similarity", "value": 0.99}})
    compare_with_gallery(run, index, load_images(tmp_path / "unseen"), True)
    found = read_fact(run, "gallery")
    # Images of a (draw 0) and c are the first training image; e's black one is set aside, nobody's is of the gallery.
    assert found["called"] == {key: {"train": ["t0.png"], "gallery": []} for key in ("a", "c")}
    assert (found["size"], found["prompts"], found["about"]["images"]) == (6, 5, 6)
    before = (run / "facts" / "gallery.json").stat().st_mtime_ns
    compare_with_gallery(run, index, load_images(tmp_path / "unseen"), True)
    assert (run / "facts" / "gallery.json").stat().st_mtime_ns == before, "nothing changed, nothing is done again"
    verdict = build_digest(run, methods=False).verdict
    assert (verdict.expected, verdict.p_value) == (0, 0.5)
    assert store.path == run
