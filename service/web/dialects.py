"""Error bodies of the three APIs: OpenAI's under /v1, Open Inference's under /v2, RFC 9457 elsewhere.

The path decides, so that an error before routing has the caller's format, too.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from service.errors import (
    GENERATE_PROBLEMS,
    FieldError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ServiceError,
    echo,
)
from service.web.schemas import Fields, allowed

NO_HEAD = {"/generate"}  # HEAD would run the model to send no picture


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    retry_after_seconds: int | None = None  # as the header has it
    retry_after_ms: int | None = None
    errors: list[FieldError] = []


class OpenAIProblem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(BaseModel):
    """The error body of the OpenAI API."""

    error: OpenAIProblem


class InferenceError(BaseModel):
    """The error body of the Open Inference Protocol."""

    error: str


def problem(error: ServiceError, request_id: str) -> dict[str, Any]:
    said = Problem(
        type=f"urn:problem:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        request_id=request_id,
        retry_after_seconds=error.retry_after_seconds,
        retry_after_ms=error.retry_after_ms,
        errors=error.errors,
    )
    return said.model_dump(exclude_none=True)


def openai_error(error: ServiceError, request_id: str) -> dict[str, Any]:
    param = error.errors[0].field if error.errors else None
    code = error.code.replace("-", "_")
    said = OpenAIProblem(message=error.detail, type=error.openai_type, param=param, code=code)
    return OpenAIError(error=said).model_dump()


def inference_error(error: ServiceError, request_id: str) -> dict[str, Any]:
    return InferenceError(error=error.detail).model_dump()


class Dialect(NamedTuple):
    say: Any  # (error, request id) -> body
    schema: type[BaseModel]
    media_type: str
    invalid: int  # the status of InvalidRequest; all others are the same everywhere

    def status(self, error: ServiceError | type[ServiceError]) -> int:
        return self.invalid if error.code == InvalidRequest.code else error.status


OWN = Dialect(problem, Problem, "application/problem+json", 422)
OPENAI = Dialect(openai_error, OpenAIError, "application/json", 400)
INFERENCE = Dialect(inference_error, InferenceError, "application/json", 400)


SHAPES = (Problem, OpenAIError, InferenceError)


def dialect_of(path: str) -> Dialect:
    match path.split("/")[1:2]:
        case ["v1"]:
            return OPENAI
        case ["v2"]:
            return INFERENCE
    return OWN


def answer(scope: Scope | Request, error: ServiceError) -> Response:
    """The error's response, in the dialect of the request's path."""
    facts: Mapping[str, Any] = scope.scope if isinstance(scope, Request) else scope
    dialect = dialect_of(facts["path"])
    body = dialect.say(error, facts.get("request_id", ""))
    headers = dict(error.headers)
    if error.retry_after is not None:  # the second one is read by OpenAI's clients
        headers |= {"Retry-After": str(error.retry_after_seconds), "Retry-After-Ms": str(error.retry_after_ms)}
    return JSONResponse(body, dialect.status(error), headers, dialect.media_type)


def install(app: FastAPI, fields: Fields) -> None:
    """Answer the errors of FastAPI itself in the dialect of the path; middleware.py answers all others.

    Args:
        fields: of GET /generate, whose query FastAPI reads; the other routes read their fields themselves.
    """

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return answer(request, invalid(error.errors(), fields))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        """FastAPI's router raises only 404 and 405; this service's routes raise ServiceErrors."""
        if error.status_code != 405:
            return answer(request, NotFound("there is nothing at this path: see /openapi.json"))
        methods = _allowed_methods(app, request.scope["path"])
        refusal = MethodNotAllowed(f"{request.method[:20]} is not allowed here: use {' or '.join(methods)}")
        refusal.headers = {"Allow": ", ".join(methods)}
        return answer(request, refusal)


def _allowed_methods(app: FastAPI, path: str) -> list[str]:
    """Methods of all routes at a path; Starlette's Allow header names only the first route's."""
    found = {
        m for route in iter_route_contexts(app.routes) if route.path_regex.match(path) for m in route.methods or ()
    }
    if "GET" in found and path not in NO_HEAD:
        found.add("HEAD")
    return sorted(found)


def invalid(items: Any, fields: Fields) -> InvalidRequest:
    """Turn pydantic's errors into one InvalidRequest, with a field error for each item.

    Args:
        items: as ValidationError.errors() lists them.
        fields: names and limits of the API, for the messages.
    """
    return InvalidRequest.of([_field_error(item, fields) for item in items])


# pydantic's error types begin with the expected type: int_parsing, int_type, int_from_float, ...
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "dict": "an object",
}


def _field_error(item: dict[str, Any], fields: Fields) -> FieldError:
    path = ".".join(str(part) for part in item["loc"] if part not in ("query", "body"))
    field = path[:80].encode(errors="replace").decode()  # JSON can write half a surrogate pair, UTF-8 cannot
    if item["type"] == "json_invalid":
        return FieldError(field="body", message=f"not valid JSON in UTF-8: {item['ctx']['error']}")
    return FieldError(field=field or "body", message=_message(item, field, fields))


def _message(item: dict[str, Any], field: str, fields: Fields) -> str:
    facts, kind = item.get("ctx", {}), item["type"].partition("_")[0]
    match item["type"]:
        case "missing":
            return f"required: {fields.needs[field]}" if field in fields.needs else "required"
        case "extra_forbidden":
            return f"unknown field: use {', '.join(fields.names)}"
        case "model_type" | "model_attributes_type":
            return "must be a JSON object"
        case "string_too_long":
            return f"must be at most {facts['max_length']} characters long"
        case "too_long":
            return f"must have at most {facts['max_length']} items"
        case "literal_error":
            return f"must be {facts['expected']}, not {echo(item['input'])}"
    given = item["input"]
    said = repr(given) if isinstance(given, float) else echo(given)  # echo would call 5.0 the whole number 5
    if field in fields.limits:
        return f"must be {allowed(fields.limits[field])}, not {said}"
    if kind in KINDS:
        return f"must be {KINDS[kind]}, not {said}"
    return item["msg"].removeprefix("Value error, ")


def document(
    dialect: Dialect = OWN, codes: tuple[type[ServiceError], ...] = GENERATE_PROBLEMS
) -> dict[int | str, Any]:
    """The OpenAPI `responses` of a route that may answer these errors."""
    schema = {dialect.media_type: {"schema": {"$ref": f"#/components/schemas/{dialect.schema.__name__}"}}}
    titles: dict[int | str, list[str]] = {}
    for error in codes:
        titles.setdefault(dialect.status(error), []).append(error.title)
    return {status: {"description": " or ".join(names), "content": schema} for status, names in titles.items()}
