"""Starts a service and its page."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from speechfuse.errors import SpeechFuseError
from speechfuse.pipeline.speech_model import STRETCH_SECONDS, SpeechModel
from speechfuse.serve.app import Service, build_app
from speechfuse.serve.guard import LOOPBACK, Guard
from speechfuse.serve.limits import Limits

STOPPING = 3  # seconds for open tabs to close


def served(service: Service, host: str = "127.0.0.1", *, page: bool = True) -> ASGIApp:
    """The whole application. page: False leaves the HTTP service alone."""
    app = build_app(service)
    if page:
        _add_page(app, service)
    hosts = LOOPBACK if host in ("127.0.0.1", "localhost", "::1") else None
    return Guard(app, hosts, service.limits)


def _add_page(app: FastAPI, service: Service) -> None:
    """Its library reads these when it is imported: where uploads lie, and that nobody is told."""
    folder = TemporaryDirectory(prefix="speechfuse-uploads-", ignore_cleanup_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from speechfuse.serve.page import mount_page

    mount_page(app, service, folder)


def serve(
    folder: Path,
    host: str = "127.0.0.1",
    port: int = 7860,
    limits: Limits | None = None,
    *,
    page: bool = True,
    device: str | None = None,
    stretch: float = STRETCH_SECONDS,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a run until it is interrupted. ready: is told the address. port 0: a free one.

    Raises:
        SpeechFuseError: no run, or a port that cannot be had.
    """
    service = Service.of(SpeechModel(folder, device=device, stretch=stretch), limits or Limits())
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen()  # who comes before it answers waits
        except OSError as error:
            raise SpeechFuseError(
                f"cannot serve on {host}:{port} ({error.strerror}); choose another --port"
            ) from error
        app = served(service, host, page=page)
        shown = f"[{host}]" if ":" in host else host
        if ready is not None:
            ready(f"http://{shown}:{listening.getsockname()[1]}")
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=STOPPING,
        )
        uvicorn.Server(config).run(sockets=[listening])
