"""A page of its own (a lab, a comparison): one file, nothing loaded, no script; the frame is the same for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from diffmem.atomic import write_atomic
from diffmem.report import prose
from diffmem.report.html import content_hash


def write_page(
    path: Path, template: Traversable, *, title: str, kicker: str, headline: str, limits: Sequence[str], style: str = "",
    filters: Mapping[str, Callable[..., Any]] | None = None, **context: Any,
) -> Path:  # fmt: skip
    """Render a template that extends `frame.html`, and write it.

    Args:
        path: the page.
        template: the file of it, in the room of the experiment.
        title: of the window.
        kicker: the line above the headline.
        headline: one sentence that says what was found.
        limits: what the numbers cannot show.
        style: rules beside those of every page.
        filters: beside those of every page.
        context: what the template shows.

    Returns:
        The path.
    """
    rules = _source("style.css") + style
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_source)
    )
    environment.filters |= {
        "visible": prose.visible, "number": prose.number, "shorten": prose.shorten, "percent": prose.percent,
        **(filters or {}),
    }  # fmt: skip
    policy = f"default-src 'none'; img-src data:; style-src {content_hash(rules)}; base-uri 'none'; form-action 'none'"
    page = environment.from_string(template.read_text(encoding="utf-8")).render(
        title=title, kicker=kicker, headline=headline, limits=limits, style=Markup(rules), policy=policy, **context
    )
    write_atomic(path, page.encode("utf-8", errors="backslashreplace"))
    return path


def _source(name: str) -> str:
    return (files("diffmem.report") / name).read_text(encoding="utf-8")
