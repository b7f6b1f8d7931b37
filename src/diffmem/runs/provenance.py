"""Where numbers come from: versions, hardware, revision. No user names, no host names."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from diffmem import __version__

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "peft",
    "numpy",
    "scipy",
    "scikit-learn",
    "pyarrow",
)


class GitState(BaseModel):
    """The revision of the folder a command ran in; `dirty` says that tracked files differed from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    revision: str
    dirty: bool


class Hardware(BaseModel):
    """What the numbers were computed on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    cores: int
    memory_bytes: int
    gpus: tuple[str, ...]


class Provenance(BaseModel):
    """Versions, platform, hardware and revision of one process; packages that are not installed are null."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    diffmem: str
    python: str
    packages: dict[str, str | None]
    platform: str
    hardware: Hardware
    git: GitState | None


def provenance(folder: str | Path = ".") -> Provenance:
    """Collect the provenance of this process.

    GPU names are read only where torch is already imported: this function costs milliseconds and imports nothing heavy.

    Args:
        folder: the folder whose git revision counts.
    """
    return Provenance(
        diffmem=__version__,
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        hardware=Hardware(
            cpu=_cpu(), cores=_cores(), memory_bytes=int(psutil.virtual_memory().total), gpus=tuple(_gpus())
        ),
        git=git_state(folder),
    )


def git_state(folder: str | Path = ".") -> GitState | None:
    """Revision and dirty flag of a folder under git; None without git, outside a repository or before a first commit."""

    def ask(*words: str) -> str:
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        command = ["git", "-C", str(folder), *words]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=10, check=True, env=environment
        )
        return done.stdout.strip()

    try:
        return GitState(revision=ask("rev-parse", "--verify", "HEAD"), dirty=bool(ask("status", "--porcelain", "-uno")))
    except (OSError, subprocess.SubprocessError):
        return None  # a fact about the folder, recorded as such


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [str(torch.cuda.get_device_name(index)) for index in range(torch.cuda.device_count())]
