"""Everything that can go wrong in a request: one table, said in three dialects (service/web/dialects.py).

error                 own API and OpenAI's   Open Inference    OpenAI's type
ServiceError          500                    500               server_error
├── Unauthorized       401                    401               authentication_error
├── NotFound           404                    404               invalid_request_error
├── MethodNotAllowed   405                    405               invalid_request_error, with Allow
├── UnknownModel       404                    404               invalid_request_error
├── NotAcceptable      406                    406               invalid_request_error
├── RequestTimeout     408                    408               invalid_request_error
├── BodyTooLarge       413                    413               invalid_request_error
├── UriTooLong         414                    414               invalid_request_error
├── CompressedBody     415                    415               invalid_request_error, with Accept-Encoding
├── InvalidRequest     422 (OpenAI's 400)     400               invalid_request_error, names the field
├── QuotaExceeded      429                    429               rate_limit_error, with Retry-After
├── HeadersTooLarge    431                    431               invalid_request_error
├── GenerationFailed   500                    500               server_error, the model gave no finite image
├── QueueIsFull        503                    503               server_error, with Retry-After
├── Overloaded         503                    503               server_error, with Retry-After
├── DeadlineUnreachable 503                   503               server_error, with Retry-After
├── Unavailable        503                    503               server_error, with Retry-After
└── DeadlinePassed     504                    504               server_error
"""

import math
from typing import Any

from pydantic import BaseModel

from service.wire import errors as wire

MAX_FIELD_ERRORS = 10  # in one answer
MAX_ECHO = 40  # characters of a value that a message repeats


class FieldError(BaseModel):
    field: str
    message: str


def echo(value: Any) -> str:
    """A value as a message repeats it: at most 40 characters, however long it was."""
    if isinstance(value, bool | float):
        return f"{value:g}" if isinstance(value, float) else str(value).lower()
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_ECHO else f"{text[: MAX_ECHO - 3]}..."


class ClientGone(Exception):
    """Nobody is left to read an answer."""


class ServiceError(Exception):
    """An answer other than the one that was asked for.

    Args:
        detail: one sentence for the client.
        errors: what is wrong with which field.
        retry_after: seconds after which the same request may succeed.
    """

    status, code, title = 500, "internal-error", "Internal error"
    protocol_status = 0  # of the OpenAI and Open Inference dialects, where it is another one
    openai_type = "server_error"

    def __init__(self, detail: str, errors: list[FieldError] | None = None, retry_after: float | None = None):
        super().__init__(detail)
        self.detail, self.errors = detail, errors or []
        self.retry_after = None if retry_after is None else max(1, math.ceil(retry_after))  # HTTP wants seconds
        self.retry_after_ms = None if retry_after is None else max(1, math.ceil(1000 * retry_after))

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class ClientError(ServiceError):
    """The client can do something about it."""

    openai_type = "invalid_request_error"


class Unauthorized(ClientError):
    status, code, title = 401, "unauthorized", "Unauthorized"
    openai_type = "authentication_error"

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class NotFound(ClientError):
    status, code, title = 404, "not-found", "Not Found"


class MethodNotAllowed(ClientError):
    status, code, title = 405, "method-not-allowed", "Method not allowed"


class UnknownModel(ClientError):
    status, code, title = 404, "unknown-model", "Unknown model"


class NotAcceptable(ClientError):
    status, code, title = 406, "not-acceptable", "Not acceptable"


class RequestTimeout(ClientError):
    status, code, title = 408, "request-timeout", "Request timeout"

    def headers(self) -> dict[str, str]:
        return {"Connection": "close"}


class BodyTooLarge(ClientError):
    status, code, title = 413, "body-too-large", "Body too large"


class UriTooLong(ClientError):
    status, code, title = 414, "uri-too-long", "URI too long"


class CompressedBody(ClientError):
    status, code, title = 415, "compressed-body", "Compressed body"

    def headers(self) -> dict[str, str]:
        return {"Accept-Encoding": "identity"}


class InvalidRequest(ClientError):
    status, code, title = 422, "invalid-request", "Invalid request"
    protocol_status = 400

    @classmethod
    def field(cls, field: str, message: str) -> "InvalidRequest":
        return cls(f"{field}: {message}", [FieldError(field=field, message=message)])

    def renamed(self, names: dict[str, str]) -> "InvalidRequest":
        """The same of an API that calls some fields otherwise."""
        fields = [FieldError(field=names.get(e.field, e.field), message=e.message) for e in self.errors]
        return InvalidRequest.of(fields)

    @classmethod
    def of(cls, errors: list[FieldError]) -> "InvalidRequest":
        """Tells the first few: who sent a thousand wrong fields gets no megabyte back."""
        told = errors[:MAX_FIELD_ERRORS]
        more = f"; and {len(errors) - len(told)} more" if len(errors) > len(told) else ""
        return cls("; ".join(f"{error.field}: {error.message}" for error in told) + more, told)


class QuotaExceeded(ClientError):
    status, code, title = 429, "quota-exceeded", "Quota exceeded"
    openai_type = "rate_limit_error"


class HeadersTooLarge(ClientError):
    status, code, title = 431, "headers-too-large", "Request header fields too large"


class QueueIsFull(ServiceError):
    status, code, title = 503, "queue-full", "Queue full"


class Overloaded(ServiceError):
    status, code, title = 503, "overloaded", "Overloaded"


class Unavailable(ServiceError):
    status, code, title = 503, "unavailable", "Unavailable"


class DeadlineUnreachable(ServiceError):
    status, code, title = 503, "deadline-unreachable", "Deadline unreachable"


class DeadlinePassed(ServiceError):
    status, code, title = 504, "deadline-passed", "Deadline passed"


class GenerationFailed(ServiceError):
    status, code, title = 500, "generation-failed", "Generation failed"


PROBLEMS = (
    Unauthorized, UnknownModel, NotAcceptable, RequestTimeout, BodyTooLarge, UriTooLong, CompressedBody,
    InvalidRequest, QuotaExceeded, HeadersTooLarge, GenerationFailed, QueueIsFull, Overloaded, DeadlineUnreachable,
    Unavailable, DeadlinePassed,
)  # fmt: skip


def from_engine(error: wire.EngineError) -> ServiceError:
    """The engine's refusals in HTTP's terms."""
    match error:
        case wire.InvalidField(field=field):
            return InvalidRequest.field(field, str(error))
        case wire.QueueFull(retry_after=seconds):
            return QueueIsFull(f"{error}: try again later", retry_after=seconds)
        case wire.Overloaded(retry_after=seconds):
            return Overloaded(f"{error}: try again later", retry_after=seconds)
        case wire.DeadlineUnreachable(retry_after=seconds):
            return DeadlineUnreachable(f"deadline_ms: {error}", retry_after=seconds)
        case wire.DeadlinePassed():
            return DeadlinePassed(f"deadline_ms: {error}; work on the request has stopped")
        case wire.EngineStopped():
            return Unavailable(f"{error}: try again later", retry_after=1)
        case wire.RequestFailed():
            return GenerationFailed(str(error))
    return ServiceError(str(error))
