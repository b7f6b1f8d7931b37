"""The example service, over real HTTP."""

from __future__ import annotations

import importlib.util
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import tiny_sd

import diffmem

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
PROMPTS = [f"{a} {b}" for a in ("sea", "hill", "wood", "lake") for b in ("red", "blue", "dark", "old", "wet", "big")]


@pytest.fixture(scope="module")
def service():
    """(address, pipeline, a prompt that passes, one that is refused)."""
    spec = importlib.util.spec_from_file_location("service", Path(__file__).parents[2] / "examples" / "service.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pipe = tiny_sd()
    threshold = diffmem.guard.calibrate(pipe, PROMPTS, 0.2, draws=1).threshold
    with diffmem.guard(pipe, threshold=threshold, action="log") as seen:
        pipe(PROMPTS, num_inference_steps=1)
    ranked = sorted(zip([d.value for d in seen.decisions], PROMPTS, strict=True))
    threshold = threshold.model_copy(update={"value": (ranked[-1][0] + ranked[-2][0]) / 2})
    app = module.make_app(lambda: diffmem.guard(pipe, threshold=threshold, action="refuse"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}", pipe, ranked[0][1], ranked[-1][1]
    server.should_exit = True
    thread.join(30)
    assert "_diffmem_guard" not in vars(type(pipe))


def ask(address, **order):
    body = json.dumps({"steps": 2, "guidance": 2.0, **order}).encode()
    request = urllib.request.Request(f"{address}/images", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())))


def test_a_prompt_that_passes_gets_the_image_of_the_bare_pipeline(service):
    address, pipe, calm, _ = service
    found = ask(address, prompt=calm, seed=3)
    random = torch.Generator().manual_seed(3)
    with_guard = pipe(calm, num_inference_steps=2, guidance_scale=2.0, generator=[random]).images[0]
    assert np.array_equal(found, np.asarray(with_guard))


def test_a_prompt_that_is_flagged_gets_status_451(service):
    address, _, _, loud = service
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ask(address, prompt=loud)
    assert refusal.value.code == 451
    assert "1 of 1 images were refused" in json.loads(refusal.value.read())["detail"]


def test_many_clients_at_once_get_their_own_images(service):
    address, _, calm, _ = service
    one_by_one = [ask(address, prompt=calm, seed=seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: ask(address, prompt=calm, seed=seed), range(4)))
    assert all(np.array_equal(a, b) for a, b in zip(one_by_one, together, strict=True))
    with urllib.request.urlopen(f"{address}/health", timeout=60) as answer:
        assert json.loads(answer.read())["decisions"] >= 8
