"""Choose the format of an answer by the Accept header (RFC 9110, section 12.5.1)."""

from collections.abc import Mapping
from contextlib import suppress

from service.errors import NotAcceptable, echo

MAX_RANGES = 32  # of a header that are looked at; browsers send ten


def negotiate(accept: str, formats: Mapping[str, str]) -> str:
    """The name of the format for an Accept header.

    A format has the q of the most specific media range that matches it. Among equal q the range that the header
    names first wins, then the order of formats.

    Args:
        formats: media types by name; the first one is the default without a header.

    Raises:
        NotAcceptable: no format has a q above 0.
    """
    if accept.strip() in ("", "*/*"):  # nearly all clients but browsers
        return next(iter(formats))
    ranges = _parse_accept(accept)

    def wish(form: str) -> tuple[float, int]:
        kind = formats[form]
        holding = (ranges[name] for name in (kind, f"{kind.partition('/')[0]}/*", "*/*") if name in ranges)
        return next(holding, (0.0, 0))

    best = max(formats, key=wish)
    if wish(best)[0] <= 0:
        raise NotAcceptable(f"Accept: none of {echo(accept)}; this service has {', '.join(formats.values())}")
    return best


def _parse_accept(accept: str) -> dict[str, tuple[float, int]]:
    """q and negative position in the header, by media range; an invalid q counts as 1."""
    ranges: dict[str, tuple[float, int]] = {}
    parts = accept.split(",", MAX_RANGES)[:MAX_RANGES]
    for place, part in enumerate(filter(str.strip, parts)):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                with suppress(ValueError):
                    quality = float(parameter[2:])
        ranges[kind] = max((quality if quality <= 1 else 1.0, -place), ranges.get(kind, (0.0, 0)))
    return ranges
