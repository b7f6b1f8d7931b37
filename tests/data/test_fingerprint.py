import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmem.data.fingerprint import canonical_json, hash_array, hash_bytes, hash_file, hash_items, hash_json
from diffmem.errors import DataError, UsageError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(json_values)
def test_canonical_json_round_trips_and_is_a_fixed_point(value):
    text = canonical_json(value)
    assert text.isascii()
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


def test_canonical_json_forgets_order_and_container_kind_only():
    assert canonical_json({"b": (1, 2), "a": np.float32(0.5)}) == '{"a":0.5,"b":[1,2]}'
    assert canonical_json({"x": 1}) != canonical_json({"x": 1.0})
    assert canonical_json({"x": True}) != canonical_json({"x": 1})


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {1: 2}, {"a": {3}}, b"x"])
def test_canonical_json_refuses_what_it_cannot_say(value):
    with pytest.raises(UsageError, match="value"):
        canonical_json(value)


def test_hashes_are_blake2b_128_and_stable(tmp_path):
    assert (
        hash_bytes(b"abc") == hashlib.blake2b(b"abc", digest_size=16).hexdigest() == "cf4ab791c62b8d2b2109c90275287816"
    )
    big = bytes(range(256)) * 9000
    (tmp_path / "f").write_bytes(big)
    assert hash_file(tmp_path / "f") == hash_bytes(big)
    assert hash_json({"b": 1, "a": [None]}) == hash_bytes(b'{"a":[null],"b":1}')
    with pytest.raises(DataError, match="missing"):
        hash_file(tmp_path / "missing")


def test_array_hash_depends_on_values_shape_and_dtype_but_not_on_layout():
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert hash_array(a) == hash_array(np.asfortranarray(a)) == hash_array(a.astype(">f4")) == hash_array(a[:, :])
    others = [a.reshape(4, 3), a.astype(np.float64), a + 1, a.ravel()]
    assert len({hash_array(x) for x in [a, *others]}) == 5
    assert hash_array(np.float32(1).reshape(())) != hash_array(np.ones(1, np.float32))


def test_item_hash_cannot_be_shifted_between_fields():
    assert hash_items([("a", "bc")]) != hash_items([("ab", "c")])
    assert hash_items([("a", "b"), ("c", "d")]) != hash_items([("c", "d"), ("a", "b")])
