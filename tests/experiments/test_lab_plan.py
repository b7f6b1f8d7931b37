"""A lab's plan: which cells it spans, which trainings they share, and what is said of a wrong one."""

from __future__ import annotations

from importlib.resources import files

import pytest

from diffmem.errors import UsageError
from diffmem.experiments.lab.cell import training_name
from diffmem.experiments.lab.factors import parse_duplication, parse_treatment
from diffmem.experiments.lab.plan import LabPlan, cells_of
from diffmem.training.plan import check_plan, load_plan


def plan_of(**sections):
    train = {"model": {"base": "given"}, "data": {"images": "given"}, "optimizer": {"steps": 2}}
    return check_plan({"train": train, **sections}, LabPlan, "a test")


def test_grid_is_the_product_with_seeds_last_and_further_cells_once():
    plan = plan_of(
        seeds=[3, 4], grid={"duplication": ["nodup", "dup_both:weight=7"], "captions": ["instance", "class"]},
        cell=[{"mitigation": "train:MC"}, {"captions": "class"}],
    )  # fmt: skip
    names = [(c.duplication, c.captions, c.mitigation, c.seed) for c in cells_of(plan)]
    assert len(names) == len(set(names)) == 2 * 5  # the second further cell is in the grid already
    assert names[0] == ("nodup", "instance", "none", 3)
    assert names[-1] == ("nodup", "instance", "train:MC", 4)
    weights = {c.duplication: c.training.duplication.weight for c in cells_of(plan)}
    assert weights["dup_both:weight=7"] == 7


def test_mitigations_at_inference_share_the_training_of_their_cell():
    plan = plan_of(
        grid={"mitigation": ["none", "random-tokens:count=2", "train:RT", "train:RT + embedding-noise:strength=0.5"]}
    )
    plain, tokens, trained, both = cells_of(plan)
    assert training_name(plain.training) == training_name(tokens.training)
    assert training_name(trained.training) == training_name(both.training) != training_name(plain.training)
    assert trained.training.changes.token_addition == 0.1  # the paper's rate
    assert [m.name for m in both.treatment.inference] == ["embedding-noise"]


def test_settings_that_mean_nothing_without_duplication_are_one_training():
    plan = plan_of(grid={"duplication": ["nodup", "nodup:weight=9", "dup_both:weight=9"]})
    names = [training_name(cell.training) for cell in cells_of(plan)]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (parse_duplication, "dup_bth", "regime"),
        (parse_duplication, "dup_both:wieght=3", "Did you mean 'weight'"),
        (parse_duplication, "dup_both:weight=.5", "weight"),
        (parse_duplication, "dup_both:weight", "no key=value"),
        (parse_treatment, "train:XX", "expected train: and one of MC"),
        (parse_treatment, "train:multiple_caption=3", "Did you mean 'multiple_captions'"),
        (parse_treatment, "train:caption_replacement=3", "caption_replacement"),
        (parse_treatment, "random-token", "random-tokens"),
    ],
)
def test_wrong_texts_are_refused_with_what_was_expected(parse, text, said):
    with pytest.raises(UsageError, match=said):
        parse(text)


def test_unknown_key_caption_regime_and_seeds_are_refused():
    with pytest.raises(UsageError, match="Did you mean 'heldout'"):
        plan_of(measure={"held_out": "x"})
    with pytest.raises(UsageError, match="captions 'title'"):
        cells_of(plan_of(grid={"captions": ["title"]}))
    for seeds in ([], [1, 1]):
        with pytest.raises(UsageError, match="seeds"):
            cells_of(plan_of(seeds=seeds))


@pytest.mark.parametrize("name", ["digits", "gpu"])
def test_plans_that_ship_are_sound(name):
    plan = load_plan(str(files("diffmem.experiments.lab") / "plans" / f"{name}.toml"), LabPlan)
    assert len(cells_of(plan)) >= 6
