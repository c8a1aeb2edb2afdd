"""What stands before every request: the API key, the counters and one line of log without data."""

from __future__ import annotations

import hmac
import json
import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autometa.serving.metrics import ServiceMetrics

logger = logging.getLogger("autometa.serving")
_OPEN = frozenset({"/health", "/ready"})
_PATHS = frozenset(
    {
        "/predict",
        "/adapt",
        "/rollback",
        "/versions",
        "/schema",
        "/health",
        "/ready",
        "/metrics",
        "/docs",
        "/openapi.json",
    }
)
_DENIED = json.dumps({"error": "The API key must be sent as X-API-Key or Authorization: Bearer."}).encode()
_FAILED = json.dumps({"error": "The service failed; its log says where."}).encode()


class Guard:
    """ASGI middleware.

    Parameters
    ----------
    app : ASGI application
    key : str or None
    metrics : ServiceMetrics
    log_data : bool
        Log bodies too.
    """

    def __init__(self, app: ASGIApp, *, key: str | None, metrics: ServiceMetrics, log_data: bool) -> None:
        self.app, self.metrics, self.log_data = app, metrics, log_data
        self.key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        path = scope["path"] if scope["path"] in _PATHS else "other"

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if path in _OPEN or self._is_known(scope):
                await self.app(scope, self._watched(receive), watched_send)
            else:
                await _answer(watched_send, 401, _DENIED)
        except Exception as error:
            logger.error("%s failed with %s at %s", path, type(error).__name__, _place(error))
            if status == 0:
                await _answer(watched_send, 500, _FAILED)
        finally:
            seconds = time.perf_counter() - started
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            logger.info("%s %s %d %.1f ms", scope["method"], path, status, 1e3 * seconds)

    def _is_known(self, scope: Scope) -> bool:
        """Compared in constant time, so that the time to an answer tells nothing of the key."""
        if self.key is None:
            return True
        headers: dict[bytes, bytes] = dict(scope["headers"])
        sent = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return hmac.compare_digest(sent, self.key)

    def _watched(self, receive: Receive) -> Receive:
        if not self.log_data:
            return receive

        async def logged() -> Message:
            message = await receive()
            if message.get("body"):
                logger.info("body %r", message["body"])
            return message

        return logged


def _place(error: BaseException) -> str:
    """File and line of the innermost frame: enough to find it, and no cell of the table."""
    trace: Any = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
