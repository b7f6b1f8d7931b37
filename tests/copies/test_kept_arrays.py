"""Arrays that are kept beside an index: damaged ones are computed again, never read as other numbers, and end nothing."""

import numpy as np
import pytest

from diffmem.copies.index_files import read_arrays, write_arrays

ARRAYS = {"group": np.arange(40), "cut": np.asarray(0.5), "mask": np.zeros((0, 3), bool)}


@pytest.fixture
def file(tmp_path):
    write_arrays(tmp_path / "groups.npz", ARRAYS)
    return tmp_path / "groups.npz"


def test_they_come_back(file):
    kept = read_arrays(file, tuple(ARRAYS))
    assert kept is not None
    for name, values in ARRAYS.items():
        assert kept[name].dtype == values.dtype and np.array_equal(kept[name], values)


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_no_changed_byte_gives_other_numbers_or_an_error(file, change):
    whole = bytearray(file.read_bytes())
    damaged = 0
    for position in range(len(whole)):
        whole[position] ^= change
        file.write_bytes(whole)
        kept = read_arrays(file, tuple(ARRAYS))
        damaged += kept is None
        assert kept is None or all(np.array_equal(kept[name], values) for name, values in ARRAYS.items()), position
        whole[position] ^= change
    assert damaged > len(whole) / 2


def test_a_cut_off_file_and_a_missing_array_are_none(file):
    whole = file.read_bytes()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        assert read_arrays(file, tuple(ARRAYS)) is None
    file.write_bytes(whole)
    assert read_arrays(file, ("group", "another")) is None
