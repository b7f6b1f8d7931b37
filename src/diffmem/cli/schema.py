"""diffmem schema: the JSON schemas of what diffmem writes."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter


def schema(
    document: Annotated[Literal["digest"], Parameter(help="digest: digest.json of a run directory")] = "digest",
) -> int:
    """Print the JSON schema of a document."""
    from diffmem.cli.output import emit_json
    from diffmem.report.shape import digest_schema

    schemas = {"digest": digest_schema}
    emit_json(schemas[document]())
    return 0
