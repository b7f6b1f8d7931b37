"""Units of work on Ray: the rows of one process, whatever becomes of the workers."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from diffmem.errors import IncompleteRun, UsageError
from diffmem.models.target import Target
from diffmem.runs.runners import as_runner
from diffmem.runs.store import RunStore
from diffmem.runs.units import Report, Work
from diffmem.stages.generate import Generation, generate
from diffmem.stages.score.score import score

ray = pytest.importorskip("ray")

from diffmem.runs.ray_runner import RayRunner  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(
        num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    yield
    ray.shutdown()


@dataclass
class Touch(Work[tuple[int, ...]]):
    """Writes a file per number; some numbers end the worker, and some keep it for ever."""

    folder: Path
    deadly: tuple[int, ...] = ()
    endless: tuple[int, ...] = ()
    once: bool = False

    def open(self):
        return self._do

    def _do(self, unit):
        for number in unit:
            (self.folder / f"{number}.try").open("a").write("x")
            first = len((self.folder / f"{number}.try").read_text()) == 1
            if number in self.deadly and (first or not self.once):
                os.kill(os.getpid(), signal.SIGKILL)
            while number in self.endless:
                time.sleep(1)
            (self.folder / f"{number}.done").touch()
        return Report(done=len(unit))

    def left(self, unit):
        return tuple(n for n in unit if not (self.folder / f"{n}.done").exists()) or None

    def halves(self, unit):
        middle = len(unit) // 2
        return (unit[:middle], unit[middle:]) if middle else ()

    def fail(self, unit, reason):
        for number in unit:
            (self.folder / f"{number}.error").write_text(reason)
        return Report(done=len(unit), failed=len(unit))


def units(count, size):
    return [tuple(range(start, min(start + size, count))) for start in range(0, count, size)]


def names(folder, suffix):
    return sorted(int(path.stem) for path in folder.glob(f"*.{suffix}"))


def test_a_worker_that_is_killed_once_loses_nothing_and_repeats_only_what_it_had_not_finished(tmp_path):
    reports = list(RayRunner(workers=2).run(Touch(tmp_path, deadly=(5, 17), once=True), units(24, 6)))
    assert names(tmp_path, "done") == list(range(24)) and not names(tmp_path, "error")
    assert sum(report.failed for report in reports) == 0
    tries = {n: len((tmp_path / f"{n}.try").read_text()) for n in range(24)}
    assert {n for n, count in tries.items() if count > 1} == {5, 17}, "what was finished is not done again"


def test_an_item_that_no_worker_survives_or_gets_past_becomes_an_error_and_its_neighbours_do_not(tmp_path):
    work = Touch(tmp_path, deadly=(3,), endless=(9,))
    reports = list(RayRunner(workers=2, unit_seconds=2).run(work, units(12, 4)))
    assert names(tmp_path, "error") == [3, 9]
    assert names(tmp_path, "done") == [n for n in range(12) if n not in (3, 9)]
    assert sum(report.failed for report in reports) == 2
    assert "its worker ended" in (tmp_path / "3.error").read_text()
    assert "took more than 2 seconds" in (tmp_path / "9.error").read_text()


def test_workers_that_all_end_at_once_stop_the_command(tmp_path):
    with pytest.raises(IncompleteRun, match="without finishing anything"):
        list(RayRunner(workers=1).run(Touch(tmp_path, deadly=tuple(range(64))), [tuple(range(64))]))


class Refused(Touch):
    def open(self):
        raise UsageError("the model is not there")


def test_what_the_user_must_act_on_is_said_as_it_is_here(tmp_path):
    with pytest.raises(UsageError, match=r"^the model is not there$"):
        list(RayRunner(workers=1).run(Refused(tmp_path), units(2, 1)))


def linear():
    """A network of one's own, which pickles by itself."""
    return Target.from_callable(
        Halved(), (1, 4, 4), prediction="epsilon", schedule="linear", classes=10, null=9, device="cpu", generate=pictures
    )  # fmt: skip


class Halved:
    def __call__(self, x, t, cond):
        return x * (0.5 + cond["label"].reshape(-1, 1, 1, 1) / 20).to(x.dtype)


def pictures(prompts, seeds):
    if "3" in prompts:
        raise RuntimeError("no threes")
    return [Image.new("RGB", (8, 8), (int(p) * 20, s % 250, 7)) for p, s in zip(prompts, seeds, strict=True)]


def test_scores_and_images_on_ray_are_those_of_one_process(tmp_path):
    prompts = [str(i % 9) for i in range(700)]
    for name, runner in (("here", None), ("ray", "ray")):
        score(linear(), prompts, ["score-difference"], draws=2, out=tmp_path / name, runner=runner)
    columns = ["key", "prompt_id", "score", "draw", "value", "status", "micro_batch"]
    ours, theirs = (RunStore(tmp_path / name).read("scores", columns) for name in ("here", "ray"))
    assert ours.num_rows == 1400 and ours.equals(theirs), "equal bit for bit"
    again = score(linear(), prompts, ["score-difference"], draws=2, out=tmp_path / "ray", runner="ray")
    assert again.nfe.total == 0, "finished keys are subtracted first"
    settings = Generation(images_per_prompt=2, batch=8)
    made = [
        generate(linear(), prompts[:40], settings, out=tmp_path / name, runner=runner)
        for name, runner in (("here", None), ("ray", RayRunner(workers=2)))
    ]
    assert [(one.made, one.failed) for one in made] == [(70, 10)] * 2
    ours, theirs = (RunStore(tmp_path / name).read("images") for name in ("here", "ray"))
    assert ours.equals(theirs)


def test_wrong_names_and_missing_folders(tmp_path):
    with pytest.raises(UsageError, match="There is no runner 'dask'"):
        as_runner("dask")
    with pytest.raises(UsageError, match="give it"):
        score(linear(), ["1"], ["score-difference"], runner="ray")
    with pytest.raises(UsageError, match="belong to a runner"):
        as_runner(None, workers=2)
    with pytest.raises(UsageError, match="at least 1"):
        as_runner("ray", workers=0)
