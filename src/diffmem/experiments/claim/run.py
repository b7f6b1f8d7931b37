"""Claims: works in, the strongest search that a budget allows out, against a model or against images with their log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffmem.copies.descriptors import DEFAULT_DESCRIPTOR
from diffmem.data.images import as_images
from diffmem.errors import UsageError
from diffmem.experiments._arm import Options
from diffmem.experiments._experiment import run_experiment
from diffmem.experiments._run import Run
from diffmem.experiments.claim.experiment import MEASURE, SEARCHES, ClaimExperiment
from diffmem.experiments.claim.logs import Logged, read_log
from diffmem.experiments.claim.proof import Place
from diffmem.experiments.claim.search import Searched
from diffmem.experiments.robustness.conditions import word_variants
from diffmem.models.target import Target
from diffmem.notebook import is_silent
from diffmem.runs.images import images_of
from diffmem.stages.generate import Generation

BUDGET = 16


def claim(
    source: Target | Any,
    works: Any,
    decoys: Any = None,
    *,
    out: str | Path | None = None,
    log: str | Path | None = None,
    budget: int | None = None,
    search: Sequence[str] | None = None,
    paraphrases: Callable[[str], Sequence[str]] | None = None,
    settings: Generation | None = None,
    inversion: str = "invmm",
    fdr: float = 0.05,
    descriptor: str = DEFAULT_DESCRIPTOR,
    descriptor_options: Mapping[str, Any] | None = None,
    retry_errors: bool = False,
    silent: bool | None = None,
) -> Run:
    """Say which of the given works a model, or a set of images, reproduces, with a false-discovery rate.

    Every decoy is searched for exactly as every work is. A work is found where p_w = (1 + #{decoys d: T_d >= T_w}) / (n + 1)
    survives Benjamini and Hochberg's procedure, T the copy statistic of the image most like it (times the number of tests,
    where there are several). If works that are not reproduced and decoys are exchangeable, the expected share of false ones
    among the found is at most `fdr`, whatever the descriptor.

    Args:
        source: the model (a Target; a function of prompts and seeds makes one for an endpoint), or generated images: whatever
            `load_images` takes, a run or its folder.
        works: pictures, with their captions where a model takes prompts.
        decoys: pictures of the same kind, captions and origin, that the model cannot have seen.
        out: run directory; the same call goes on where it left.
        log: of images: a table of file names, prompts and seeds.
        budget: images per work and decoy; default 16.
        search: "captions", "paraphrases", "inversion" (a prompt fitted to each picture, InvMM with it), "measure" (InvMM
            under the caption); default captions and paraphrases.
        paraphrases: gives other wordings of a caption; by default its words turned round, halved, in lower case.
        settings: seed and sampling.
        inversion: the InvMM that measures and fits prompts, such as "invmm:steps=100".
        fdr: the false-discovery rate at most.
        descriptor: how images are compared.
        descriptor_options: of the descriptor's class.
        retry_errors: make images again that ended in an error.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Returns:
        The run; `run.summary.works` has one row per work, and `claims/` one folder per reproduced work with both pictures and
        proof.json, from which `diffmem.experiments.extract.proof.remake` makes the image again.

    Raises:
        UsageError: a search that the model does not allow, or no way to search at all.

    Examples:
        >>> import numpy as np, diffmem as dm
        >>> images = list(np.random.default_rng(0).integers(0, 256, (42, 8, 8), np.uint8))
        >>> run = dm.claim(images[:2], works=images[1:3], decoys=images[3:])  # the second image is the first work
        >>> [row["status"] for row in run.summary.works]
        ['reproduced', 'not found']
    """
    silent = is_silent(silent)
    if not 0 < fdr < 1:
        raise UsageError(f"--fdr is {fdr:g}; expected a rate between 0 and 1.")
    listed, others = as_images(works), None if decoys is None else as_images(decoys)
    searched = Searched(listed, others, descriptor, dict(descriptor_options or {}), fdr, silent)
    if not isinstance(source, Target):
        _refuse(budget=budget, search=search, paraphrases=paraphrases, settings=settings)
        return _of_images(source, log, searched, out)
    if log is not None:
        raise UsageError("A log (--log) belongs to images; a model's own images are logged by the run.")
    budget = BUDGET if budget is None else budget
    if budget < 1:
        raise UsageError(f"--budget is {budget}; expected images per work, at least 1.")
    chosen = tuple(dict.fromkeys(search or ("captions", "paraphrases")))
    unknown = [name for name in chosen if name not in SEARCHES]
    if unknown:
        raise UsageError(f"There is no search '{unknown[0]}'; expected {', '.join(SEARCHES)}.")
    if not {*chosen} - {MEASURE}:
        raise UsageError(
            "The search 'measure' makes no images to hold against the works; add captions, such as captions,measure."
        )
    experiment = ClaimExperiment(
        source, searched, settings or Generation(), budget, chosen, paraphrases or word_variants, inversion
    )
    return run_experiment(experiment, out, Options(retry_errors, silent))


def _refuse(**given: Any) -> None:
    names = [f"--{name}" for name, value in given.items() if value is not None]
    if names:
        raise UsageError(f"{', '.join(names)} belongs to a model; these images are there already.")


def _of_images(source: Any, log: str | Path | None, searched: Searched, out: str | Path | None) -> Run:
    from diffmem.runs.directory import RunDirectory

    images = images_of(source)
    known, notes = read_log(images, source, log)
    plan = {"claim": {"fdr": searched.fdr, "descriptor": searched.descriptor}}
    directory = RunDirectory(out, plan, {"images": images.fingerprint, **searched.fingerprints})
    searched.open(directory.path)
    searched.look("images", images, known)

    def opener(places: Sequence[Place]) -> dict[Place, tuple[Any, dict[str, Any]]]:
        found = {}
        for place in places:
            item, about = images.by_id(place[1]), known.get(place[1], Logged())
            found[place] = (item.image, {"digest": item.digest, "prompt": about.prompt, "seed": about.seed})
        return found

    summary = searched.summary(images.name, directory.path, opener, tuple(notes))
    summary.write(directory.path)
    return Run(directory.path, "claim", summary, keep=directory)
