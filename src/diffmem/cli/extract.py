"""diffmem extract: find memorized images without the training set, by generating many images per prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diffmem.cli.options import DescriptorOptions, ModelOptions, PromptOptions, SamplingOptions, WorkOptions, need
from diffmem.errors import UsageError

MODEL = ModelOptions()
COPIES = DescriptorOptions()
PROMPTS = PromptOptions()
SAMPLING = SamplingOptions()
WORK = WorkOptions()
SHOWN = ("rank", "prompt", "draw", "seed", "size", "of", "mean_similarity", "train_id", "train_distance", "ratio")


def extract(
    model: str,
    *typed: Annotated[str, Parameter(show=False)],
    out: Annotated[Path | None, Parameter(help="run directory; the same command goes on where it left")] = None,
    train: Annotated[Path | None, Parameter(help="training images, to prove what was extracted")] = None,
    images: Annotated[int, Parameter(help="per prompt; the paper takes 500")] = 100,
    clique: Annotated[int, Parameter(help="alike images that make an extraction; the paper takes 10")] = 10,
    edge: Annotated[
        float | None, Parameter(help="similarity from which two images are alike; default: the descriptor's own")
    ] = None,
    batch: Annotated[int, Parameter(help="images per call of the pipeline at first")] = 32,
    prompts: PromptOptions = PROMPTS,
    sampling: SamplingOptions = SAMPLING,
    copies: DescriptorOptions = COPIES,
    target: ModelOptions = MODEL,
    work: WorkOptions = WORK,
) -> int:
    """Find memorized images without the training set: many images per prompt, and sets of them that are all alike.

    Args:
        model: pipeline folder, hub id, or testbed:digits.
        typed: prompts typed here, instead of --prompts FILE.
    """
    from diffmem.cli.estimates import estimate_generation, print_estimate
    from diffmem.cli.output import emit_json, emit_table, note, percent
    from diffmem.experiments.extract.run import extract_images
    from diffmem.stages.generate import Generation

    if work.shard is not None:
        raise UsageError("An extraction is not sharded; shard diffmem generate over the same --out, then extract.")
    listed = prompts.load(typed)
    settings = Generation(draws=images, seed=work.seed, batch=batch, sampling=sampling.sampling())
    folder = None if work.dry_run else need(out, "--out", "the extraction needs a run directory")
    opened = target.open(model, settings.sampling, check=not work.dry_run)
    if work.dry_run:
        print_estimate(estimate_generation(opened, len(listed), settings), work.json)
        return 0
    result = extract_images(
        opened, listed, settings, train, out=folder, descriptor=copies.descriptor,
        descriptor_options=copies.options(target.allow_pickle), edge=edge, smallest=clique,
        retry_errors=work.retry_errors, silent=work.quiet or work.json,
    )  # fmt: skip
    if work.json:
        emit_json(result.as_dict())
        return 0
    # A seed is a name, not a quantity: no separators in it.
    shown = [{name: row[name] for name in SHOWN if name in row} | {"seed": str(row["seed"])} for row in result.rows]
    emit_table(shown, title=f"{len(shown)} images extracted from {result.prompts} prompts; surest first")
    for text in dict.fromkeys(result.notes):
        note(text)
    edges = result.false_edges
    if edges.value is not None and edges.low is not None and edges.high is not None:
        note(
            f"images are alike from similarity {result.edge:g}; of pairs from different prompts {percent(edges.value)} are "
            f"({percent(edges.low)} to {percent(edges.high)}): where that is not small, raise --edge"
        )
    else:
        note(f"images are alike from similarity {result.edge:g}; {edges.note}")
    if result.rows:
        note(
            f"pictures and proofs are in {result.run.path / 'extracted'}; each proof is enough to make its image again"
        )
    return 0
