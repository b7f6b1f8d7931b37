"""A fine-tune against its base: both audited on the same prompts and noises, then compared pair by pair."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diffmem.atomic import locked
from diffmem.copies.rule import CopyRule
from diffmem.errors import ModelError, UsageError
from diffmem.evaluation.paired import mean_difference
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.experiments._arm import Arm, Reference
from diffmem.experiments._experiment import Experiment, Results, run_experiment
from diffmem.experiments._run import Run
from diffmem.experiments.against.summary import BASE, TUNED, AgainstSummary, Leak, Where, headline
from diffmem.experiments.audit.experiment import AuditExperiment
from diffmem.experiments.evaluate.compare import compare_runs
from diffmem.experiments.evaluate.runs import RunScores, prompt_groups, read_scores
from diffmem.models.target import Target
from diffmem.report.html import write_report
from diffmem.report.redaction import Redaction
from diffmem.runs.facts import read_fact, write_fact
from diffmem.runs.manifest import FILE, read_manifest
from diffmem.runs.store import RunStore
from diffmem.runs.summary import ArmPlace
from diffmem.scores import SCORES
from diffmem.scores.spec import parse_score


def audit_against(
    tuned: AuditExperiment, open_base: Callable[[], Target], out: str | Path | None, redact: Redaction
) -> Run:
    """The same audit of a fine-tune and of its base, one model in memory at a time; `diffmem.audit(..., base=...)`.

    Raises:
        ModelError: both are the same model.
        UsageError: no folder, or one that is a run directory itself.
    """
    if out is None:
        raise UsageError("Two audits need a folder: give out=.")
    folder = Path(out)
    if (folder / FILE).exists() and "score" in read_manifest(folder).plan:
        raise UsageError(f"'{out}' is the run directory of another audit; give a folder that is to hold two (--out).")
    experiment = AgainstExperiment(
        replace(tuned, open=open_base, name=BASE, place=BASE), replace(tuned, name=TUNED, place=TUNED), folder,
    )  # fmt: skip
    run = run_experiment(experiment, folder, tuned.options)
    if tuned.options.shard is not None:
        return run
    for name in (BASE, TUNED):
        write_report(folder / name, redact)
    run.report(redact)
    return run


@dataclass
class AgainstExperiment(Experiment[AgainstSummary]):
    """Two audits as arms: the model is what distinguishes them."""

    base: AuditExperiment
    tuned: AuditExperiment
    folder: Path
    reference: Reference | None = None
    judge: TextAlignment | None = None

    describes: ClassVar[bool] = False

    def identity(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Each arm keeps its own model; the folder keeps the prompts."""
        return {"against": {}}, {"prompts": self.base.prompts.fingerprint}

    def arms(self, results: Results) -> Iterator[Arm]:
        """The base first; the fine-tune must differ from it."""
        yield self.base.arm()
        gc.collect()  # the next model takes this one's place in memory
        with locked(self.folder / ".index.lock"):  # several shards may be here at once
            if (self.folder / BASE / "index").exists() and not (self.folder / TUNED / "index").exists():
                shutil.copytree(self.folder / BASE / "index", self.folder / TUNED / "index")  # described once
        yield replace(self.tuned.arm(), open=self._open_tuned)

    def _open_tuned(self) -> Target:
        target = self.tuned.open()
        if target.fingerprint == read_manifest(self.folder / BASE).fingerprints.get("model"):
            raise ModelError(f"'{target.name}' has the weights of its base: the LoRA changes nothing, or is not in it.")
        return target

    def summarize(self, results: Results, arms: tuple[ArmPlace, ...]) -> AgainstSummary:
        """What leaks with the LoRA and not with the base, as soon as both are there."""
        if TUNED not in results:
            name = read_fact(self.folder / BASE, "model") or {}
            return AgainstSummary(
                headline="The base is audited; the fine-tune is not yet.", arms=arms, lora="", base=str(name.get("name")),
                prompts=None, images=None, training_images=None, differences=(), leaks=(),
            )  # fmt: skip
        summary = compare_leaks(self.folder / TUNED, self.folder / BASE, self.tuned.scoring.seed)
        write_fact(self.folder / TUNED, "against", {"name": summary.base, "page": "../comparison.html"})
        return summary.model_copy(update={"arms": arms})


def compare_leaks(lora: Path, base: Path, seed: int = 0) -> AgainstSummary:
    """What a run of a fine-tune shows that one of its base does not, from both run directories.

    Args:
        lora: run directory of the fine-tune.
        base: run directory of its base, made with the same prompts, seeds and training set.
        seed: of the resampling of prompts.
    """
    one, two = read_scores(lora), read_scores(base)
    common = [p for p, row in one.prompts.items() if two.prompts.get(p, {}).get("text") == row["text"]]
    counts = {name: _copies(folder) for name, folder in ((TUNED, lora), (BASE, base))}
    searched = all(entry is not None for entry in counts.values())
    leaks = _leaks(common, one, counts[TUNED] or {}, counts[BASE] or {})
    images = [_where(a[0], b[0]) for a, b in _pairs(counts[TUNED] or {}, counts[BASE] or {}, common)]
    of = {name: {g for judged in (counts[name] or {}).values() for c, g, _ in judged.values() if c} for name in counts}
    rows = [row for row in compare_runs(lora, base, seed=seed) if row["what"] != "AUROC"]
    tally = _tally([leak.where for leak in leaks]) if searched else None
    copied = _tally([_where(g in of[TUNED], g in of[BASE]) for g in of[TUNED] | of[BASE]]) if searched else None
    return AgainstSummary(
        headline=headline(tally, copied), lora=_name(lora), base=_name(base), prompts=tally,
        images=_tally(images) if searched else None, training_images=copied,
        differences=tuple(rows + _score_differences(one, two, common, seed)),
        leaks=tuple(leak for leak in leaks if leak.where != "neither"),
        limits=tuple(_limits(leaks, searched, [folder for folder in (lora, base) if not _calibrated(folder)])),
    )  # fmt: skip


def _name(folder: Path) -> str:
    return str((read_fact(folder, "model") or {}).get("name") or folder.name)


Judged = tuple[bool, str, str]
"""Of one image: whether it is called a copy, the group of its nearest training image, that image's id."""


def _copies(folder: Path) -> dict[str, dict[int, Judged]] | None:
    """Prompt id -> draw -> what became of the image; None where no training set was searched."""
    fact = read_fact(folder, "copies")
    if fact is None or fact["threshold"] is None:
        return None
    rule = CopyRule.of_fact(fact["threshold"])
    found: dict[str, dict[int, Judged]] = {}
    for table in RunStore(folder).stream("matches"):
        for row in table.to_pylist():
            if row["status"] == "ok" and row["rank"] == 1:
                judged = (rule.is_copy(row), str(row["group"]), str(row["train_id"]))
                found.setdefault(row["prompt_id"], {})[row["draw"]] = judged
    return found


def _pairs(
    lora: Mapping[str, Mapping[int, Judged]], base: Mapping[str, Mapping[int, Judged]], prompts: Sequence[str]
) -> list[tuple[Judged, Judged]]:
    """Images of both models from the same prompt and the same initial noise."""
    return [(lora[p][d], base[p][d]) for p in prompts for d in lora.get(p, {}) if d in base.get(p, {})]


def _leaks(
    prompts: Sequence[str],
    scores: RunScores,
    lora: Mapping[str, Mapping[int, Judged]],
    base: Mapping[str, Mapping[int, Judged]],
) -> list[Leak]:
    """Prompts judged in both runs, those that leak only with the LoRA first, then by falling number of copies."""
    found = []
    for p in prompts:
        if p not in lora or p not in base:
            continue
        hits = [{d: j for d, j in run[p].items() if j[0]} for run in (lora, base)]
        found.append(
            Leak(
                prompt_id=p, prompt=scores.prompts[p]["text"], where=_where(bool(hits[0]), bool(hits[1])),
                lora_copies=len(hits[0]), lora_images=len(lora[p]), base_copies=len(hits[1]), base_images=len(base[p]),
                draw=min(hits[0] or hits[1], default=None),
                train_ids=tuple(dict.fromkeys(j[2] for h in hits for j in h.values())),
            )
        )  # fmt: skip
    order = {"lora_only": 0, "both": 1, "base_only": 2, "neither": 3}
    return sorted(found, key=lambda leak: (order[leak.where], -leak.lora_copies, leak.prompt_id))


def _where(lora: bool, base: bool) -> Where:
    if lora:
        return "both" if base else "lora_only"
    return "base_only" if base else "neither"


def _tally(places: Sequence[Where]) -> dict[str, int]:
    names: tuple[Where, ...] = ("lora_only", "both", "base_only", "neither")
    return {name: places.count(name) for name in names}


def _score_differences(one: RunScores, two: RunScores, prompts: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Mean change of every score of a prompt in the model; scores of a set are standardized within each run."""
    groups = prompt_groups({p: one.prompts[p] for p in prompts})
    rows = []
    for label, values in one.values.items():
        name = label.partition(":")[0]
        if label not in two.values or (name in SCORES and parse_score(label).reads != "network"):
            continue
        shared = [p for p in prompts if p in values and p in two.values[label]]
        if len({groups[p] for p in shared}) < 2:
            continue
        first, second = (np.array([v[p].mean() for p in shared]) for v in (values, two.values[label]))
        difference, low, high = mean_difference(first, second, [groups[p] for p in shared])
        rows.append(
            {"what": f"mean of {label}", "first": float(first.mean()), "second": float(second.mean()),
             "difference": difference, "low": low, "high": high, "p_value": None, "reason": None, "prompts": len(shared)}
        )  # fmt: skip
    return rows


def _calibrated(folder: Path) -> bool:
    threshold = (read_fact(folder, "copies") or {}).get("threshold")
    return bool(threshold and threshold["calibrated"])


def _limits(leaks: Sequence[Leak], searched: bool, uncalibrated: Sequence[Path]) -> list[str]:
    if not searched:
        return [
            "No training set was searched, so it cannot be known what either model copies; scores only are compared."
        ]
    limits = []
    images = min((leak.base_images for leak in leaks if leak.where == "lora_only"), default=0)
    if images:
        most = clopper_pearson(0, images)[1]
        limits.append(
            f"'With the LoRA only' means that none of the base's {images} images per prompt was called a copy; that many "
            f"images leave rates of up to {100 * most:.0f} % per image open (95 % Clopper-Pearson)."
        )
    rates = (
        "calibrated on the same images; its false positives are in both columns"
        if not uncalibrated
        else "which is NOT CALIBRATED: how many copies are called wrongly is unknown, in either column; give held-out images "
        "(--heldout)"
    )
    limits.append(
        f"Both models were given the same initial noises, and copies are called at each run's own threshold, {rates}."
    )
    return limits
