"""What a notebook shows of diffmem: progress of long work, and objects as small tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from html import escape

LONGEST = 320
"""Characters of a value in a table."""
LINES = 5
"""Values of a list in a table; the rest is counted."""


def in_notebook() -> bool:
    """Whether this code runs in a kernel of IPython (Jupyter, Colab); IPython is not imported for the question."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def is_silent(silent: bool | None) -> bool:
    """Whether a verb shows no progress: as asked; where nothing is asked, it shows progress in notebooks only."""
    return not in_notebook() if silent is None else silent


class ShownInNotebooks:
    """Gives a class its `_repr_html_`: the line of `repr`, and a table of what `shown_facts` says."""

    def shown_facts(self) -> Mapping[str, object]:
        """Heading -> value, a number, a text or a sequence of texts; empty ones are left out."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{_cell(value)}</td></tr>'
            for name, value in self.shown_facts().items()
            if value is not None and value != "" and value != () and value != []
        )
        return f"<p><code>{escape(repr(self))}</code></p><table>{rows}</table>"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        lines = [_cell(item) for item in value[:LINES]]
        return "<br>".join([*lines, *([f"and {len(value) - LINES:,} more"] if len(value) > LINES else [])])
    text = str(value)
    return escape(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")
