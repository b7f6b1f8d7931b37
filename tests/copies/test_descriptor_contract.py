"""What every registered descriptor must keep to."""

import importlib.metadata

import numpy as np
import pytest

from diffmem.copies import descriptors
from diffmem.copies.descriptors import DEFAULT_DESCRIPTOR, DESCRIPTORS, PUBLISHED_DESCRIPTOR, make_descriptor
from diffmem.copies.descriptors.base import About, Descriptor, Weights
from diffmem.copies.descriptors.l2 import L2Tiled
from diffmem.copies.metrics import Metric
from diffmem.errors import UsageError
from diffmem.method import Parameters, parameters_class
from diffmem.report.methods import methods_page, one_descriptor

OFFLINE = [name for name in DESCRIPTORS if DESCRIPTORS.get(name).weights() == Weights(True, "needs no weights")]


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_it_says_what_a_reader_must_know(name):
    cls = DESCRIPTORS.get(name)
    about = cls.about
    assert about.name == name
    for text in (about.summary, about.formula, about.reference, about.cost, about.fails_when, about.misses):
        assert text
    assert 0 < cls.copy_similarity < 1 and 0 < cls.duplicate_cut < 1
    assert cls.weights().there or cls.weights().remedy
    for field, info in parameters_class(cls).model_fields.items():
        assert not info.is_required() and info.description, field
    assert f"## {name}\n" in methods_page()
    assert one_descriptor(name)["misses"] == about.misses


@pytest.mark.parametrize("name", OFFLINE)
def test_each_vector_depends_on_its_own_image_only(name):
    from tests.tiny import picture

    made = make_descriptor(name, side=8)
    images = [picture(i) for i in range(3)]
    together = made.describe(images)
    alone = np.concatenate([made.describe([image]) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert made.fingerprint == make_descriptor(name, side=8).fingerprint
    assert np.all(made.metric.exact(together, together) > 1 - 1e-6)


def test_text_keywords_and_objects_make_the_same():
    typed = make_descriptor("l2-tiled:side=16,channels=1")
    assert (typed.side, typed.channels) == (16, 1)
    assert typed.label == "l2-tiled:side=16,channels=1"
    again = descriptors.L2Tiled(side=16, channels=1)
    assert typed.fingerprint == again.fingerprint == make_descriptor("l2-tiled", side=16, channels=1).fingerprint
    assert make_descriptor(again) is again
    with pytest.raises(UsageError, match="Did you mean 'side'"):
        make_descriptor("l2-tiled:sid=16")
    with pytest.raises(UsageError, match="multiple of its 2 tiles"):
        make_descriptor("l2-tiled:side=33")


def test_the_fingerprints_are_those_of_0_1_0():
    """Indexes and rows of earlier versions are found again by these."""
    assert L2Tiled.of(side=8, channels=1).fingerprint == "b631ccef5800dde8cb35e57ed2c45b84"
    assert L2Tiled.of().fingerprint == "811535eb270e299261b1e5c22236ea10"


def test_a_raised_version_is_another_fingerprint():
    class Later(L2Tiled):
        version = 2

    assert Later.of(side=8).fingerprint != L2Tiled.of(side=8).fingerprint


def test_a_plug_in_is_an_equal(monkeypatch):
    """A registered descriptor is used by name, listed, and asked for its own numbers."""
    from diffmem.copies.index import CopyIndex
    from diffmem.copies.similarity import published_cut
    from diffmem.scores.image.invmm.similarity import default_beta, descriptor_of

    class Mean(Descriptor):
        about = About(
            name="mean-colour", summary="mean colour", formula="m", reference="none", cost="none", fails_when="always",
            misses="everything",
        )  # fmt: skip
        duplicate_cut, copy_similarity, similar_from, reproduced_from = 0.99, 0.9, 0.6, 0.8
        metric, recipe = Metric("cosine"), {}

        def __init__(self, parameters: Parameters | None = None) -> None:
            super().__init__(parameters or Parameters())

        def describe(self, images):
            return np.array([np.asarray(i.convert("RGB")).mean((0, 1)) + 1e-3 for i in images], np.float32)

    monkeypatch.setitem(DESCRIPTORS._loaded, "mean-colour", Mean)
    assert "mean-colour" in methods_page()
    made = descriptor_of("mean-colour", "", (3, 8, 8))
    assert default_beta("mean-colour") == 0.8
    assert published_cut(CopyIndex.from_vectors(np.eye(3, dtype=np.float32), made)) == 0.6


def test_the_names_that_defaults_go_by_are_registered():
    assert {DEFAULT_DESCRIPTOR, PUBLISHED_DESCRIPTOR} <= set(DESCRIPTORS)
    assert importlib.metadata.entry_points(group="diffmem.descriptors") is not None
