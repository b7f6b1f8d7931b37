"""diffmem methods: what can be computed, what it needs, what it costs, where it comes from."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from diffmem.cli.output import say


def methods(
    name: Annotated[str | None, Parameter(help="describe one method in full")] = None,
    *,
    markdown: Annotated[bool, Parameter(negative="", help="print the table as Markdown, for the README")] = False,
    page: Annotated[
        bool, Parameter(negative="", help="print the documentation's page of methods, as Markdown")
    ] = False,
    mitigations: Annotated[bool, Parameter(negative="", help="list the mitigations")] = False,
    images: Annotated[bool, Parameter(negative="", help="list the scores of images (diffmem measure)")] = False,
    descriptors: Annotated[
        bool, Parameter(negative="", help="list the descriptors, by which images are compared")
    ] = False,
    matrix: Annotated[bool, Parameter(negative="", help="show which score runs on which family of models")] = False,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
) -> int:
    """List the methods: what they need, what they cost, where they come from."""
    from dataclasses import asdict

    from diffmem.cli.output import emit_json, emit_table
    from diffmem.report.methods import all_methods, image_methods, markdown_table, one_method

    if page:
        from diffmem.report.methods import methods_page

        say(methods_page(), end="")
        return 0
    if mitigations:
        from diffmem.mitigation.spec import mitigation_rows, one_mitigation

        if name is not None:
            chosen = one_mitigation(name)
            emit_json(chosen) if json else say("\n".join(f"{key:<12} {value}" for key, value in chosen.items()))
            return 0
        columns = {
            "name": "method",
            "level": "changes",
            "summary": "what it does",
            "cost": "extra NFE",
            "reference": "reference",
        }
        emit_table(mitigation_rows(), columns, json)
        return 0
    if descriptors:
        from diffmem.report.methods import descriptors as all_descriptors
        from diffmem.report.methods import one_descriptor

        if name is not None:
            shown = one_descriptor(name)
            emit_json(shown) if json else say("\n".join(f"{key:<12} {value}" for key, value in shown.items()))
            return 0
        columns = {"name": "descriptor", "summary": "what it is", "misses": "misses", "reference": "reference"}
        emit_table([asdict(about) for about in all_descriptors()], columns, json)
        return 0
    if matrix:
        from diffmem.cli.output import note
        from diffmem.report.matrix import WORKS
        from diffmem.report.matrix import matrix as ask

        rows = ask()
        reasons = dict.fromkeys(text for row in rows for key, text in row.items() if key != "score" and text != WORKS)
        short = [{k: "refuses" if v in reasons else v for k, v in row.items()} for row in rows]
        emit_table(rows if json else short, json=json)
        if not json:
            from diffmem.report.moments import NOTES, moments

            emit_table(moments(), title="Where on the noise scale the scores look")
            for text in (*reasons, *NOTES):
                note(text)
        return 0
    if name is not None:
        about = one_method(name)
        emit_json(about) if json else say("\n".join(f"{key:<12} {value}" for key, value in about.items()))
        return 0
    found = image_methods() if images else all_methods()
    if markdown:
        say(markdown_table(found, "image" if images else "prompt and noise"))
        return 0
    emit_table(
        [asdict(method) for method in found],
        {"name": "method", "summary": "what it is", "access": "sees", "cost": "NFE", "reference": "reference"},
        json,
    )
    return 0
