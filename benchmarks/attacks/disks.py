"""Full and read-only file systems under every verb that writes: a sentence, nothing lost, and the same command goes on.

    python benchmarks/attacks/disks.py [--trials 100] [--seed 0] [--seconds 300]

Real ones where this process may mount (a tmpfs in a namespace of its own), else a limit on the size of files alone, which a
process can always set for itself; the result says which were tried.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from common import Inputs, Tally, command, opened_once, print_campaign
from flips import commands as of_verb
from flips import contents, difference

VERBS = ("score", "generate", "match", "measure", "audit")
NEWNS = 0x00020000


class Disk:
    """A folder on a file system of a size of our own, or a limit on the size of files where nothing can be mounted."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.mounts = self._mount(64 << 20)

    def _mount(self, size):
        if ctypes.CDLL(None, use_errno=True).unshare(NEWNS):
            return False
        private = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True)
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "attacks", self.folder], capture_output=True
        )
        return private.returncode == made.returncode == 0

    def remount(self, options):
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True, capture_output=True)

    @contextlib.contextmanager
    def full_after(self, size, files):
        """Room for `size` bytes more (or files of `size` bytes at most, where nothing is mounted or `files` is set)."""
        if self.mounts and not files:
            used = shutil.disk_usage(self.folder).used
            self.remount(f"size={used + size}")
            try:
                yield
            finally:
                self.remount(f"size={64 << 20}")
            return
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    @contextlib.contextmanager
    def read_only(self):
        self.remount("ro")
        try:
            yield
        finally:
            self.remount("rw")


def full(tally, disk, inputs, verb, truth, chance):
    """A run on a disk that fills up, then the same commands with room."""
    run, size, files = disk.folder / "run", int(2 ** chance.uniform(6, 17)), chance.random() < 0.4
    kind = "files may not grow" if files or not disk.mounts else "full disk"
    label = f"{verb}, {kind}: {size} bytes"
    with disk.full_after(size, files):
        for words in of_verb(inputs, verb, run):
            code, _, err = command(*words)
            if code:
                break
    if code == 70 or (code and not err.strip()):
        tally.add(f"{kind}: exit {code}", f"{label} {err.strip()[-200:]}", wrong=True)
        return
    for words in of_verb(inputs, verb, run):
        again, _, err = command(*words)
        if again:
            tally.add(f"{kind}: not resumed", f"{label} {err.strip()[-200:]}", wrong=True)
            return
    found = difference(truth, contents(run))
    if found:
        tally.add(f"{kind}: other numbers", f"{label} {found}", wrong=True)
    else:
        tally.add(f"{kind}: {'had room' if code == 0 else 'said, and gone on with'}")


def read_only(tally, disk, inputs, verb, truth):
    """A whole run on a read-only file system: readers read, writers say so."""
    run = disk.folder / "run"
    for words in of_verb(inputs, verb, run):
        assert command(*words)[0] == 0
    elsewhere = disk.folder.parent / "page.html"
    with disk.read_only():
        tries = [("show", run), ("report", run, "--out", elsewhere), ("report", run), *of_verb(inputs, verb, run),
                 *of_verb(inputs, verb, disk.folder / "new")]  # fmt: skip
        for words in tries:
            code, _, err = command(*words)
            label = f"read-only: {words[0]}"
            told = any(words in err for words in ("Read-only", "no run directory", "no page", "does not exist"))
            if code == 70 or (code and not told):
                tally.add(f"{label}: exit {code}", err.strip()[-300:], wrong=True)
            else:
                tally.add(f"read-only: {'done' if code == 0 else 'refused, said'}")
    found = difference(truth, contents(run))
    if found:
        tally.add("read-only: changed", found, wrong=True)


def run(trials=100, seed=0, seconds=None):
    """The campaign: {"trials", "failures", ...}."""
    tally, chance, begun = Tally("disks"), random.Random(seed), time.time()
    with tempfile.TemporaryDirectory() as scratch, opened_once():
        folder = Path(scratch)
        inputs = Inputs.make(folder / "inputs")
        disk = Disk(folder / "disk")
        truth = {}
        for verb in VERBS:
            for words in of_verb(inputs, verb, folder / "runs" / verb):
                code, _, err = command(*words)
                assert code == 0, err
            truth[verb] = contents(folder / "runs" / verb)
        number = 0
        while sum(tally.outcomes.values()) < trials and (seconds is None or time.time() - begun < seconds):
            if disk.mounts and number % 10 >= 8:
                verb = VERBS[(number // 10) % len(VERBS)]
                read_only(tally, disk, inputs, verb, truth[verb])
            else:
                verb = VERBS[number % len(VERBS)]
                full(tally, disk, inputs, verb, truth[verb], chance)
            for place in disk.folder.iterdir():
                shutil.rmtree(place)
            number += 1
        if disk.mounts:
            subprocess.run(["umount", disk.folder], check=True)
    return tally.result(seed=seed, mounted=disk.mounts, seconds=round(time.time() - begun))


def main():
    print_campaign(run, __doc__, trials=100)


if __name__ == "__main__":
    main()
