"""Published weights from the network into the user's cache, kept only if their SHA-256 is the expected one."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from diffmem.errors import ModelError

_OFFLINE = ("HF_HUB_OFFLINE", "DIFFMEM_OFFLINE")
_SECONDS = 60


def cache_folder() -> Path:
    """`DIFFMEM_CACHE`, or `diffmem` in `XDG_CACHE_HOME` (by default ~/.cache)."""
    if chosen := os.environ.get("DIFFMEM_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffmem"


def fetch(url: str, sha256: str | None, cache: str | Path | None = None) -> Path:
    """The file behind a URL, downloaded once.

    Args:
        url: where it is published.
        sha256: expected checksum; a download that differs is deleted. None keeps whatever comes.
        cache: folder to keep it in; by default `cache_folder()`.

    Returns:
        The path of the file in the cache.

    Raises:
        ModelError: offline, no answer, or a wrong checksum.
    """
    target = Path(cache or cache_folder()) / url.rsplit("/", 1)[-1]
    if target.is_file():
        return target
    switch = next((name for name in _OFFLINE if os.environ.get(name, "0") not in ("", "0")), None)
    if switch is not None:
        raise ModelError(f"'{target}' is not there and {switch} forbids downloads; get {url} and put it there.")
    target.parent.mkdir(parents=True, exist_ok=True)
    state = hashlib.sha256()
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            while piece := answer.read(1 << 20):
                file.write(piece)
                state.update(piece)
        if sha256 is not None and state.hexdigest() != sha256.lower():
            raise ModelError(f"{url} has SHA-256 {state.hexdigest()}; expected {sha256}. The download was deleted.")
        Path(name).replace(target)
    except (urllib.error.URLError, TimeoutError) as error:
        raise ModelError(f"Cannot download {url}: {error}; get it elsewhere and put it at '{target}'.") from error
    finally:
        Path(name).unlink(missing_ok=True)
    return target
