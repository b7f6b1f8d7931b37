"""The page of a review, served to this machine alone: loopback, a random token in its address, nothing from outside."""

from __future__ import annotations

import hmac
import json
import logging
import re
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, ClassVar

from diffmem.errors import DiffmemError, UsageError
from diffmem.experiments.review.session import Session
from diffmem.report.page import as_bytes, render_page

HOST = "127.0.0.1"
LONGEST_BODY = 1 << 16
_PICTURE = re.compile(r"(generated|training)/([0-9]{1,9})")
_log = logging.getLogger(__name__)


class ReviewServer(ThreadingHTTPServer):
    """Serves one session until it is shut down.

    Args:
        session: the reviewer's.
        port: 0 takes a free one.

    Attributes:
        address: what to open in a browser; whoever knows it can label in the reviewer's name.
    """

    daemon_threads = True  # idle connections do not hold up the end; `Session.close` waits for what is being kept

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session, self.token = session, secrets.token_urlsafe(32)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as problem:
            raise UsageError(
                f"Port {port} is not to be had ({problem.strerror}); leave out --port for a free one."
            ) from problem
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}
        self.address = f"http://{HOST}:{self.server_port}/{self.token}/"
        self.page = as_bytes(_page(session))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error; anything else is told, and the server goes on."""
        _log.debug("request from %s ended early", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    server_version, sys_version = "diffmem", ""
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds after which an idle connection is closed
    always: ClassVar[dict[str, str]] = {
        "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Content-Security-Policy": "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; object-src 'none'",
    }  # fmt: skip

    def do_GET(self) -> None:
        """The page, its data, a picture."""
        place = self._place()
        if place is None:
            return
        picture = _PICTURE.fullmatch(place)
        if place == "":
            self._answer(self.server.page, "text/html; charset=utf-8")
        elif place == "pairs":
            self._json(self.server.session.pairs())
        elif picture is not None:
            found = self.server.session.picture(int(picture[2]), picture[1])
            if found is None:
                self._refuse(HTTPStatus.NOT_FOUND)
            else:
                self._answer(*found)
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """A label: only from the page itself, which says so by its origin."""
        place = self._place()
        if place is None:
            return None
        origin, kind = self.headers.get("Origin"), self.headers.get("Content-Type", "")
        if (
            origin not in {f"http://{host}" for host in self.server.hosts}
            or self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin"
        ):
            return self._refuse(HTTPStatus.FORBIDDEN)
        if place != "label":
            return self._refuse(HTTPStatus.NOT_FOUND)
        if kind.partition(";")[0].strip() != "application/json":
            return self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > LONGEST_BODY:
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            body = json.loads(self.rfile.read(int(length)))
            number, category, note = body["pair"], body["category"], body.get("note", "")
            if isinstance(number, bool) or not isinstance(number, int) or not isinstance(note, str):
                raise TypeError("a pair is a number and a note is text")
            if category is not None and not isinstance(category, str):
                raise TypeError("a category is text")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
            return self._json({"error": f"This is no label: {problem}."}, HTTPStatus.BAD_REQUEST)
        try:
            said = self.server.session.label(number, category, note)
        except (DiffmemError, OSError) as problem:
            return self._json({"error": str(problem)}, HTTPStatus.CONFLICT)
        return self._json(said)

    def _place(self) -> str | None:
        """What is asked for behind the token; None, and the request is refused, where host or token are wrong."""
        if self.headers.get("Host") not in self.server.hosts:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
            return None
        token, slash, place = self.path.removeprefix("/").partition("/")
        right = hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode("ascii"))
        if not right or not slash or not self.path.startswith("/"):
            self._refuse(HTTPStatus.NOT_FOUND)
            return None
        return place

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True  # a body that was not read must not be taken for the next request
        self._answer(status.phrase.encode("ascii"), "text/plain; charset=utf-8", status)

    def _json(self, content: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._answer(json.dumps(content).encode("ascii"), "application/json", status)

    def _answer(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        headers = self.always | {"Content-Type": kind, "Content-Length": str(len(body))}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing is printed: an address in a log would hold the token."""


def _page(session: Session) -> str:
    room = files("diffmem.experiments.review")
    return render_page(
        room / "page.html", title=f"Review of {session.folder.resolve().name}",
        kicker=f"Review by {session.reviewer}", headline=session.folder.resolve().name, limits=(),
        style=(room / "review.css").read_text(encoding="utf-8"),
        script=(room / "review.js").read_text(encoding="utf-8"), images="'self'", connect="'self'",
    )  # fmt: skip
