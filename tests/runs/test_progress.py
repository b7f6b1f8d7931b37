"""Progress: counts, rates and remaining time against a clock that the test turns."""

import io

import pytest

from diffmem.runs.progress import Progress


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def test_plain_lines_come_at_most_every_ten_seconds(clock):
    stream = io.StringIO()
    with Progress(100, "scoring", stream=stream, clock=clock) as progress:
        for _ in range(50):
            clock.now += 1
            progress.advance(2)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "diffmem: scoring 20/100 prompts, 2/s, 40 s left"
    assert lines[-1] == "diffmem: scoring 100/100 prompts, 2/s (after 50 s)"
    assert len(lines) == 6


def test_what_an_earlier_command_did_counts_for_the_total_not_the_rate(clock):
    progress = Progress(1000, "scoring", done=900, clock=clock)
    clock.now += 10
    progress.advance(10)
    assert progress.done == 910 and progress.rate == 1.0 and progress.remaining == 90.0


def test_the_rate_is_the_one_of_the_last_minute(clock):
    progress = Progress(10_000, "scoring", clock=clock)
    for _ in range(100):
        clock.now += 1
        progress.advance(10)
    assert progress.rate == pytest.approx(10)
    for _ in range(70):
        clock.now += 1
        progress.advance(1)
    assert progress.rate == pytest.approx(1)
    clock.now += 3600
    progress.advance(60)
    assert progress.rate == pytest.approx(60 / 3600, rel=0.05)


def test_nothing_is_claimed_before_there_is_a_rate(clock):
    progress = Progress(10, "scoring", clock=clock)
    assert progress.rate is None and progress.remaining is None and progress.line() == "scoring 0/10 prompts"
    progress.advance()  # at the same instant
    assert progress.rate is None
    unknown = Progress(None, "reading", unit="images", clock=clock)
    clock.now += 2
    unknown.advance(3000)
    assert unknown.remaining is None and unknown.line() == "reading 3,000 images, 1.5e+03/s"


@pytest.mark.parametrize(
    ("seconds", "says"), [(4, "15/min, 36 s left"), (120, "30/h, 18 min 00 s left"), (4000, "0.9/h, 10 h 00 min left")]
)
def test_slow_work_has_a_readable_rate(clock, seconds, says):
    progress = Progress(10, "scoring", clock=clock)
    clock.now += seconds
    progress.advance()
    assert progress.line() == f"scoring 1/10 prompts, {says}"


def test_findings_and_the_word_stopped(clock):
    stream = io.StringIO()
    with (
        pytest.raises(KeyboardInterrupt),
        Progress(10, "matching", unit="images", stream=stream, clock=clock) as progress,
    ):
        progress.note("3 copies so far")
        clock.now += 11
        progress.advance()
        raise KeyboardInterrupt
    first, last = stream.getvalue().splitlines()
    assert first.endswith("; 3 copies so far") and "stopped after 11 s" in last and "3 copies" in last


def test_silent_means_silent_and_still_counts(clock):
    for stream in (io.StringIO(), Terminal()):
        with Progress(10, "scoring", stream=stream, silent=True, clock=clock) as progress:
            clock.now += 100
            progress.advance(5)
        assert stream.getvalue() == "" and progress.done == 5


def test_a_terminal_gets_a_bar_then_one_line(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(4, "scoring", stream=stream, clock=clock) as progress:
        progress.note("[red]1 copy")  # text, not markup
        clock.now += 1
        progress.advance(2)
        progress._bar.refresh()
    text = stream.getvalue()
    assert "\x1b[" in text and "scoring 2/4 prompts" in text and "[red]1 copy" in text
    assert text.endswith("diffmem: scoring 2/4 prompts, 2/s, 1.0 s left; [red]1 copy (after 1.0 s)\n")
