import hashlib

import numpy as np
import pytest

from diffmem.data.fingerprint import hash_array, hash_bytes, hash_file, hash_items, hash_json
from diffmem.errors import DataError


def test_hashes_are_blake2b_128_and_stable(tmp_path):
    assert (
        hash_bytes(b"abc") == hashlib.blake2b(b"abc", digest_size=16).hexdigest() == "cf4ab791c62b8d2b2109c90275287816"
    )
    big = bytes(range(256)) * 9000
    (tmp_path / "f").write_bytes(big)
    assert hash_file(tmp_path / "f") == hash_bytes(big)
    assert hash_json({"b": 1, "a": [None, "ü"]}) == hash_bytes(b'{"a":[null,"\\u00fc"],"b":1}')
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
