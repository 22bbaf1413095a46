"""The app's server: HTTP on the standard library alone, so that the page is there at once while torch loads behind it.

One page, its files, and JSON questions under /api/. What is refused before a question is looked at: another site's page (the Host and
the key), a body too large, a name that is no question. Every answer to a question is JSON; a failure is one sentence, `{"error": ...}`.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from mien.apps.web.turns import Superseded, Turn, Turns
from mien.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_QUESTION_BYTES = 1_000_000
MAX_PHOTO_BYTES = 20_000_000
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".png": "image/png"}
POLICY = (  # the browser itself refuses anything that would leave this machine
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Question:
    """What a page asked: its JSON object (or an uploaded file's bytes) and its turn."""

    body: dict[str, Any]
    turn: Turn
    upload: bytes = b""


@dataclass(frozen=True)
class Picture:
    """A file of a run, to be sent as it is."""

    path: Path


Answer = Callable[[Question], "dict[str, Any] | Picture"]


@dataclass
class Site:
    """What the server offers: questions by name, and the key that pages of this server carry."""

    answers: dict[str, Answer]
    uploads: frozenset[str] = frozenset()
    host: str = "127.0.0.1"
    key: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    turns: Turns = field(default_factory=Turns)

    @property
    def exposed(self) -> bool:
        """Whether other machines can reach it: then the page itself asks for the key."""
        return self.host not in LOOPBACK


class Server(ThreadingHTTPServer):
    """Raises UserError when the port is taken or the address is not this machine's."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, site: Site, port: int):
        self.site = site
        if ":" in site.host:
            import socket

            self.address_family = socket.AF_INET6
        try:
            super().__init__((site.host, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"Cannot listen on {site.host} port {port} ({reason}): give another --port, or another --host.") from None

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(self.site.host, self.site.host)
        return f"http://{host}:{self.server_port}/" + (f"?key={self.site.key}" if self.site.exposed else "")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closed its connection is no error; anything else is told on the console."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120  # of a silent connection
    server: Server

    def do_GET(self) -> None:
        if not self._welcome():
            return
        address = urlsplit(self.path)
        query = dict(parse_qsl(address.query))
        if address.path == "/":
            self._page(query)
        elif address.path.startswith("/api/"):
            key = self.headers.get("X-Mien-Key") or query.get("key", "")  # an <img> cannot send a header
            self._ask(address.path.removeprefix("/api/"), key, query, b"")
        else:
            self._file(unquote(address.path).lstrip("/"))

    def do_POST(self) -> None:
        address = urlsplit(self.path)
        name = address.path.removeprefix("/api/")
        is_upload = name in self.server.site.uploads
        most = MAX_PHOTO_BYTES if is_upload else MAX_QUESTION_BYTES
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > most:
            self.close_connection = True  # the body stays unread
            self._error(413, f"That file is larger than {MAX_PHOTO_BYTES // 1_000_000} MB: give a smaller picture." if is_upload
                        else "The question has no length or is too long.")  # fmt: skip
            return
        body = self.rfile.read(int(length))
        if not self._welcome():
            return
        key = self.headers.get("X-Mien-Key", "")
        if is_upload:
            self._ask(name, key, dict(parse_qsl(address.query)), body)
            return
        try:
            asked = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            asked = None
        if isinstance(asked, dict):
            self._ask(name, key, asked, b"")
        else:
            self._error(400, "The question is not a JSON object.")

    def _welcome(self) -> bool:
        """Whether the request was made to this server by name: a site that makes its own name point here is turned away."""
        site = self.server.site
        try:
            name = urlsplit("//" + self.headers.get("Host", "")).hostname or ""
        except ValueError:
            name = ""
        if site.exposed or name in LOOPBACK:
            return True
        self._error(403, "This page answers to 127.0.0.1 and localhost only.")
        return False

    def _page(self, query: dict[str, str]) -> None:
        site = self.server.site
        if site.exposed and not hmac.compare_digest(query.get("key", "").encode(), site.key.encode()):
            self._send(403, b"This page needs the key that 'mien app' printed: open the whole link.", "text/plain")
            return
        text = _static("index.html").decode().replace("{{key}}", site.key)
        self._send(200, text.encode(), "text/html")

    def _file(self, name: str) -> None:
        if name == "report.css":
            self._send(200, _reports("page.css"), "text/css")
        elif name == "hover.js":  # the reports' script, as a function of the part of the page that it is to serve
            self._send(200, b"export const hover = document => {\n" + _reports("page.js") + b"};\n", "text/javascript")
        elif name in _names():
            self._send(200, _static(name), KINDS[Path(name).suffix])
        else:
            self._error(404, "There is nothing of that name here.")

    def _ask(self, name: str, key: str, body: dict[str, Any], upload: bytes) -> None:
        site = self.server.site
        if not hmac.compare_digest(key.encode(), site.key.encode()):
            self._error(403, "This page is from an earlier start of the app: reload it.")
            return
        if name not in site.answers:
            self._error(404, "There is no such question.")
            return
        try:
            told = site.answers[name](Question(body, site.turns.take(self.headers.get("X-Mien-Turn")), upload))
        except Superseded:
            self._json(409, {"superseded": True})
        except UserError as error:
            self._error(400, str(error))
        except Exception as error:
            self._error(500, explain(error))
        else:
            if isinstance(told, Picture):
                self._send(200, told.path.read_bytes(), KINDS[told.path.suffix])
            else:
                self._json(200, told)

    def _error(self, status: int, sentence: str) -> None:
        self._json(status, {"error": sentence})

    def _json(self, status: int, value: dict[str, Any]) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8" if kind.startswith("text/") else kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }.items():
            self.send_header(name, value)
        self._headers_buffer.append(b"\r\n" + body)  # type: ignore[attr-defined]  # one packet: head and body apart cost a delay
        self.flush_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """The console is for what a person should know; a line a request is not."""


def _static(name: str) -> bytes:
    return (resources.files("mien.apps.web") / "static" / name).read_bytes()


def _reports(name: str) -> bytes:
    return (resources.files("mien.reports") / name).read_bytes()


def _names() -> set[str]:
    """Names of the page's files: what is not in this list is not served."""
    return {each.name for each in (resources.files("mien.apps.web") / "static").iterdir() if Path(each.name).suffix in KINDS}


def explain(error: Exception) -> str:
    """One sentence for the page about a fault; its traceback goes to a file, which the sentence names."""
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "There was not enough memory for that: ask for fewer faces, or close other programs."
    with tempfile.NamedTemporaryFile("w", prefix="mien-app-", suffix=".log", delete=False, encoding="utf-8") as log:
        traceback.print_exception(error, file=log)
    first_line = (str(error).strip() or "no message").splitlines()[0][:200]
    return f"That failed, by a fault of mien: {first_line} ({type(error).__name__}; details are in {log.name})."
