"""What is installed, what is missing, and how to get it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffmem.copies.descriptors import DESCRIPTORS
from diffmem.errors import UsageError
from diffmem.models.bundled import BUNDLED_MODELS
from diffmem.models.versions import SILENTLY_WRONG, check_version

REQUIRED = ("torch", "diffusers", "transformers", "safetensors", "numpy", "scipy", "scikit-learn", "pyarrow", "pillow")
OPTIONAL = {"peft": "LoRA: pip install 'diffmem[lora]'", "matplotlib": "plots: pip install 'diffmem[plots]'"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    state: Literal["ok", "missing", "broken"]
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at Python, packages, devices, memory, disk and the bundled model."""
    findings = [_python(), *(_package(name) for name in REQUIRED)]
    findings += [_optional(name) for name in OPTIONAL]
    findings += [_torchvision(), _device(), _memory(), _disk(), _bundled()]
    return findings


def examine_extras(family: str | None = None) -> list[Finding]:
    """What a model of this family can use besides itself: LoRA support, caption cleaning, weights of descriptors."""
    findings = [_optional("peft")]
    if family == "pixart":
        cleaning = [_version(name) for name in ("ftfy", "beautifulsoup4")]
        remedy = "captions are cleaned only where both are installed: pip install ftfy beautifulsoup4"
        findings.append(
            Finding("ftfy, beautifulsoup4", "ok", ", ".join(map(str, cleaning)))
            if all(cleaning)
            else Finding("ftfy, beautifulsoup4", "missing", "not installed", remedy)
        )
    return findings + [_descriptor(name) for name in DESCRIPTORS]


def _optional(name: str) -> Finding:
    version = _version(name)
    return Finding(name, "ok", version) if version else Finding(name, "missing", "not installed", OPTIONAL[name])


def _descriptor(name: str) -> Finding:
    """Whether a descriptor's default weights lie on this machine; nothing is downloaded to find out."""
    found = DESCRIPTORS.get(name).weights()
    return Finding(f"descriptor {name}", "ok" if found.there else "missing", found.where, found.remedy)


def _python() -> Finding:
    return Finding("python", "ok", ".".join(map(str, sys.version_info[:3])))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str) -> Finding:
    version = _version(name)
    if version is None:
        return Finding(name, "broken", "not installed", f"pip install -c constraints.txt {name}")
    if name in SILENTLY_WRONG:
        try:
            check_version(name, version)
        except UsageError as problem:
            return Finding(name, "broken", version, str(problem))
    return Finding(name, "ok", version)


def _torchvision() -> Finding:
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "ok", "absent (not needed)")
    try:
        version = importlib.import_module("torchvision").__version__
    except (ImportError, RuntimeError) as problem:
        remedy = "pip uninstall torchvision: a build that does not match torch breaks diffusers' pipelines"
        return Finding("torchvision", "broken", str(problem).splitlines()[0], remedy)
    return Finding("torchvision", "ok", str(version))


def _device() -> Finding:
    if _version("torch") is None:
        return Finding("device", "broken", "unknown without torch", "install torch first")
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("device", "ok", f"cuda: {names}")
    if torch.backends.mps.is_available():
        return Finding("device", "ok", "mps")
    return Finding("device", "ok", f"cpu only, {torch.get_num_threads()} threads of {os.cpu_count()} cores")


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    return Finding("memory", "ok", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < 1:
        return Finding("disk", "broken", f"{free:.2f} GiB free here", "free some space; runs keep their images here")
    return Finding("disk", "ok", f"{free:.0f} GiB free here")


def _bundled() -> Finding:
    folder = BUNDLED_MODELS.get("digits")()
    if not (folder / "model_index.json").exists():
        return Finding("bundled model", "broken", f"nothing in {folder}", "install diffmem again")
    return Finding("bundled model", "ok", "testbed:digits")
