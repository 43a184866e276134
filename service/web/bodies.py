"""JSON bodies, forms and queries, read alike by all APIs; service/web/middleware.py bounds their size."""

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart import FormParser
from python_multipart.multipart import parse_options_header

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
    """The body's fields. If a name occurs twice, its last value counts, as in most JSON parsers.

    Raises:
        CompressedBody, InvalidRequest: what is wrong with which field.
    """
    body = await read_bytes(request)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (media_type.startswith("application/") and media_type.endswith(("/json", "+json"))):
        # Against CSRF: a form on another site can send text types, but a browser asks before it sends JSON.
        raise InvalidRequest.field("body", "send a JSON object, with Content-Type: application/json")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error.errors(), fields) from error


async def read_form(request: Request, model: type[T], fields: Fields) -> T:
    """The fields of a form, in which files are bytes, as clients of OpenAI send it.

    Raises:
        CompressedBody, InvalidRequest: what is wrong with which field.
    """
    body = await read_bytes(request)
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    if media_type != b"multipart/form-data" or b"boundary" not in options:
        raise InvalidRequest.field("body", "send a form, with Content-Type: multipart/form-data and its boundary")
    try:
        values = _parts(body, options[b"boundary"], len(fields.names))
    except ValueError as error:  # of the parser, or of text that is not UTF-8
        raise InvalidRequest.field("body", f"not a valid form: {error}") from error
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise invalid(error.errors(), fields) from error


def _parts(body: bytes, boundary: bytes, most: int) -> dict[str, str | bytes]:
    """Text and files by field name; on_end detects a truncated form, which the parser accepts in silence."""
    found: dict[str, str | bytes] = {}
    ended: list[bool] = []

    def keep(name: bytes | None, value: str | bytes) -> None:
        text = (name or b"").decode().removesuffix("[]")  # some clients mark lists so, even of one file
        if text in found:
            raise InvalidRequest.field(text[:40], "given more than once")
        if len(found) == most:
            raise InvalidRequest.field("body", f"has more than {most} fields")
        found[text] = value

    def keep_file(file: Any) -> None:
        file.file_object.seek(0)
        keep(file.field_name, file.file_object.read())

    parser = FormParser(
        "multipart/form-data",
        on_field=lambda field: keep(field.field_name, (field.value or b"").decode()),
        on_file=keep_file,
        on_end=lambda: ended.append(True),
        boundary=boundary,
        config={"MAX_MEMORY_FILE_SIZE": len(body) + 1},  # keep files in memory: the disk may be read-only
    )
    parser.write(body)
    parser.finalize()
    if not ended:
        raise ValueError("it has no end")
    return found


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
    """Refuse a query that gives a field twice: neither value is sure to be the one that was meant."""
    for name in request.query_params:
        if len(request.query_params.getlist(name)) > 1:
            raise InvalidRequest.field(name[:40], "given more than once in the query")


def refuse_query(request: Request, message: str = "fields belong into the body, the query takes none") -> None:
    """Refuse any query, where only the body is read and a field in the query would have no effect."""
    for name in request.query_params:
        raise InvalidRequest.field(name[:40], message)
