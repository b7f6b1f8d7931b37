"""diffmem schema: the JSON schemas of what diffmem writes."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from diffmem.errors import UsageError


def schema(
    document: Annotated[
        str, Parameter(help="verb whose summary is described: audit, mitigate, ...; digest: that of an audit by 0.1.0")
    ] = "audit",
) -> int:
    """Print the JSON schema of a run's summary.json."""
    from diffmem.cli.output import emit_json
    from diffmem.experiments._run import VERBS

    name = "audit" if document == "digest" else document
    if name not in VERBS:
        raise UsageError(f"There is no summary of '{document}'; expected one of {', '.join(VERBS)}.")
    emit_json(VERBS.get(name).summary.json_schema())
    return 0
