"""The example service, over real HTTP."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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


def opened():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("service", Path(__file__).parents[2] / "examples" / "service.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def served(app):
    """The address of an application that runs inside the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def service():
    """(address, pipeline, a prompt that passes, one that is refused)."""
    module = opened()
    pipe = tiny_sd()
    threshold = diffmem.guard.calibrate(pipe, PROMPTS, 0.2, draws=1).threshold
    with diffmem.guard(pipe, threshold=threshold, action="log") as seen:
        pipe(PROMPTS, num_inference_steps=1)
    ranked = sorted(zip([d.value for d in seen.decisions], PROMPTS, strict=True))
    threshold = threshold.model_copy(update={"value": (ranked[-1][0] + ranked[-2][0]) / 2})
    app = module.make_app(lambda: diffmem.guard(pipe, threshold=threshold, action="refuse"))
    with served(app) as address:
        yield address, pipe, ranked[0][1], ranked[-1][1]
    assert "_diffmem_layers" not in vars(type(pipe))


def post(address, body, **headers):
    request = urllib.request.Request(f"{address}/images", body, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.headers, refusal.read()


def ask(address, **order):
    status, _, body = post(address, json.dumps({"steps": 2, "guidance": 2.0, **order}).encode())
    assert status == 200
    return np.asarray(Image.open(io.BytesIO(body)))


def test_a_prompt_that_passes_gets_the_image_of_the_bare_pipeline(service):
    address, pipe, calm, _ = service
    found = ask(address, prompt=calm, seed=3)
    random = torch.Generator().manual_seed(3)
    with_guard = pipe(calm, num_inference_steps=2, guidance_scale=2.0, generator=[random]).images[0]
    assert np.array_equal(found, np.asarray(with_guard))


def test_a_prompt_that_is_flagged_gets_status_451(service):
    address, _, _, loud = service
    status, headers, body = post(address, json.dumps({"prompt": loud, "steps": 2}).encode(), **{"X-Request-ID": "my-7"})
    assert status == 451 and headers["X-Request-ID"] == "my-7"
    assert "1 of 1 images were refused" in json.loads(body)["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "sea", "seed": 18446744073709551616}', b'{"prompt": "sea", "seed": -1}', b'{"prompt": ""}',
        b'{"prompt": "\\ud800"}', b'{"prompt": "a \\udfff b", "steps": 2}', b'{"prompt": "sea", "guidance": NaN}',
        b'{"prompt": "sea", "guidance": Infinity}', b'{"prompt": "sea", "steps": 1e999}', b'{"prompt": 7}', b"{}", b"[]",
        b"null", b"", b"{", b'{"prompt": "\xff\xfe"}', b"[" * 60_000, b'{"prompt": "sea", "seed": "\\ud800"}',
        b'{"prompt": " \\t\\n"}', b'{"prompt": "sea", "seed": true}', b'{"prompt": "sea", "seed": "3"}',
        b'{"prompt": "sea", "steps": 2.5}', b'{"prompt": "sea", "steps": "2"}', b'{"prompt": ["sea"]}',
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_carried_out_gets_a_sentence(service, body):
    status, headers, answer = post(service[0], body)
    assert status == 400 and len(headers["X-Request-ID"]) == 32
    assert len(json.loads(answer)["detail"]) > 20


def test_what_no_order_has_is_refused_by_name(service):
    for name in ("negative_prompt", "prompt_2", "latents"):
        status, _, answer = post(service[0], json.dumps({"prompt": service[2], name: service[3]}).encode())
        assert status == 400 and name in json.loads(answer)["detail"]


def raw(address, text):
    """What the service answers to bytes on its socket: (status, headers in lower case)."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        line.sendall(text)
        told = line.recv(65536).decode("latin-1").lower()
    return int(told.split()[1]), told


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("POST /images HTTP/1.1\r\nContent-Length: 100000000000", 413),
        ("POST /images HTTP/1.1\r\nTransfer-Encoding: chunked", 411),
        ("GET /images HTTP/1.1", 405), ("DELETE /health HTTP/1.1", 405), ("GET /../../etc/passwd HTTP/1.1", 404),
        ("GET /health HTTP/1.1\r\nX-Request-ID: " + "x" * 5000, 200),
    ],
)  # fmt: skip
def test_odd_requests_are_answered_before_their_body_is_there_and_have_a_name(service, lines, status):
    found, told = raw(service[0], f"{lines}\r\nHost: here\r\nContent-Type: application/json\r\n\r\n".encode())
    assert found == status
    (name,) = [line.split(": ")[1] for line in told.splitlines() if line.startswith("x-request-id")]
    assert len(name) == 32


def test_another_content_type_is_no_order(service):
    status, headers, answer = post(service[0], b'{"prompt": "sea"}', **{"content-type": "text/plain"})
    assert status == 400 and len(headers["X-Request-ID"]) == 32 and json.loads(answer)["detail"]


def test_a_failure_of_the_pipeline_names_the_request_and_nothing_else(service):
    address, pipe, calm, _ = service
    before = pipe.scheduler
    pipe.scheduler = None
    try:
        status, headers, answer = post(
            address, json.dumps({"prompt": calm, "steps": 2}).encode(), **{"X-Request-ID": "n-1"}
        )
    finally:
        pipe.scheduler = before
    assert status == 500 and headers["X-Request-ID"] == "n-1"
    assert "n-1" in json.loads(answer)["detail"] and calm not in answer.decode()
    assert ask(address, prompt=calm, seed=1).any()


def test_a_changed_model_is_said_as_503_until_it_is_as_before(service):
    address, pipe, calm, _ = service
    weight = pipe.unet.conv_in.weight
    before = weight.detach().clone()
    weight.data += 1
    try:
        status, _, answer = post(address, json.dumps({"prompt": calm, "steps": 2}).encode())
    finally:
        weight.data.copy_(before)
    assert status == 503 and "model has changed" in json.loads(answer)["detail"]
    assert ask(address, prompt=calm, seed=1).any()


def test_the_largest_seed_is_taken_and_an_image_says_what_it_is(service):
    address, pipe, calm, _ = service
    body = json.dumps({"prompt": calm, "seed": 2**64 - 1, "steps": 2, "guidance": 2.0}).encode()
    status, headers, image = post(address, body, **{"X-Request-ID": "not an id\t!"})
    assert status == 200 and headers["X-Diffmem-Outcome"] == "passed"
    assert len(headers["X-Request-ID"]) == 32
    random = torch.Generator().manual_seed(2**64 - 1)
    bare = pipe(calm, num_inference_steps=2, guidance_scale=2.0, generator=[random]).images[0]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image))), np.asarray(bare))


def test_a_service_without_settings_says_which(tmp_path):
    examples = Path(__file__).parents[2] / "examples"
    model = tmp_path / "model"
    tiny_sd().save_pretrained(model)
    env = {**{k: v for k, v in os.environ.items() if k not in ("MODEL", "THRESHOLD")}}
    for more, sentence in (
        ({}, "MODEL and THRESHOLD must be set"),
        ({"MODEL": str(tmp_path)}, "THRESHOLD must be set"),
        ({"MODEL": str(tmp_path / "none"), "THRESHOLD": "t.json"}, "none"),
        ({"MODEL": str(model), "THRESHOLD": str(tmp_path / "none.json")}, "none.json holds no threshold"),
        ({"MODEL": str(model), "THRESHOLD": str(tmp_path)}, "holds no threshold"),
    ):
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(examples), "service:app"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env | more)
        assert ended.returncode != 0 and sentence in ended.stderr and "Traceback" not in ended.stderr


def test_a_mitigated_image_says_so_and_its_log_line_has_the_request_id():
    module = opened()
    pipe = tiny_sd()
    threshold = diffmem.guard.calibrate(pipe, PROMPTS, 0.2, draws=1).threshold
    log = logging.getLogger("diffmem.guard")
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(module.JsonLines("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    threshold = threshold.model_copy(update={"value": 0.0})
    guard = diffmem.guard(pipe, threshold=threshold, mitigation="transition-static")
    try:
        with served(module.make_app(lambda: guard)) as address:
            for i, prompt in enumerate(PROMPTS[:2]):
                body = json.dumps({"prompt": prompt, "steps": 2, "guidance": 2.0}).encode()
                status, headers, _ = post(address, body, **{"X-Request-ID": f"order-{i}"})
                assert status == 200 and headers["X-Diffmem-Outcome"] == "mitigated"
    finally:
        log.removeHandler(handler)
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [(line["request_id"], line["decision"]["outcome"]) for line in told] == [
        ("order-0", "mitigated"), ("order-1", "mitigated"),
    ]  # fmt: skip


def test_many_clients_at_once_get_their_own_images(service):
    address, _, calm, _ = service
    one_by_one = [ask(address, prompt=calm, seed=seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: ask(address, prompt=calm, seed=seed), range(4)))
    assert all(np.array_equal(a, b) for a, b in zip(one_by_one, together, strict=True))
    with urllib.request.urlopen(f"{address}/health", timeout=60) as answer:
        assert json.loads(answer.read())["decisions"] >= 8
