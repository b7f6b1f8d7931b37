"""Words and numbers as a report shows them."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmem.report import prose
from diffmem.report.prose import MARKS, count, number, percent, shorten, visible

SPACE = "\u00a0"


@given(st.text())
def test_visible_text_steers_nothing_and_plain_text_is_left_alone(text):
    shown = visible(text)
    marks = 0
    for char in shown:
        kind = unicodedata.category(char)
        assert char in "\n\t" or kind not in ("Cc", "Cs")
        assert unicodedata.bidirectional(char) not in ("LRO", "RLO", "LRE", "RLE", "PDF", "LRI", "RLI", "FSI", "PDI")
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        assert marks <= MARKS
    assert visible(shown) == shown


@pytest.mark.parametrize("text", ["a fox", "un café à Paris", "รูปแมวน้อยที่นี่", "صورة قطة", "क्षत्रिय की तस्वीर", "🦊👩‍🚀"])
def test_scripts_are_not_escaped(text):
    assert visible(text) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "–"), (0.0, "0"), (1.0, "100"), (0.01, "1"), (0.00251, "0.25"), (0.0123, "1.2"), (0.9999, "99.99"),
     (0.5, "50.0"), (1e-6, "0.0001")],
)  # fmt: skip
def test_percentages(share, text):
    assert percent(share) == (text if share is None else f"{text}{SPACE}%")


def test_numbers_counts_and_cuts():
    assert [number(v) for v in (None, float("inf"), 12345, -0.25, 1.0)] == ["–", "–", "12,345", "−0.25", "1"]
    assert (count(1, "image"), count(2000, "image")) == ("1 image", "2,000 images")
    assert (shorten("abcdef", 4), shorten("abcd", 4)) == ("abc…", "abcd")


@pytest.mark.parametrize(
    ("low", "high", "shares", "figures"),
    [
        (0.5512, 1.0, "55\u00a0% to 100\u00a0%", "0.55 to 1"),
        (0.0, 0.00366, "0\u00a0% to 0.37\u00a0%", "0 to 0.0037"),
        (0.9953, 0.9998, "99.53\u00a0% to 99.98\u00a0%", "0.9953 to 0.9998"),
        (-0.0201, 0.0129, "\u22122.1\u00a0% to 1.3\u00a0%", "\u22120.021 to 0.013"),
    ],
)
def test_intervals_are_written_as_people_do_and_rounded_outward(low, high, shares, figures):
    assert (prose.percents(low, high), prose.between(low, high)) == (shares, figures)


@given(st.floats(0, 1), st.floats(0, 1))
def test_no_written_interval_is_narrower_than_its_own(a, b):
    low, high = sorted((a, b))
    first, last = (float(text.removesuffix("\u00a0%")) / 100 for text in prose.percents(low, high).split(" to "))
    assert first <= low + 1e-9 and last >= high - 1e-9


@given(st.floats(0, 1))
def test_a_bound_is_never_written_lower_than_it_is(share):
    assert float(prose.at_most(share).removesuffix("\u00a0%")) >= 100 * share - 1e-6
