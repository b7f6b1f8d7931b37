"""What a session shows: every public object in a short line and a short table, progress where there is a kernel."""

from __future__ import annotations

import contextlib
import inspect
import subprocess
import sys
import types
import typing
from html.parser import HTMLParser

import numpy as np
import pytest

import diffmem as dm
from diffmem.experiments._arm import Arm
from diffmem.experiments._experiment import ArmResult
from diffmem.notebook import is_silent
from diffmem.stages.score.screen import screen
from tests.experiments.test_lab_plan import plan_of as lab_plan
from tests.fixtures.runs_0_1_0.make import HERE, copied
from tests.measuring import memorizer, strangers
from tests.tiny import picture, tiny_sd
from tests.training.test_training import pictures, plan_of

LONGEST = 1000
"""Characters that a session should have to print for an object."""
OLD_RUNS = sorted(place.name for place in HERE.iterdir() if place.is_dir() and place.name[0] != "_")
BLUEPRINTS = ("Experiment",)
"""Classes that one derives from; there is nothing of them to print."""


def public_classes():
    """Classes of the front door and the rooms, and what the verbs return."""
    verbs = [getattr(dm, name) for name in (*dm._DOOR, *dm._VERBS)]
    rooms = [getattr(dm, room) for room in ("copies", "experiments", "training")]
    given = [*verbs, *(getattr(room, name) for room in rooms for name in dir(room))]
    classes = {thing for thing in given if inspect.isclass(thing)}
    for function in (inspect.unwrap(thing) for thing in verbs if not inspect.isclass(thing)):
        returned = eval(function.__annotations__["return"], dict(vars(sys.modules[function.__module__])))
        classes |= {part for part in (returned, *typing.get_args(returned)) if inspect.isclass(part)}
    return {c for c in classes if c.__module__.startswith("diffmem.") and c.__name__ not in BLUEPRINTS}


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """One of every public class, with more in it than fits a line."""
    folder = tmp_path_factory.mktemp("shown")
    target = dm.Target.from_pipeline(tiny_sd(), name="tiny " * 30)
    target.notes.append("a note on the model " * 30)
    texts = [f"a fox of number {i} in the snow" for i in range(300)]
    prompts, images = dm.load_prompts(texts), [picture(i) for i in range(40)]
    calibrated = dm.calibrate(target, texts[:40], "text-uppercase", fpr=0.1)
    matching = dm.experiments.Matching(descriptor="l2-tiled")
    index = dm.index(images, folder / "index", descriptor="l2-tiled")
    generation = dm.experiments.Generation(images_per_prompt=1, sampling=dm.Sampling(steps=1))
    made = [dm.open_run(copied(verb, folder / "old")) for verb in OLD_RUNS]
    audited = next(run for run in made if run.verb == "audit")
    sealed = dm.seal(audited, folder / "sealed.zip")
    arm = Arm("none", lambda: target, prompts, generation)
    planted, pixels = memorizer()
    measured = dm.measure(planted, pixels, ["loss"], heldout=strangers(24), trained=True, out=folder / "m")
    trained = dm.train(
        plan_of(steps=1), folder / "t", data=pictures(), target=dm.Target.from_pipeline(tiny_sd()), device="cpu"
    )
    return [
        target, prompts, dm.load_images(images), generation.sampling, generation, matching, index, calibrated,
        screen(target, prompts, calibrated), dm.score(target, prompts, ["text-uppercase", "text-ngram"]),
        measured, dm.curate(dm.load_images(pixels), folder / "m", folder / "curated"),
        dm.match(images, index), *made, *(run.summary for run in made), dm.compare(audited, audited),
        *dm.export(audited, csv=folder / "csv"), sealed, dm.verify(sealed.path), dm.generate(target, texts[:1], generation),
        *dm.localize(target, ["a b"], draws=1), arm, ArmResult(arm), dm.experiments.Reference.of(images, None, matching),
        dm.experiments.Options(), dm.guard(target, threshold=dm.guard.calibrate(target, texts[:40], fpr=0.1)),
        trained, plan_of(steps=1), dm.training.Monitor(images, folder / "monitor"), index,
        dm.copies.CopyRule("similarity", 0.5), lab_plan(), dm.experiments.MonitorPlan(), dm.experiments.RobustnessPlan(),
    ]  # fmt: skip


def test_every_public_object_is_shown_in_a_short_line(objects):
    classes = {type(thing) for thing in objects}
    assert len(public_classes()) > 20 and not public_classes() - classes
    for thing in objects:
        text = repr(thing)
        assert type(thing).__name__ in text and " at 0x" not in text and "\n" not in text
        assert len(text) < LONGEST, text


def test_what_verbs_take_and_give_is_a_short_table_in_notebooks(objects):
    kinds = (dm.Target, dm.experiments.Run, Arm, ArmResult, dm.experiments.Reference, dm.guard)
    results = {
        c
        for c in public_classes()
        if c.__name__.endswith(("Result", "Matches", "Calibration", "Comparison", "Set", "List"))
    }
    shown = [thing for thing in objects if hasattr(thing, "_repr_html_")]
    assert not {*kinds, *results} - {type(thing) for thing in shown}
    for thing in shown:
        text = thing._repr_html_()
        assert 80 < len(text) < 4 * LONGEST, text
        reader = Balanced()
        reader.feed(text)
        assert reader.rows and not reader.open
        for heading, value in thing.shown_facts().items():
            assert isinstance(heading, str) and " at 0x" not in str(value), heading


class Balanced(HTMLParser):
    """Reads a table; every tag that it opens is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.rows = [], 0

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)
        self.rows += tag == "tr"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_what_people_named_cannot_become_markup():
    target = dm.Target.from_pipeline(tiny_sd(), name="<script>alert(1)</script>")
    target.notes.append("<b>")
    assert "<script>" not in target._repr_html_() and "<b>" not in target._repr_html_()


@contextlib.contextmanager
def shell(module):
    """IPython as it lies in sys.modules where it runs; it is not among the dependencies."""
    sys.modules["IPython"] = module
    try:
        yield
    finally:
        del sys.modules["IPython"]


@pytest.mark.skipif("IPython" in sys.modules, reason="these tests run in a notebook")
def test_progress_shows_by_default_in_a_kernel_only(capsys):
    kernel, terminal = types.SimpleNamespace(kernel=object()), types.SimpleNamespace()
    assert is_silent(None) and is_silent(True) and not is_silent(False)
    images = [np.asarray(picture(i)) for i in range(3)]
    for instance, says in ((kernel, True), (terminal, False), (None, False)):
        with shell(types.SimpleNamespace(get_ipython=lambda instance=instance: instance)):
            assert is_silent(None) is not says and is_silent(True) and not is_silent(False)
            dm.match(images, images)
        assert ("matching 3/3 images" in capsys.readouterr().err) is says


def test_a_script_that_has_imported_nothing_of_ipython_imports_it_not():
    code = "import sys, diffmem.notebook as n; assert n.is_silent(None); print('IPython' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
