"""Every error in every dialect, from one table."""

import json

import pytest

from service import errors
from service.errors import PROBLEMS, ClientError, FieldError, InvalidRequest, Refused, ServiceError
from service.web.dialects import InferenceError, OpenAIError, Problem, answer, dialect_of

STATUSES = {
    "malformed-request": 400,
    "unauthorized": 401, "not-found": 404, "unknown-model": 404, "not-acceptable": 406, "request-timeout": 408,
    "method-not-allowed": 405, "body-too-large": 413, "answer-too-large": 413, "uri-too-long": 414,
    "compressed-body": 415,
    "swap-under-way": 409, "invalid-request": 422, "quota-exceeded": 429,
    "headers-too-large": 431, "internal-error": 500, "generation-failed": 500, "queue-full": 503, "overloaded": 503,
    "deadline-unreachable": 503, "unavailable": 503, "deadline-passed": 504,
}  # fmt: skip
OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
EVERYTHING = [*PROBLEMS, errors.NotFound, errors.MethodNotAllowed, errors.Malformed, ServiceError]


def said(path: str, error: ServiceError) -> tuple[int, dict[str, str], dict]:
    response = answer({"type": "http", "path": path, "request_id": "abc"}, error)
    return response.status_code, dict(response.headers), json.loads(bytes(response.body))


def test_the_table_is_complete() -> None:
    """Whatever is raised somewhere has a line in the table and in the OpenAPI document."""
    classes = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, ServiceError)}
    assert classes - {ClientError, Refused} == set(EVERYTHING)
    assert {error.code: error.status for error in EVERYTHING} == STATUSES


@pytest.mark.parametrize("kind", EVERYTHING)
def test_the_own_api_speaks_rfc_9457(kind: type[ServiceError]) -> None:
    error = kind("what is wrong", [FieldError(field="steps", message="too many")], retry_after=2.2)
    status, headers, body = said("/generate", error)
    problem = Problem.model_validate(body)
    assert status == problem.status == STATUSES[kind.code]
    assert headers["content-type"] == "application/problem+json"
    assert (problem.type, problem.title, problem.detail) == (
        f"urn:problem:{kind.code}",
        kind.title,
        "what is wrong",
    )
    assert (problem.request_id, problem.retry_after_seconds, problem.retry_after_ms) == ("abc", 3, 2200)
    assert problem.errors[0].field == "steps"


@pytest.mark.parametrize("kind", EVERYTHING)
def test_v1_speaks_openai(kind: type[ServiceError]) -> None:
    error = kind("what is wrong", [FieldError(field="steps", message="too many")])
    status, headers, body = said("/v1/images/generations", error)
    inner = OpenAIError.model_validate(body).error
    expected = 400 if kind is InvalidRequest else STATUSES[kind.code]
    assert status == expected
    assert headers["content-type"] == "application/json"
    default = "server_error" if status >= 500 else "invalid_request_error"
    assert inner.type == OPENAI_TYPES.get(status, default)
    assert (inner.message, inner.param, inner.code) == ("what is wrong", "steps", kind.code.replace("-", "_"))
    assert said("/v1/x", kind("without a field"))[2]["error"]["param"] is None


@pytest.mark.parametrize("kind", EVERYTHING)
def test_v2_speaks_open_inference(kind: type[ServiceError]) -> None:
    status, headers, body = said("/v2/models/dit/infer", kind("what is wrong"))
    assert status == (400 if kind is InvalidRequest else STATUSES[kind.code])
    assert headers["content-type"] == "application/json"
    assert InferenceError.model_validate(body).model_dump() == body == {"error": "what is wrong"}


@pytest.mark.parametrize("path", ["/generate", "/v1/models", "/v2/models"])
def test_every_dialect_tells_when_to_come_back(path: str) -> None:
    _, headers, _ = said(path, errors.QueueFull("full", retry_after=0.2))
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "200")
    _, headers, _ = said(path, errors.Unauthorized("no key"))
    assert headers["www-authenticate"] == "Bearer"
    assert "retry-after" not in headers
    assert "retry-after-ms" not in headers


@pytest.mark.parametrize(
    ("path", "schema"),
    [("/", Problem), ("/v1x", Problem), ("/v1", OpenAIError), ("/v1/a", OpenAIError), ("/v2", InferenceError)],
)
def test_the_path_chooses_the_dialect(path: str, schema: type) -> None:
    assert dialect_of(path).schema is schema
