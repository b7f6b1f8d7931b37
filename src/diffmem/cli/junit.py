"""The outcome of gates as JUnit XML, which CI services show beside the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from diffmem.atomic import write_atomic
from diffmem.errors import DiffmemError, GateTripped

if TYPE_CHECKING:
    from diffmem.cli.gates import Gate


def write_junit(path: Path, outcomes: Sequence[tuple[Gate, DiffmemError | None]], headline: str) -> Path:
    """Write one test case per gate: a failure where it tripped, an error where it could not be read.

    Args:
        path: the file.
        outcomes: each gate with what went wrong, None where it passed.
        headline: of the run; stands in the system output.
    """
    failed = sum(isinstance(problem, GateTripped) for _, problem in outcomes)
    unread = sum(problem is not None for _, problem in outcomes) - failed
    suite = ElementTree.Element(
        "testsuite", name="diffmem", tests=str(len(outcomes)), failures=str(failed), errors=str(unread), skipped="0"
    )
    for gate, problem in outcomes:
        case = ElementTree.SubElement(suite, "testcase", classname="diffmem.gates", name=_printable(gate.text))
        if problem is not None:
            kind = "failure" if isinstance(problem, GateTripped) else "error"
            ElementTree.SubElement(case, kind, message=_printable(str(problem)), type=type(problem).__name__)
    ElementTree.SubElement(suite, "system-out").text = _printable(headline)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    write_atomic(path.absolute(), ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
    return path


def _printable(text: str) -> str:
    """Without characters that XML cannot hold."""
    return "".join(
        char if char >= " " or char in "\t\n" else "\N{REPLACEMENT CHARACTER}"
        for char in text
        if char not in "\ufffe\uffff"
    )
