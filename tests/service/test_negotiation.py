"""The Accept header."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import NotAcceptable
from service.web.images import MEDIA_TYPES
from service.web.negotiation import MAX_RANGES, negotiate


@given(st.text(alphabet="abimge/*;,q=0.19 jpnw", max_size=40))
def test_any_accept_header_is_negotiated_or_refused(accept: str) -> None:
    with suppress(NotAcceptable):
        assert negotiate(accept, MEDIA_TYPES) in MEDIA_TYPES


def test_of_long_headers_the_beginning_counts() -> None:
    ranges = ["text/html"] * (MAX_RANGES - 1)
    assert negotiate(",".join([*ranges, "image/webp"]), MEDIA_TYPES) == "webp"
    with pytest.raises(NotAcceptable):
        negotiate(",".join([*ranges, "text/html", "image/webp"]), MEDIA_TYPES)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "png"),
        ("*/*", "png"),
        ("image/*", "png"),
        ("image/webp", "webp"),
        ("application/json", "json"),
        ("application/json;q=0.5, image/jpeg;q=0.9", "jpeg"),
        ("text/html, application/xhtml+xml, image/webp, */*;q=0.8", "webp"),
        ("image/png;q=0, application/x-npy", "npy"),
        ("image/png;q=0, */*", "webp"),
        ("*/*;q=0.1, image/webp", "webp"),
        ("IMAGE/JPEG; Q=0.2", "jpeg"),
        ("image/jpeg;q=nan, image/png;q=0.9", "jpeg"),
        ("image/png;q=0.1, image/png, image/webp;q=0.5", "png"),
        ("image/*;q=0.5, application/json;q=0.5", "png"),
    ],
)
def test_the_accept_header_chooses_the_format(accept: str, form: str) -> None:
    assert negotiate(accept, MEDIA_TYPES) == form
