"""A small web service that generates images behind diffmem's guard.

    pip install 'diffmem[examples]'
    diffmem calibrate ./my-model --score score-difference:over=ratio --draws 2 --reference prompts.txt --out safe.json
    MODEL=./my-model THRESHOLD=safe.json uvicorn --app-dir examples service:app

    curl -si -X POST localhost:8000/images -H 'content-type: application/json' -d '{"prompt": "a red fox"}' -o fox.png

A refused prompt gets status 451 and says why; an order that cannot be carried out gets 400, one of more than 64 KiB 413
(411 where it does not say its length). Every answer carries the
header X-Request-ID (the client's own, or a new one), and an image X-Diffmem-Outcome: passed, mitigated, reseeded or logged.
Every decision is a line of JSON on stderr with the same request id. A threshold made with --regime generation --steps 50
--guidance 7.5 costs a passing image nothing, and takes orders of these settings only.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

import diffmem as dm
from diffmem.errors import DiffmemError, IncompatibleRun
from diffmem.serving.decisions import Decision, GenerationRefused, ModelChanged

request_id: ContextVar[str] = ContextVar("request_id", default="-")
decided: ContextVar[list[Decision] | None] = ContextVar("decided", default=None)


LARGEST = 64 * 1024
"""Bytes of an order; a longer one is not read."""


class Order(BaseModel):
    """What a client asks for; a field that it does not have is refused, as nobody would carry it out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(min_length=1, max_length=2000, pattern=r"\S")
    seed: int = Field(0, ge=0, lt=2**64)
    steps: int = Field(50, ge=1, le=200)
    guidance: float = Field(7.5, ge=0, le=30, allow_inf_nan=False)


def make_app(open_guard: Callable[[], Any]) -> FastAPI:
    """The service; `open_guard` gives a guard when the service starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with open_guard() as guard:
            listener = guard.on_decision

            def listen(decision: Decision) -> None:
                found = decided.get()
                if found is not None:
                    found.append(decision)
                if listener is not None:
                    listener(decision)

            guard.on_decision = listen
            app.state.guard = guard
            yield

    app = FastAPI(title="Images behind a guard", lifespan=lifespan)

    @app.middleware("http")
    async def named(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("x-request-id", "")
        name = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid.uuid4().hex
        request_id.set(name)
        try:
            response = too_long(request) or await call_next(request)
        except Exception:
            logging.exception("request %s failed", name)
            response = JSONResponse({"detail": f"The service failed; its log says why under request {name}."}, 500)
        response.headers["X-Request-ID"] = name
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> Response:
        # What was sent is not sent back: it may be text that no answer can hold (half a surrogate pair, NaN).
        found = "; ".join(f"{'.'.join(map(str, e['loc'][1:])) or 'body'}: {e['msg']}" for e in problem.errors())
        return JSONResponse({"detail": f"This order cannot be carried out. {found}."}, 400)

    # A plain function: the framework runs it in a thread, and the guard lets one call through at a time.
    @app.post("/images")
    def images(order: Order) -> Response:
        decisions: list[Decision] = []
        decided.set(decisions)
        guard = app.state.guard
        random = torch.Generator().manual_seed(order.seed)
        try:
            image = guard.pipeline(
                order.prompt, num_inference_steps=order.steps, guidance_scale=order.guidance, generator=[random]
            ).images[0]
        except GenerationRefused as refusal:
            raise HTTPException(451, str(refusal)) from refusal
        except ModelChanged as changed:
            raise HTTPException(503, str(changed)) from changed
        except IncompatibleRun as other:  # a threshold for the generation itself holds for its steps and guidance only
            raise HTTPException(400, str(other)) from other
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png", headers={"X-Diffmem-Outcome": decisions[0].outcome})

    @app.get("/health")
    def health() -> dict[str, Any]:
        decisions = list(app.state.guard.decisions)
        return {"decisions": len(decisions), "flagged": sum(d.flagged for d in decisions)}

    return app


def too_long(request: Request) -> Response | None:
    """What an order gets that says no length, or one over `LARGEST`; None for others."""
    length = request.headers.get("content-length")
    if request.method != "POST" or (length is not None and length.isdigit() and int(length) <= LARGEST):
        return None
    if length is None:
        return JSONResponse({"detail": "This order does not say its length (the header Content-Length)."}, 411)
    return JSONResponse({"detail": f"This order has {length[:20]} bytes; expected at most {LARGEST}."}, 413)


class JsonLines(logging.Formatter):
    """A log line as JSON; a decision of the guard, which is JSON already, beside the id of its request."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        told = super().format(record)
        what = {"decision": json.loads(told)} if record.name == "diffmem.guard" else {"message": told}
        return json.dumps({"request_id": request_id.get(), **what})


def from_environment() -> Any:
    """The guard that MODEL, THRESHOLD and ACTION describe; a sentence instead of a start where that is not possible."""
    missing = [name for name in ("MODEL", "THRESHOLD") if not os.environ.get(name)]
    if missing:
        raise SystemExit(
            f"{' and '.join(missing)} must be set: MODEL to a folder or hub id of a diffusers pipeline, THRESHOLD to a file "
            "made by diffmem calibrate. Example: MODEL=./my-model THRESHOLD=safe.json uvicorn --app-dir examples service:app"
        )
    try:
        target = dm.Target.from_pretrained(os.environ["MODEL"])
        return dm.guard(target, threshold=os.environ["THRESHOLD"], action=os.environ.get("ACTION", "mitigate"))
    except DiffmemError as problem:
        raise SystemExit(str(problem)) from None


def __getattr__(name: str) -> FastAPI:
    """`app`, made when the server asks for it, so that what is wrong with the settings is said before it starts."""
    if name != "app":
        raise AttributeError(name)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    guard = from_environment()
    return make_app(lambda: guard)
