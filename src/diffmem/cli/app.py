"""The `diffmem` command: verbs that are imported when they are called, and errors that become exit codes.

The exit codes are those of `diffmem.errors`. A defect of diffmem itself shows its traceback and exits with 70, so that it is
never taken for a tripped gate; 141 means that whoever read the output went away first.
"""

from __future__ import annotations

import difflib
import errno
import inspect
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from cyclopts import App, CycloptsError, Group, Parameter

from diffmem import __version__
from diffmem.cli.output import plain
from diffmem.cli.verbs import JOBS, RENAMED, VERBS, Verb
from diffmem.errors import DataError, DiffmemError, IncompleteRun, UsageError, first_line
from diffmem.models.versions import require_versions
from diffmem.runs import interruption
from diffmem.runs.microbatch import is_out_of_memory

EXIT_CODES = (
    "Exit codes: 0 done, whatever the finding; 1 a gate tripped or the check of the model failed; 2 input or an option "
    "refused; 3 incomplete (run it again), or nothing could be judged; 4 another model, plan or training set than the "
    "run's; 70 a defect of diffmem."
)
EXIT_DEFECT = 70
EXIT_BROKEN_PIPE = 141

_STOPPED = "stopped; the same command goes on where it left"


def build_app(verbs: Mapping[str, tuple[str, ...] | Verb], asked: str | None = None) -> App:
    """The cyclopts application over a table of verbs, none of which is imported until it runs.

    Args:
        verbs: name to a `Verb`, or to (`module:function`, one-line help).
        asked: the verb about to run; its own help page then shows the function's docstring, and its examples first.
    """
    app = App(
        name="diffmem",
        help="Does a diffusion model reproduce its training images? Which prompts, which images, how strongly.",
        help_epilogue=EXIT_CODES,
        version=__version__,
        help_format="plaintext",
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(negative_iterable=(), show_default=_show_default),
        group_parameters=Group("Parameters", sort_key=0),
    )
    groups = {job: Group(job, sort_key=place) for place, job in enumerate(JOBS)}
    for place, (name, entry) in enumerate(verbs.items()):
        verb = Verb(*entry)
        app.command(
            verb.path, name=name, help=None if name == asked else verb.summary, sort_key=place,
            group=groups.get(verb.job, groups[JOBS[-1]]),
            **({"help_prologue": verb.shown_examples} if name == asked and not verb.has_own_app else {}),
        )  # fmt: skip
    if asked is not None and asked in verbs:
        _flow_help(app[asked])
    return app


def _flow_help(app: App) -> None:
    """Join the lines of each paragraph of a help text, so that the terminal's width alone breaks them."""
    app.help = re.sub(r"(?<=\S)\n(?=[^\s-])", " ", inspect.cleandoc(app.help))
    for name in app:
        if not name.startswith("-"):
            _flow_help(app[name])


def _show_default(value: object) -> str | None:
    """A default as the help shows it; what is empty or off is not shown."""
    return None if value is None or value is False or value == () else str(value)


def main(argv: Sequence[str] | None = None, verbs: Mapping[str, tuple[str, ...] | Verb] = VERBS) -> int:
    """Run one verb and return its exit code.

    Args:
        argv: the arguments after the program's name; those of the process by default.
        verbs: the table of verbs.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # a prompt must never end a run because a terminal is not UTF-8
    with _warnings_on_stderr(), _terminate_as_interrupt():
        try:
            code = _run(arguments, verbs)
            sys.stdout.flush()
        except BrokenPipeError:
            _silence_stdout()
            return EXIT_BROKEN_PIPE
        except (Exception, KeyboardInterrupt) as error:
            return _report(KeyboardInterrupt() if interruption.asked_to_stop() else error)
    return code


def _run(arguments: list[str], verbs: Mapping[str, tuple[str, ...] | Verb]) -> int:
    asked = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if asked is not None and asked not in verbs:
        close = difflib.get_close_matches(asked, verbs, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UsageError(f"There is no verb '{asked}'.{hint} Verbs: {', '.join(verbs)}.")
    from diffmem.cli.ranges import check_ranges

    words = _with_names_of_today(asked, arguments)
    command, bound, _ = build_app(verbs, asked).parse_args(words, exit_on_error=False, print_error=False)
    check_ranges(bound.arguments)
    if asked in verbs and asked != "doctor":  # which tells of all that is wrong
        require_versions()
    result = command(*bound.args, **bound.kwargs)
    return result if isinstance(result, int) else 0


def _with_names_of_today(verb: str | None, arguments: list[str]) -> list[str]:
    """The arguments with options of 0.1.0 under the names that they have now, each named once in a warning."""
    renamed = {old: new for old, (new, verbs) in RENAMED.items() if verb in verbs}
    words: list[str] = []
    for place, argument in enumerate(arguments):
        if argument == "--":
            return words + arguments[place:]
        option, equals, value = argument.partition("=")
        if option in renamed:
            text = f"{option} is called {renamed[option]} now; the old name goes with the next release."
            logging.getLogger("diffmem").warning(text)
            option = renamed[option]
        words.append(option + equals + value)
    return words


def _report(error: BaseException) -> int:
    """Say on stderr what went wrong, in one line where the user can act on it, and give the exit code."""
    trace = os.environ.get("DIFFMEM_TRACEBACK") == "1"
    code, message = EXIT_DEFECT, ""
    error = _of_the_machine(error) or error
    if isinstance(error, DiffmemError):
        code, message = error.exit_code, str(error)
    elif isinstance(error, CycloptsError):
        code, message = 2, f"{error} 'diffmem --help' lists what there is."
    elif isinstance(error, KeyboardInterrupt):
        code, message = 3, _STOPPED
    if trace or code == EXIT_DEFECT:
        for line in "".join(traceback.format_exception(error)).splitlines():
            print(plain(line), file=sys.stderr)
    if code == EXIT_DEFECT:
        message = "this is a defect of diffmem, not of your command; please report the traceback above."
    prefix = "" if message == _STOPPED else "error: "
    print(f"diffmem: {prefix}{plain(' '.join(message.split()))}", file=sys.stderr)
    return code


def _of_the_machine(error: BaseException) -> DiffmemError | None:
    """What disk, memory and file system refuse, as what the user can do about it; None for anything else."""
    if isinstance(error, DiffmemError | CycloptsError):
        return None
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        place = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes) else ""
        why = os.strerror(error.errno)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return IncompleteRun(
                f"The disk is full{place}: {why}. Free some space; the same command goes on where it left."
            )
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return DataError(
                f"This place cannot be written or read{place}: {why}. Give another one, or its permission."
            )
        return DataError(f"The file system refuses{place}: {why}. Give another place, or mend this one.")
    if is_out_of_memory(error) or "calculation overflowed" in str(error):
        return IncompleteRun(
            f"Memory is used up ({first_line(error)}). Ask for less at once (--batch, --micro-batch, fewer images or draws); "
            "what was computed is kept."
        )
    if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
        from diffmem.cli.options import as_usage

        return as_usage(error)
    return None


class _PlainFormatter(logging.Formatter):
    """One line of text that cannot steer a terminal, whatever names of files are in it."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Show the package's own log warnings as `diffmem: warning: ...` while a verb runs; of the data's notes each once."""
    said: set[str] = set()

    def fresh(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        again = record.name == "diffmem.data" and text in said
        said.add(text)
        return not again

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter("diffmem: warning: %(message)s"))
    handler.setLevel(logging.WARNING)
    handler.addFilter(fresh)
    logger = logging.getLogger("diffmem")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM (a scheduler's notice) like Ctrl-C, so that rows in memory are written before the end."""
    interruption.forget()
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        interruption.ask_to_stop()
        raise KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not complain about the closed pipe."""
    with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - a descriptor is wanted, not a file's content
        os.dup2(nothing.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
