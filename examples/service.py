"""A small web service that generates images behind diffmem's guard.

    pip install 'diffmem[examples]'
    diffmem calibrate ./my-model --score score-difference:over=ratio --draws 2 --reference prompts.txt --out safe.json
    MODEL=./my-model THRESHOLD=safe.json uvicorn --app-dir examples service:app

    curl -s -X POST localhost:8000/images -H 'content-type: application/json' -d '{"prompt": "a red fox"}' -o fox.png

A refused prompt gets status 451 and says why; every decision is a line of JSON on stderr. A threshold made with
--regime generation --steps 50 --guidance 7.5 costs a passing image nothing, and takes orders of these settings only.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel, Field

import diffmem as dm
from diffmem.errors import IncompatibleRun
from diffmem.serving.decisions import GenerationRefused


class Order(BaseModel):
    """What a client asks for."""

    prompt: str = Field(min_length=1, max_length=2000)
    seed: int = Field(0, ge=0)
    steps: int = Field(50, ge=1, le=200)
    guidance: float = Field(7.5, ge=0, le=30)


def make_app(open_guard: Callable[[], Any]) -> FastAPI:
    """The service; `open_guard` gives a guard when the service starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with open_guard() as guard:
            app.state.guard = guard
            yield

    app = FastAPI(title="Images behind a guard", lifespan=lifespan)

    # A plain function: the framework runs it in a thread, and the guard lets one call through at a time.
    @app.post("/images")
    def images(order: Order) -> Response:
        guard = app.state.guard
        random = torch.Generator().manual_seed(order.seed)
        try:
            image = guard.pipeline(
                order.prompt, num_inference_steps=order.steps, guidance_scale=order.guidance, generator=[random]
            ).images[0]
        except GenerationRefused as refusal:
            raise HTTPException(451, str(refusal)) from refusal
        except IncompatibleRun as other:  # a threshold for the generation itself holds for its steps and guidance only
            raise HTTPException(400, str(other)) from other
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png")

    @app.get("/health")
    def health() -> dict[str, Any]:
        decisions = list(app.state.guard.decisions)
        return {"decisions": len(decisions), "flagged": sum(d.flagged for d in decisions)}

    return app


def from_environment() -> Any:
    """The guard that MODEL, THRESHOLD and ACTION describe."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    target = dm.Target.from_pretrained(os.environ["MODEL"])
    return dm.guard(target, threshold=os.environ["THRESHOLD"], action=os.environ.get("ACTION", "mitigate"))


app = make_app(from_environment)
