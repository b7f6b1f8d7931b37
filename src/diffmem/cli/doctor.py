"""diffmem doctor: check this machine and installation."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def doctor(*, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Check this machine and installation; say what is missing and how to get it. Exit code 2 if something must be mended."""
    from diffmem.cli.output import emit_table
    from diffmem.report.doctor import examine

    findings = examine()
    emit_table([vars(f) for f in findings], ["check", "state", "found", "remedy"], json)
    return 2 if any(f.state == "broken" for f in findings) else 0
