"""Headers and response classes that several routes share."""

from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.web.generation import Generated
from service.web.job import Job

PIECE = 256 * 1024  # bytes


class LargeResponse(Response):
    """Sends a large body in PIECEs, so that the connection never buffers a copy of all of it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(self.body), PIECE):
            piece = bytes(self.body[start : start + PIECE])
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def seed_headers(job: Job) -> dict[str, str]:
    return {"X-Seed": job.seeds} | ({"X-Simulated": "true"} if job.card.simulated else {})


def answer_headers(generated: Generated[Any]) -> dict[str, str]:
    timings = generated.timings.model_dump()
    timing = ", ".join(f"{name};dur={1000 * value:.3f}" for name, value in timings.items())
    return seed_headers(generated.job) | {"Server-Timing": timing}


def has_tag(if_none_match: list[str], etag: str) -> bool:
    """Whether If-None-Match has the tag, by weak comparison (RFC 9110, section 13.1.2)."""
    tags = {tag.strip().removeprefix("W/") for line in if_none_match for tag in line.split(",")}
    return bool(tags & {etag, "*"})
