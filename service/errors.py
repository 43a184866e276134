"""Everything that can go wrong in a request, and how HTTP says it (RFC 9457, application/problem+json).

ServiceError             500
├── UnknownModel          404
├── NotAcceptable         406
├── BodyTooLarge          413
├── InvalidRequest        422  names the fields
├── GenerationFailed      500  the model gave no finite image
├── QueueIsFull           503  with Retry-After
├── DeadlineUnreachable   503  with Retry-After
├── DeadlinePassed        504
└── Unavailable           503  with Retry-After: warming up, shutting down, or dead
"""

import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from service.engine import request
from service.engine.request import EngineError, EngineStopped, QueueFull, RequestFailed
from service.schemas import FIELD_NAMES

MEDIA_TYPE = "application/problem+json"
CLIENT_CLOSED_REQUEST = 499  # nginx's code; nobody is left to read it


class FieldError(BaseModel):
    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    retry_after_seconds: int | None = None
    errors: list[FieldError] = []


class ServiceError(Exception):
    status, code, title = 500, "internal-error", "Internal error"

    def __init__(self, detail: str, errors: list[FieldError] | None = None, retry_after: float | None = None):
        super().__init__(detail)
        self.detail, self.errors = detail, errors or []
        self.retry_after = None if retry_after is None else max(1, math.ceil(retry_after))  # whole seconds


class UnknownModel(ServiceError):
    status, code, title = 404, "unknown-model", "Unknown model"


class NotAcceptable(ServiceError):
    status, code, title = 406, "not-acceptable", "Not acceptable"


class BodyTooLarge(ServiceError):
    status, code, title = 413, "body-too-large", "Body too large"


class InvalidRequest(ServiceError):
    status, code, title = 422, "invalid-request", "Invalid request"

    @classmethod
    def field(cls, field: str, message: str) -> "InvalidRequest":
        return cls(f"{field}: {message}", [FieldError(field=field, message=message)])


class QueueIsFull(ServiceError):
    status, code, title = 503, "queue-full", "Queue full"


class Unavailable(ServiceError):
    status, code, title = 503, "unavailable", "Unavailable"


class DeadlineUnreachable(ServiceError):
    status, code, title = 503, "deadline-unreachable", "Deadline unreachable"


class DeadlinePassed(ServiceError):
    status, code, title = 504, "deadline-passed", "Deadline passed"


class GenerationFailed(ServiceError):
    status, code, title = 500, "generation-failed", "Generation failed"


PROBLEMS = (
    UnknownModel, NotAcceptable, BodyTooLarge, InvalidRequest, GenerationFailed, QueueIsFull, DeadlineUnreachable,
    Unavailable, DeadlinePassed,
)  # fmt: skip


def from_engine(error: EngineError) -> ServiceError:
    """The engine's refusals in HTTP's terms."""
    match error:
        case QueueFull(retry_after=seconds):
            return QueueIsFull("the queue is full: try again later", retry_after=seconds)
        case request.DeadlineUnreachable(retry_after=seconds):
            return DeadlineUnreachable(f"deadline_ms: {error}", retry_after=seconds)
        case request.DeadlinePassed():
            return DeadlinePassed(f"deadline_ms: {error}; work on the request has stopped")
        case EngineStopped():
            return Unavailable(f"{error}: try again later", retry_after=1)
        case RequestFailed():
            return GenerationFailed(str(error))
    return ServiceError(str(error))


def problem_response(http: Request, error: ServiceError) -> Response:
    request_id = http.scope.get("request_id", "")
    problem = Problem(
        type=f"urn:problem:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        request_id=request_id,
        retry_after_seconds=error.retry_after,
        errors=error.errors,
    )
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(problem.model_dump(exclude_none=True), error.status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every error of the application as a problem."""

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> Response:
        return problem_response(request, error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        fields = [_field_error(item) for item in error.errors()]
        detail = "; ".join(f"{item.field}: {item.message}" for item in fields)
        return problem_response(request, InvalidRequest(detail, fields))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        response = problem_response(request, _from_http(error))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        response = problem_response(request, ServiceError("the service failed on this request"))
        response.headers["X-Request-Id"] = request.scope.get("request_id", "")  # outside of every middleware
        return response


def _from_http(error: HTTPException) -> ServiceError:
    match error.status_code:
        case 400:  # FastAPI's answer to a body that it cannot parse
            return InvalidRequest.field("body", "not a JSON object in UTF-8")
        case 413:
            return BodyTooLarge(str(error.detail))
    problem = ServiceError(str(error.detail))
    problem.status, problem.code, problem.title = error.status_code, "http-error", str(error.detail)
    return problem


def _field_error(item: dict[str, Any]) -> FieldError:
    path = [str(part) for part in item["loc"] if part not in ("query", "body")]
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "json_invalid":
        path, message = [], f"not valid JSON: {item['ctx']['error']}"
    elif item["type"] == "extra_forbidden":
        message = f"unknown field: use {', '.join(FIELD_NAMES)}"
    elif item["type"] == "model_attributes_type":
        message = "send a JSON object, with Content-Type: application/json"
    return FieldError(field=".".join(path)[:80] or "body", message=message)


def document(codes: tuple[type[ServiceError], ...] = PROBLEMS) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` of a route that may answer these problems."""
    schema = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    titles: dict[int | str, list[str]] = {}
    for error in codes:
        titles.setdefault(error.status, []).append(error.title)
    return {status: {"description": " or ".join(names), "content": schema} for status, names in titles.items()}
