"""Content keys: stable for ever, order-free, and two different things never share one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmem.keys import canonical_json, row_key

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


def exact(value):
    """A value in a form whose equality is that of JSON texts: True, 1 and 1.0 differ, as do 0.0 and -0.0."""
    if isinstance(value, dict):
        return ("dict", frozenset((name, exact(inner)) for name, inner in value.items()))
    if isinstance(value, list):
        return ("list", tuple(exact(inner) for inner in value))
    return (type(value).__name__, repr(value))


def test_keys_are_what_they_always_were():
    assert row_key(stage="scores", model="abc", draw=0).hex() == "5089be0cf245e274eef6bd4be9c97a10"
    assert (
        row_key(prompt="Übermut \u2603", params={"gamma": 0.1, "steps": [1, 2], "cut": None}).hex()
        == "c895284d6a8c9e18d035985b65952d99"
    )


def test_canonical_json_is_written_as_stated():
    assert canonical_json({"b": [1, 1.0, 1e-7, True], "a": "é"}) == '{"a":"\\u00e9","b":[1,1.0,1e-07,true]}'
    assert canonical_json((1, 2)) == canonical_json([1, 2])
    assert canonical_json(np.float64(0.1)) == "0.1"


def test_absent_none_zero_and_false_all_differ():
    keys = [row_key(a=1), *(row_key(a=1, b=value) for value in (None, 0, False, 0.0, "", "0", []))]
    assert len(set(keys)) == len(keys)


@given(st.dictionaries(st.text(min_size=1), values, min_size=1))
def test_order_of_parts_does_not_matter(parts):
    assert row_key(**parts) == row_key(**dict(reversed(parts.items())))


@given(values, values)
def test_texts_are_equal_exactly_when_values_are(one, two):
    assert (canonical_json(one) == canonical_json(two)) == (exact(one) == exact(two))


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf], {"a": {"b": math.nan}}])
def test_numbers_without_json_form_are_refused(value):
    with pytest.raises(ValueError, match="no strict JSON form"):
        canonical_json(value)


@pytest.mark.parametrize("value", [{1: "a"}, b"x", {"a": object()}, np.int64(1), np.zeros(2), {3}])
def test_other_types_are_refused_by_place(value):
    with pytest.raises(TypeError, match=r"^value"):
        canonical_json(value)
    with pytest.raises(TypeError, match=r"value\.part"):
        row_key(part=value)


def test_a_key_of_nothing_is_refused():
    with pytest.raises(TypeError, match="at least one"):
        row_key()
