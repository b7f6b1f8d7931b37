"""diffmem evaluate: how well a run's scores find what is memorized."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from diffmem.cli.options import between_0_and_1


def evaluate(
    run: Path,
    *,
    labels: Annotated[
        Literal["given", "measured"],
        Parameter(
            help="which prompts count as memorized: as the prompt list says (given), or those whose "
            "images are copies (measured)"
        ),
    ] = "given",
    fpr: Annotated[float, Parameter(validator=between_0_and_1, help="false-positive rate")] = 0.01,
    seed: Annotated[int, Parameter(help="seed of the resampling")] = 0,
    write_labels: Annotated[
        Path | None, Parameter(help="write the measured labels and similarities as a prompt list (jsonl)")
    ] = None,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
) -> int:
    """Print AUROC and TPR of a run's scores, with intervals that count near-duplicate prompts as one.

    Args:
        run: a run directory with scores.
    """
    from diffmem.atomic import write_atomic
    from diffmem.cli.output import emit_table, note
    from diffmem.experiments.evaluate.labels import measured_labels
    from diffmem.experiments.evaluate.runs import evaluate as evaluate_run
    from diffmem.experiments.evaluate.runs import read_scores

    if write_labels is not None:
        measured = measured_labels(run)
        texts = read_scores(run).prompts
        lines = [
            json_module.dumps({"id": p, "caption": texts[p]["text"], **entry}, ensure_ascii=False)
            for p, entry in measured.items()
            if p in texts
        ]
        write_atomic(write_labels.absolute(), ("\n".join(lines) + "\n").encode("utf-8"))
        note(f"{len(lines)} measured labels written to {write_labels}")
    rows = evaluate_run(run, labels, fpr, seed)
    columns = ["score", "negatives", "n_positives", "n_negatives", "auroc", "auroc_low", "auroc_high", "tpr", "tpr_low",
               "tpr_high", "realised_fpr", "n_eff", "reason"]  # fmt: skip
    emit_table(rows, columns, json, title=f"Labels {labels}; TPR at {fpr:.2%} FPR; 95 % intervals")
    return 0
