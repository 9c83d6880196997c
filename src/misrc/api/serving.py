"""`misrc serve`: sockets, TLS, signals and the log around the application."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import uvicorn

from ..declare.server import Server, load_server, split_address
from ..job.errors import BadRequest
from .app import Application
from .protocol import BoundedProtocol
from .service import Service
from .sites import Sites

STOP_SECONDS = 30
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
# Forward secrecy and authenticated encryption alone; TLS 1.3's own suites are all of that kind.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
LOG = logging.getLogger("misrc.api")


class JsonLines(logging.Formatter):
    """One JSON object a line, whatever stands in a message."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        line.update(getattr(record, "misrc", {}))
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)


def set_up_log() -> None:
    """Lines on standard error; the service manager keeps them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger("misrc")
    root.handlers, root.propagate = [handler], False
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = ([handler], False) if name == "uvicorn" else ([], True)
        logger.setLevel(logging.ERROR)


def make_context(server: Server) -> ssl.SSLContext | None:
    """TLS as declared: 1.2 and 1.3; BadRequest where the certificate cannot be used."""
    if server.tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        context.set_ciphers(CIPHERS)
        context.load_cert_chain(server.tls.certificate, server.tls.key)
    except OSError as error:  # ssl's own errors are of this kind too
        raise BadRequest(f"tls: the certificate cannot be used: {error.strerror}") from None
    return context


@contextlib.contextmanager
def open_sockets(server: Server) -> Iterator[list[socket.socket]]:
    """Listening sockets on every declared address."""
    with contextlib.ExitStack() as stack:
        sockets = []
        for item in server.listen:
            host, port = split_address(item)
            listener = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
            except OSError as error:
                raise BadRequest(f"listen: {item}: {error.strerror}") from None
            sockets.append(listener)
        yield sockets


class _Uvicorn(uvicorn.Server):
    """Tells the service at once when it is to end, so that nobody waits on."""

    service: Service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        self._captured_signals.clear()
        self.should_exit = True
        self.service.leave()


def check(path: Path) -> int:
    """Say whether a server could start with this declaration; BadRequest tells what is wrong. Touches no store."""
    server = load_server(path)
    make_context(server)
    Sites(server.inventory, server.ini).load()
    print(f"{path}: fine")
    return 0


def raise_file_limit() -> None:
    """Each poll that waits is an open connection: take as many descriptors as the service may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(path: Path) -> int:
    """Run until SIGTERM or SIGINT; what is under way is answered first."""
    server = load_server(path)
    set_up_log()
    raise_file_limit()
    service = Service(server)
    service.prepare()
    context = make_context(server)
    bounds = {"head_seconds": server.limits.header_seconds, "most_connections": server.limits.connections}
    config = uvicorn.Config(
        Application(service),
        http=type("Protocol", (BoundedProtocol,), bounds),
        ws="none",
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
        ssl_context_factory=None if context is None else (lambda _config, _make: context),
    )
    with open_sockets(server) as sockets:
        running = _Uvicorn(config)
        running.service = service
        for listener in sockets:
            host, port = listener.getsockname()[:2]
            LOG.info("listening on %s port %d", host, port)
        signal.signal(signal.SIGHUP, lambda _signal, _frame: None)
        running.run(sockets=sockets)
    return 0
