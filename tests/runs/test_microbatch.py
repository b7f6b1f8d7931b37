"""Micro-batches: order kept, memory back-off, one bad item alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmem.errors import UsageError
from diffmem.runs.microbatch import MicroBatches, describe, is_out_of_memory


@given(count=st.integers(0, 40), size=st.integers(1, 50), fits=st.integers(1, 50), bad=st.sets(st.integers(0, 39)))
def test_every_item_comes_once_in_order_whatever_fails(count, size, fits, bad):
    halvings = []

    def work(batch):
        if len(batch) > fits:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        if any(i in bad for i in batch):
            raise ValueError("bad item")
        return [10 * i for i in batch]

    batches = MicroBatches(size, halvings.append)
    seen, values = [], {}
    for batch, result in batches.run(range(count), work):
        seen += batch
        if isinstance(result, Exception):
            assert len(batch) == 1
            assert batch[0] in bad
            assert describe(result) == "ValueError: bad item"
        else:
            values |= dict(zip(batch, result, strict=True))
    assert seen == list(range(count))
    assert values == {i: 10 * i for i in range(count) if i not in bad}
    assert batches.size <= max(fits, 1) or batches.size == size
    assert halvings == sorted(halvings, reverse=True)


def test_an_item_too_large_alone_comes_with_its_error():
    def work(batch):
        raise MemoryError

    ((_, result),) = MicroBatches(4).run([7], work)
    assert is_out_of_memory(result)
    assert "out of memory even alone" in describe(result)


def test_errors_for_the_user_are_raised():
    def work(batch):
        raise UsageError("no such thing")

    with pytest.raises(UsageError):
        list(MicroBatches(4).run([1, 2], work))
