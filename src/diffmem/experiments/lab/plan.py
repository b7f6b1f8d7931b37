"""What a lab is: a plan in TOML that spans a grid of cells, checked before anything starts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from diffmem.copies.descriptors import PIXEL_DESCRIPTOR
from diffmem.copies.statistics import Statistic
from diffmem.errors import UsageError
from diffmem.experiments.lab.factors import Duplication, Treatment, parse_duplication, parse_treatment
from diffmem.models.generation import Sampling
from diffmem.renamed import RenamedFields
from diffmem.training.plan import ChangesPlan, DataPlan, DuplicationPlan, ModelPlan, OptimizerPlan, Section, TrainPlan

CAPTIONS = ("instance", "class", "fixed", "random", "none")


class TrainSection(Section):
    """What all trainings share; `diffmem train` knows the same keys."""

    model: ModelPlan
    data: DataPlan
    optimizer: OptimizerPlan
    duplication: DuplicationPlan = DuplicationPlan()
    changes: ChangesPlan = ChangesPlan()
    checkpoint_every: int = Field(500, ge=1)


class GenerateSection(RenamedFields, Section):
    """Images of every cell: one per training image drawn, under that image's first caption."""

    new_names: ClassVar[Mapping[str, str]] = {"images": "images_per_cell"}

    images_per_cell: int = Field(200, ge=2, description="images generated in each cell, per seed")
    seed: int = Field(0, description="of the initial noises and of which training images are prompted")
    batch: int = Field(64, ge=1)
    sampling: Sampling = Sampling()


class MeasureSection(RenamedFields, Section):
    """How copies are decided and the rest is measured."""

    new_names: ClassVar[Mapping[str, str]] = {"false_positives": "fpr"}

    heldout: str | None = Field(None, description="images that no training sees; for the threshold and the quality")
    descriptor: str = PIXEL_DESCRIPTOR
    descriptor_options: dict[str, Any] = Field(default_factory=dict)
    statistic: Statistic | None = None
    fpr: float = Field(0.01, gt=0, lt=1)
    text_alignment: str | None = Field(None, description="clip:FOLDER, digits or photos; none: alignment is not judged")


class GridSection(Section):
    """Every combination is a cell."""

    duplication: tuple[str, ...] = ("nodup",)
    captions: tuple[str, ...] = ("instance",)
    mitigation: tuple[str, ...] = ("none",)


class CellSection(Section):
    """One more cell; what it leaves out is the first of the grid."""

    duplication: str | None = None
    captions: str | None = None
    mitigation: str | None = None


class LabPlan(Section):
    """A whole lab."""

    name: str = "copying lab"
    seeds: tuple[int, ...] = (0,)
    train: TrainSection
    generate: GenerateSection = GenerateSection()
    measure: MeasureSection = MeasureSection()
    grid: GridSection = GridSection()
    cell: tuple[CellSection, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One combination of the grid under one seed.

    Attributes:
        duplication, captions, mitigation: as the plan writes them.
        seed: root seed of the training.
        training: the training that it rests on; cells that differ in an inference-time mitigation share one.
        treatment: the mitigation, parsed.
    """

    duplication: str
    captions: str
    mitigation: str
    seed: int
    training: TrainPlan
    treatment: Treatment

    @property
    def name(self) -> str:
        """The combination without the seed."""
        return f"{self.duplication} / {self.captions} / {self.mitigation}"


def cells_of(plan: LabPlan) -> list[Cell]:
    """All cells, seeds last: the grid's combinations in their order, then the further ones, each once.

    Raises:
        UsageError: an unknown duplication, caption regime or mitigation; no seeds, or a seed twice.
    """
    if not plan.seeds or len(set(plan.seeds)) != len(plan.seeds):
        raise UsageError(f"seeds = {list(plan.seeds)}; expected at least one, each once.")
    grid = plan.grid
    if not (grid.duplication and grid.captions and grid.mitigation):
        raise UsageError("grid: a list is empty; leave it out, or give at least one value.")
    combinations = list(itertools.product(grid.duplication, grid.captions, grid.mitigation))
    combinations += [
        (c.duplication or grid.duplication[0], c.captions or grid.captions[0], c.mitigation or grid.mitigation[0])
        for c in plan.cell
    ]
    found = []
    for duplication, captions, mitigation in dict.fromkeys(combinations):
        if captions not in CAPTIONS:
            raise UsageError(f"captions '{captions}'; expected one of {', '.join(CAPTIONS)}.")
        repeated, treatment = parse_duplication(duplication), parse_treatment(mitigation)
        for seed in plan.seeds:
            training = _training(plan.train, captions, repeated, treatment, seed)
            found.append(Cell(duplication, captions, mitigation, seed, training, treatment))
    return found


def _training(
    shared: TrainSection, captions: str, repeated: Duplication, treatment: Treatment, seed: int
) -> TrainPlan:  # fmt: skip
    values = shared.model_dump()
    values["seed"] = seed
    values["data"] |= {"captions": captions}
    values["duplication"] |= repeated.changes
    if values["duplication"]["regime"] == "nodup":
        # Share and weight mean nothing there: cells that differ in them only are one training.
        values["duplication"] = DuplicationPlan().model_dump()
    values["changes"] |= treatment.training
    return TrainPlan.model_validate(values)
