"""`dm.review`: the page on which a person labels the pairs of a run, served until Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from diffmem.errors import UsageError
from diffmem.experiments._run import Run, folder_of
from diffmem.experiments.review.server import ReviewServer
from diffmem.experiments.review.session import Session


def review(
    run: Run | str | Path,
    reviewer: str,
    *,
    sample: int | None = None,
    seed: int | None = None,
    port: int = 0,
    open_page: bool = False,
    tell: Callable[[str], object] = print,
) -> int:
    """Label the pairs of a run on a page that this machine alone sees, until Ctrl-C.

    Each label is in the run before the next picture is shown; `open_run(DIR).labels` holds them.

    Args:
        run: a run whose images were matched, or its folder.
        reviewer: whose labels these are.
        sample: images below the threshold that are drawn at random; by default those drawn before, else 200.
        seed: of the draw.
        port: of the page; 0 takes a free one.
        open_page: open it in the browser, too.
        tell: takes the address and what was labelled.

    Returns:
        How many pairs the reviewer has labelled.

    Raises:
        UsageError: nothing was matched, or a port that cannot be.
        DataError: the training images are not to be had.

    Examples:
        >>> import diffmem as dm
        >>> dm.review("runs/a", "anna", open_page=True)  # doctest: +SKIP
        57
    """
    if not 0 <= port < 65536:
        raise UsageError(f"--port is {port}; expected 0 (a free one) to 65535.")
    session = Session(folder_of(run), reviewer, sample, seed)
    server = ReviewServer(session, port)
    try:
        tell(
            f"{len(session)} pairs, {session.done} labelled by {session.reviewer}; Ctrl-C ends the review, nothing is lost"
        )
        tell(server.address)
        sys.stdout.flush()  # whoever waits for the address in a pipe has it now
        if open_page:
            import webbrowser

            webbrowser.open(server.address)
        server.serve_forever(0.1)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        session.close()
    tell(f"{session.done} of {len(session)} pairs are labelled by {session.reviewer}; diffmem show {session.folder}")
    return session.done
