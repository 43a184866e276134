"""All that can go wrong in a request, in every process; service/web/dialects.py says it in three dialects."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

MAX_FIELD_ERRORS = 10  # in one answer
MAX_ECHO = 40  # characters of a value that a message repeats
FULL_QUEUE = "the queue is full: try again later"
NOT_REPEATED = "not possible on this machine, where a check found that the bits of an image depend on its batch"


@dataclass(frozen=True, slots=True)
class FieldError:
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


def in_bytes(size: int) -> str:
    """A limit in the unit that gives a whole number: "12 MiB", "64 KiB"."""
    return f"{size >> 20} MiB" if size % (1 << 20) == 0 else f"{size >> 10} KiB"


class ClientGone(Exception):
    """Nobody is left to read an answer."""


class ServiceError(Exception):
    """An error that a client gets instead of a result.

    Args:
        detail: one sentence for the client.
        errors: what is wrong with which field.
        retry_after: seconds after which the same request may succeed.
    """

    status, code, title = 500, "internal-error", "Internal error"
    openai_type = "server_error"
    headers: Mapping[str, str] = {}  # of its answer

    def __init__(self, detail: str, errors: list[FieldError] | None = None, retry_after: float | None = None):
        super().__init__(detail)
        self.detail, self.errors, self.retry_after = detail, errors or [], retry_after

    @classmethod
    def field(cls, field: str, message: str, retry_after: float | None = None) -> Self:
        return cls(f"{field}: {message}", [FieldError(field, message)], retry_after)

    @property
    def retry_after_seconds(self) -> int | None:
        """As HTTP wants it, in whole seconds."""
        return None if self.retry_after is None else max(1, math.ceil(self.retry_after))

    @property
    def retry_after_ms(self) -> int | None:
        return None if self.retry_after is None else max(1, math.ceil(1000 * self.retry_after))


class ClientError(ServiceError):
    """The client can do something about it."""

    openai_type = "invalid_request_error"


class Malformed(ClientError):
    status, code, title = 400, "malformed-request", "Malformed request"


class Unauthorized(ClientError):
    status, code, title = 401, "unauthorized", "Unauthorized"
    openai_type = "authentication_error"
    headers = {"WWW-Authenticate": "Bearer"}


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
    headers = {"Connection": "close"}


class SwapUnderWay(ClientError):
    status, code, title = 409, "swap-under-way", "Swap under way"


class BodyTooLarge(ClientError):
    status, code, title = 413, "body-too-large", "Body too large"


class AnswerTooLarge(ClientError):
    status, code, title = 413, "answer-too-large", "Answer too large"


class UriTooLong(ClientError):
    status, code, title = 414, "uri-too-long", "URI too long"


class CompressedBody(ClientError):
    status, code, title = 415, "compressed-body", "Compressed body"
    headers = {"Accept-Encoding": "identity"}


class InvalidRequest(ClientError):
    status, code, title = 422, "invalid-request", "Invalid request"

    def renamed(self, names: dict[str, str]) -> "InvalidRequest":
        """The same error with the field names of another API, also inside messages.

        A class is called a class in every API, so messages keep that word. They also keep what is in quotes,
        because the client wrote it.
        """
        inside = names | {"class": "class"}

        def say(message: str) -> str:
            return re.sub(r"(?<!')\b[a-z_]+\b(?!')", lambda found: inside.get(found[0], found[0]), message)

        return InvalidRequest.of([FieldError(names.get(e.field, e.field), say(e.message)) for e in self.errors])

    @classmethod
    def of(cls, errors: list[FieldError]) -> "InvalidRequest":
        """Names the first MAX_FIELD_ERRORS: a thousand wrong fields must not give an answer of a megabyte."""
        named = errors[:MAX_FIELD_ERRORS]
        more = f"; and {len(errors) - len(named)} more" if len(errors) > len(named) else ""
        return cls("; ".join(f"{error.field}: {error.message}" for error in named) + more, named)


class QuotaExceeded(ClientError):
    status, code, title = 429, "quota-exceeded", "Quota exceeded"
    openai_type = "rate_limit_error"


class HeadersTooLarge(ClientError):
    status, code, title = 431, "headers-too-large", "Request header fields too large"


class GenerationFailed(ServiceError):
    """The model failed on this request."""

    status, code, title = 500, "generation-failed", "Generation failed"


class Refused(ServiceError):
    """The request is valid and may succeed later."""

    status = 503
    reason: str  # as /metrics counts it


class QueueFull(Refused):
    """The queue is at its bound; retry_after is the time to work off what is queued."""

    code, title, reason = "queue-full", "Queue full", "queue_full"


class Overloaded(Refused):
    """The device has more work than it can answer in time, or the service as many connections as it takes."""

    code, title, reason = "overloaded", "Overloaded", "overload"


class DeadlineUnreachable(Refused):
    """The answer would come too late; retry_after as of QueueFull, None if it would on an idle device, too."""

    code, title, reason = "deadline-unreachable", "Deadline unreachable", "deadline"


class Unavailable(Refused):
    """The engine warms up, shuts down or has died, or memory or a version that the request needs is not there."""

    code, title, reason = "unavailable", "Unavailable", "unavailable"

    @classmethod
    def because(cls, why: str) -> "Unavailable":
        return cls(f"{why}: try again later", retry_after=1.0)


class DeadlinePassed(ServiceError):
    """The deadline passed before the images of an accepted request were done; work on it has stopped."""

    status, code, title = 504, "deadline-passed", "Deadline passed"


GENERATE_PROBLEMS = (  # that a route which generates may answer
    Unauthorized, UnknownModel, NotAcceptable, RequestTimeout, BodyTooLarge, AnswerTooLarge, UriTooLong,
    CompressedBody, InvalidRequest, QuotaExceeded, HeadersTooLarge, GenerationFailed, QueueFull, Overloaded,
    DeadlineUnreachable, Unavailable, DeadlinePassed,
)  # fmt: skip
PROBLEMS = (*GENERATE_PROBLEMS, SwapUnderWay)
