"""The page of a run, whatever the verb: one file that loads nothing; the frame is the same for all."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from diffmem import __version__
from diffmem.atomic import write_atomic
from diffmem.report import prose


def write_page(path: Path, template: Traversable, **context: Any) -> Path:
    """Write a page made by `render_page`, which takes the same arguments, and give its path."""
    write_atomic(path, as_bytes(render_page(template, **context)))
    return path


def render_page(
    template: Traversable, *, title: str, kicker: str, headline: str, limits: Sequence[str], style: str = "",
    script: str = "", images: str = "data:", connect: str = "",
    filters: Mapping[str, Callable[..., Any]] | None = None, **context: Any,
) -> str:  # fmt: skip
    """Render a template that extends `frame.html`.

    Args:
        template: the file of it, in the room of the experiment.
        title: of the window.
        kicker: the line above the headline.
        headline: one sentence that says what was found.
        limits: what the numbers cannot show.
        style: rules beside those of every page.
        script: the only one that may run, named by its hash; none by default.
        images: where pictures may come from; by default they lie in the page.
        connect: what its script may ask; nothing by default.
        filters: beside those of every page.
        context: what the template shows.
    """
    rules = _source("style.css") + style
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_source)
    )
    environment.filters |= {
        "visible": prose.visible, "number": prose.number, "shorten": prose.shorten, "percent": prose.percent,
        **(filters or {}),
    }  # fmt: skip
    environment.globals |= {"percents": prose.percents, "between": prose.between}
    policy = f"default-src 'none'; img-src {images}; style-src {_content_hash(rules)}; "
    policy += f"script-src {_content_hash(script)}; " if script else ""
    policy += f"connect-src {connect}; " if connect else ""
    policy += "base-uri 'none'; form-action 'none'"
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        title=title, kicker=kicker, headline=headline, limits=limits, style=Markup(rules), script=Markup(script),
        policy=policy, version=__version__, count=prose.count, **context,
    )  # fmt: skip


def as_bytes(page: str) -> bytes:
    """The page as it is written; a lone surrogate, which UTF-8 cannot hold, is escaped."""
    return page.encode("utf-8", errors="backslashreplace")


def _content_hash(text: str) -> str:
    """The source expression by which a Content-Security-Policy admits an inline block."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _source(name: str) -> str:
    return (files("diffmem.report") / name).read_text(encoding="utf-8")
