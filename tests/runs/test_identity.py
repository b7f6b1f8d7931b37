"""The one rule by which two plans are the same."""

import json

from hypothesis import given
from hypothesis import strategies as st

from diffmem.runs.identity import ABSENT, Difference, plan_differences

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_a_plan_is_itself_also_after_being_written_and_read(plan):
    assert plan_differences(json.loads(json.dumps(plan)), plan) == []


@given(st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3), st.dictionaries(st.sampled_from("abc"), VALUES))
def test_it_does_not_matter_which_comes_first(one, two):
    there, here = plan_differences(one, two), plan_differences(two, one)
    assert [(d.place, d.there, d.here) for d in there] == [(d.place, d.here, d.there) for d in here]


def test_fields_are_named_where_they_differ():
    there = {"seed": 0, "train": {"rate": 1, "steps": 5, "names": ["a", "b"]}}
    here = {"seed": False, "train": {"rate": 1.0, "steps": 6, "names": ["a"], "more": None}}
    found = plan_differences(there, here, {"train.steps"})
    assert found == [
        Difference("seed", 0, False),
        Difference("train.more", ABSENT, None),
        Difference("train.names", ["a", "b"], ["a"]),
    ]
    assert found[1].in_words("before", "after") == "train.more is (absent) before, null after"
    assert plan_differences(there, here, {"seed", "train"}) == []
