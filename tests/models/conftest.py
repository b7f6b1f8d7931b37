"""A tiny Stable Diffusion on disk."""

import shutil

import pytest
from tests.tiny import tiny_sd


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Its folder; not to be changed."""
    folder = tmp_path_factory.mktemp("model") / "sd"
    tiny_sd().save_pretrained(folder)
    return folder


@pytest.fixture()
def folder(saved, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(saved, tmp_path / "m")
