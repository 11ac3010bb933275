"""In front of everything: which hosts and paths are served, and what a browser may load.

The page's library offers more than the page needs: a proxy, redirects, calls by name, files by
address. Only what the page itself uses passes, and nothing may be loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from speechfuse.serve.limits import Limits
from speechfuse.serve.refusals import Refusal

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
API = "/gradio_api"
SLACK = 10_000  # bytes of a form around a file
USED = (
    "/upload",
    "/upload_progress",
    "/queue/join",
    "/queue/data",
    "/heartbeat/",
    "/startup-events",
    "/file=",
    "/info",
    "/cancel",
    "/reset",
)
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-ancestors 'self'",
        "form-action 'self'",
        "base-uri 'self'",
    ]
)


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, limits: Limits) -> None:
        """hosts: names under which it may be asked for; None: any.

        A page of the internet can have its own name lead to this machine; so names are checked.
        """
        self.app, self.hosts, self.limits = app, hosts, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            answer = JSONResponse(refusal.to_dict(), refusal.status)
            await answer(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = POLICY
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        name = headers.get("host", "")
        host = name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() else name
        if self.hosts is not None and host.lower() not in self.hosts:
            return Refusal(
                403,
                f"a request for host '{host[:60]}'",
                " or ".join(self.hosts),
                "start with --host to serve under another name",
            )
        path = scope["path"]
        if not path.startswith(API):
            return None
        rest = path[len(API) :]
        address = rest.partition("file=")[2]
        if not rest.startswith(USED) or "://" in address or address.startswith("//"):
            return Refusal(404, f"{path[:60]}", "what the page uses", "use /v1/predict")
        length = headers.get("content-length", "")
        most = self.limits.upload_bytes + SLACK
        if scope["method"] == "POST" and not (length.isdigit() and int(length) <= most):
            found = f"{length[:20] or 'an unknown number of'} bytes"
            return Refusal(413, found, f"at most {most}", "send less")
        return None
