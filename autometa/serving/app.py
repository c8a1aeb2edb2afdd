"""The HTTP application: a saved model behind /predict, /adapt and what operators ask for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from autometa.adaptation import Adapter, adapt, adaptation_details, way_to_adapt
from autometa.exceptions import DataError
from autometa.predictor import Predictor
from autometa.serving.batching import Batcher
from autometa.serving.guard import Guard
from autometa.serving.metrics import ServiceMetrics
from autometa.serving.page import api_page
from autometa.serving.prediction import Answer, Rows, predict_together
from autometa.serving.problems import RequestProblem
from autometa.serving.schema import RowSchema
from autometa.serving.settings import ServiceSettings, api_key
from autometa.serving.tables import ARROW, CSV, read_arrow, read_csv
from autometa.serving.versions import VersionStore

JSON = "application/json"
_TYPES = (JSON, CSV, ARROW)
_ADAPT_SECONDS = 120.0
_STATUS = {
    401: "The API key is missing or wrong.",
    408: "The body came too slowly, or the answer took too long.",
    413: "Too many bytes or rows.",
    415: "The body is of another type than those listed.",
    422: "The body or a parameter cannot be used; one sentence says why.",
    429: "Too many requests are waiting.",
}
_PROBLEM = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}


def create_app(settings: ServiceSettings, *, key: str | None = None, adapter: Adapter = adapt) -> FastAPI:
    """The application of one model.

    Parameters
    ----------
    settings : ServiceSettings
    key : str or None, default=None
        What clients must send as ``X-API-Key`` or ``Authorization: Bearer``; ``None``: nobody is asked.
    adapter : callable, default=autometa.adaptation.adapt
        ``adapter(predictor, X, y) -> predictor``.

    Returns
    -------
    fastapi.FastAPI

    Raises
    ------
    ArtefactError
        The model cannot be loaded.
    """
    service = _Service(settings, adapter)
    app = FastAPI(
        title="autometa model", version="1", lifespan=service.lifespan, docs_url=None, redoc_url=None,
        description="Predictions of one saved model.", redirect_slashes=False,
    )  # fmt: skip
    _add_model_routes(app, service)
    if settings.adaptation:
        _add_version_routes(app, service)
    _add_operator_routes(app, service)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(RequestProblem, _answer_problem)
    app.add_middleware(Guard, key=key, metrics=service.metrics, log_data=settings.log_data)
    return app


def create_app_from_environment() -> FastAPI:
    """What a worker process calls."""
    return create_app(ServiceSettings.from_environment(), key=api_key())


class _Service:
    """What the routes share."""

    def __init__(self, settings: ServiceSettings, adapter: Adapter) -> None:
        self.settings, self.adapter = settings, adapter
        self.store = VersionStore(Path(settings.model), settings.versions_path)
        predictor = self.store.current().predictor
        self.schema = RowSchema(predictor.columns, settings.max_rows)
        self.metrics = ServiceMetrics()
        self.batcher: Batcher[Rows, Answer] | None = None
        self.adapting = asyncio.Lock()

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self.batcher = Batcher(self._predict, max_size=self.settings.max_rows)
        self.batcher.start()
        yield
        batcher, self.batcher = self.batcher, None
        await batcher.stop()
        self.metrics.forget_process()

    def _predict(self, items: Any) -> list[Answer | Exception]:
        version = self.store.current()
        self.metrics.version.set(version.number)
        self.metrics.batches.observe(sum(map(len, items)))
        return predict_together(version, items, self.schema)

    async def answer(self, rows: Rows) -> Answer:
        if self.batcher is None:
            raise RequestProblem(429, "The service is shutting down. Try again in a moment.")
        answer = await self.batcher.ask(rows, size=len(rows), timeout_seconds=self.settings.timeout_seconds)
        self.metrics.rows.inc(len(rows))
        return answer

    async def body(self, request: Request) -> tuple[str, bytes]:
        """Media type and body, within the limits."""
        kind, limit = _media_type(request), self.settings.max_body_bytes
        too_large = RequestProblem(413, f"A body must have at most {limit} bytes: send fewer rows at a time.")
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared[:20]) > limit:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.settings.timeout_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        raise too_large
                    parts.append(part)
        except TimeoutError:
            seconds = self.settings.timeout_seconds
            raise RequestProblem(408, f"The body must arrive within {seconds:g} s.") from None
        return kind, b"".join(parts)

    def table(self, kind: str, body: bytes) -> pd.DataFrame:
        reader = read_csv if kind == CSV else read_arrow
        return reader(body, max_rows=self.settings.max_rows)

    def adapt_now(self, frame: pd.DataFrame, target: list[Any]) -> dict[str, Any]:
        def change(predictor: Predictor) -> tuple[Predictor, dict[str, Any]]:
            changed = self.adapter(predictor, frame, target)
            return changed, adaptation_details(predictor, changed, frame, target)

        try:
            return self.store.add(change)
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            raise _unusable(error) from error


def _add_model_routes(app: FastAPI, service: _Service) -> None:
    body = _body_document({JSON: service.schema.rows_json_schema()})

    @app.post(
        "/predict", summary="Predict rows", responses=_responses(401, 408, 413, 415, 422, 429), openapi_extra=body
    )
    async def predict(
        request: Request, proba: bool = Query(False, description="Class probabilities as well.")
    ) -> Response:
        kind, content = await service.body(request)
        if kind == JSON:
            rows: Rows = service.schema.read_rows(content)
        else:
            rows = await asyncio.to_thread(service.table, kind, content)
        answer = await service.answer(rows)
        return _json(answer.document(proba))

    @app.get("/schema", summary="Columns, classes and limits", responses=_responses(401))
    async def schema() -> Response:
        return _json(_schema_document(service))


def _add_version_routes(app: FastAPI, service: _Service) -> None:
    body = _body_document({JSON: service.schema.labelled_json_schema()})

    @app.post("/adapt", summary="Adapt the model to labelled rows; makes a version", openapi_extra=body,
              responses=_responses(401, 408, 413, 415, 422))  # fmt: skip
    async def adapt_model(
        request: Request,
        target: str | None = Query(None, description="Column with the target, for CSV and Arrow."),
    ) -> Response:
        kind, content = await service.body(request)
        if kind == JSON:
            frame, values = service.schema.read_labelled(content)
        else:
            frame, values = _split_target(await asyncio.to_thread(service.table, kind, content), target)
        try:
            async with asyncio.timeout(_ADAPT_SECONDS), service.adapting:
                entry = await asyncio.to_thread(service.adapt_now, frame, values)
        except TimeoutError:
            raise RequestProblem(408, "The adaptation took too long: send fewer rows.") from None
        return _json(entry)

    @app.post("/rollback", summary="Let an older version serve", responses=_responses(401, 422))
    async def rollback(
        version: int | None = Query(None, description="By default the one that the current one is based on."),
    ) -> Response:
        return _json({"current": await asyncio.to_thread(service.store.rollback, version)})

    @app.get("/versions", summary="All versions and which one serves", responses=_responses(401))
    async def versions() -> Response:
        return _json(service.store.history())


def _add_operator_routes(app: FastAPI, service: _Service) -> None:
    @app.get("/health", summary="Whether the process lives")
    async def health() -> Response:
        return _json({"status": "ok"})

    @app.get("/ready", summary="Whether predictions are answered now", responses={503: {"description": "Not now."}})
    async def ready() -> Response:
        ready = service.batcher is not None
        return _json({"ready": ready}, 200 if ready else 503)

    @app.get("/metrics", summary="Counters for Prometheus", responses=_responses(401))
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(api_page(app.openapi(), service.schema.columns))


def _media_type(request: Request) -> str:
    kind, _, options = request.headers.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    charset = options.lower().replace(" ", "").removeprefix("charset=").strip('"')
    if kind not in _TYPES or (options and charset not in ("utf-8", "utf8", "us-ascii")):
        raise RequestProblem(
            415, f"Content-Type must be one of {', '.join(_TYPES)}, in UTF-8. Got {kind!r:.60}: say what the body is."
        )
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestProblem(415, "The body must not be compressed.")
    return kind


def _split_target(frame: pd.DataFrame, target: str | None) -> tuple[pd.DataFrame, list[Any]]:
    if target is None or target not in frame.columns:
        raise RequestProblem(422, f"target must name a column of the body (?target=...). Got {target!r:.60} instead.")
    values = frame[target]
    return frame.drop(columns=[target]), values.astype(object).where(values.notna(), None).tolist()


def _unusable(error: Exception) -> RequestProblem:
    """A table that the model cannot read; library errors without their words, which may quote data at length."""
    sentence = str(error) if isinstance(error, DataError) else f"The rows cannot be used: {type(error).__name__}."
    return RequestProblem(422, f"{sentence:.400}")


def _schema_document(service: _Service) -> dict[str, Any]:
    version, settings = service.store.current(), service.settings
    predictor = version.predictor
    columns = [
        {"name": key, "kind": str(column.kind), "dtype": column.dtype, "categories": list(column.categories)}
        for key, column in zip(service.schema.keys, service.schema.columns, strict=True)
    ]
    return {
        "version": version.number,
        "task": str(predictor.task),
        "classes": None if predictor.classes is None else predictor.classes.tolist(),
        "columns": columns,
        "adaptation": way_to_adapt(predictor) if settings.adaptation else None,
        "limits": {"max_rows": settings.max_rows, "max_body_bytes": settings.max_body_bytes,
                   "timeout_seconds": settings.timeout_seconds},
        "body": service.schema.rows_json_schema(),
    }  # fmt: skip


def _body_document(schemas: dict[str, Any]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in schemas.items()}
    content[CSV] = {"schema": {"type": "string"}}
    content[ARROW] = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": content}}


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {JSON: {"schema": _PROBLEM}}
    return {status: {"description": _STATUS[status], "content": content} for status in statuses}


def _json(document: Any, status: int = 200) -> Response:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, default=str)
    return Response(text.encode("utf-8", errors="replace"), status, media_type=JSON)


async def _answer_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestProblem)
    return _json({"error": error.sentence}, error.status)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _json({"error": str(error.detail)}, error.status_code)
    response.headers.update(error.headers or {})
    return response
