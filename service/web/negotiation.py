"""Which format an answer has: the Accept header against what the service can make (RFC 9110, section 12.5.1)."""

import math
from collections.abc import Mapping
from contextlib import suppress

from service.errors import NotAcceptable, echo

MAX_RANGES = 32  # of an Accept header; browsers send ten


def negotiate(accept: str, formats: Mapping[str, str]) -> str:
    """The name of the format for an Accept header.

    A format's quality is that of the most specific range that holds it; the best one wins, and among equals the
    one that the header names first, then the order of formats.

    Args:
        formats: media types by name; the first one answers where there is no header.

    Raises:
        NotAcceptable: no format has a quality above 0, or the header is too long to look at.
    """
    if not accept.strip():
        return next(iter(formats))
    ranges = _parse_accept(accept)
    qualities = {form: _quality(ranges, media_type) for form, media_type in formats.items()}
    best, quality = "", 0.0
    for named in [*ranges, "*/*"]:
        for form, media_type in formats.items():
            if qualities[form] > quality and _holds(named, media_type):
                best, quality = form, qualities[form]
    if not best:
        raise NotAcceptable(f"Accept: none of {echo(accept)}; this service has {', '.join(formats.values())}")
    return best


def _holds(media_range: str, media_type: str) -> bool:
    return media_range in (media_type, "*/*", media_type.split("/")[0] + "/*")


def _quality(ranges: dict[str, float], media_type: str) -> float:
    holding = [(kind.count("*"), -quality) for kind, quality in ranges.items() if _holds(kind, media_type)]
    return -min(holding)[1] if holding else 0.0


def _parse_accept(accept: str) -> dict[str, float]:
    """Media ranges in their order and their q in 0..1; a q that is no number counts as 1."""
    parts = [part.strip() for part in accept.split(",") if part.strip()]
    if len(parts) > MAX_RANGES:
        raise NotAcceptable(f"Accept: {len(parts)} media ranges; send at most {MAX_RANGES}")
    ranges: dict[str, float] = {}
    for part in parts:
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                with suppress(ValueError):
                    quality = float(parameter[2:])
        quality = 1.0 if math.isnan(quality) else min(max(quality, 0.0), 1.0)
        ranges[kind] = max(quality, ranges.get(kind, 0.0))
    return ranges
