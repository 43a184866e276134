"""JSON bodies and queries, read alike by all three APIs: UTF-8, at most 64 KiB (service/web/middleware.py)."""

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.errors import CompressedBody, InvalidRequest, echo
from service.web.dialects import invalid
from service.web.schemas import Fields

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors on Windows write it before UTF-8
T = TypeVar("T", bound=BaseModel)


async def read_bytes(request: Request) -> bytes:
    """The body, without a byte order mark.

    Raises:
        CompressedBody: it has a Content-Encoding.
    """
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        message = f"Content-Encoding: {echo(coding)} is not supported: send the body as it is, without compression"
        raise CompressedBody(message)
    return (await request.body()).removeprefix(BYTE_ORDER_MARK)


async def read_json(request: Request, model: type[T], fields: Fields) -> T:
    """The body's fields. Of a name that is given twice in JSON the last one counts, as in most JSON readers.

    Raises:
        CompressedBody, InvalidRequest: what is wrong with which field.
    """
    body = await read_bytes(request)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (media_type.startswith("application/") and media_type.endswith(("/json", "+json"))):
        # a form of a foreign page can send any other type without asking
        raise InvalidRequest.field("body", "send a JSON object, with Content-Type: application/json")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error.errors(), fields) from error


def read_query(request: Request, model: type[T], fields: Fields) -> T:
    """The query's fields.

    Raises:
        InvalidRequest: what is wrong with which field.
    """
    refuse_repeats(request)
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise invalid(error.errors(), fields) from error


def refuse_repeats(request: Request) -> None:
    """Of two values of a field in the query none is the right one."""
    for name in request.query_params:
        if len(request.query_params.getlist(name)) > 1:
            raise InvalidRequest.field(name[:40], "given more than once in the query")


def refuse_query(request: Request, message: str = "fields belong into the body, the query takes none") -> None:
    """Where the body has all fields, one in the query would have no effect."""
    for name in request.query_params:
        raise InvalidRequest.field(name[:40], message)
