"""What surrounds every request: its name, and a limit on its size."""

import re
from uuid import uuid4

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLIENT_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
MAX_BODY = 64 * 1024  # bytes; a request needs a few hundred
MAX_DISCARD = (
    16 * 1024 * 1024
)  # bytes read and thrown away, so that a client that is still sending reads the answer


class RequestIdMiddleware:
    """Names every request; a client's own X-Request-Id is echoed when it is short and plain."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given.decode() if CLIENT_REQUEST_ID.fullmatch(given) else uuid4().hex
        scope["request_id"] = request_id

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        await self.app(scope, receive, named)


class BodyLimitMiddleware:
    """413 for a body that is larger than MAX_BODY; what is beyond is never held in memory."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received <= MAX_BODY:
                return message
            while message.get("more_body") and received <= MAX_DISCARD:
                message = await receive()
                received += len(message.get("body", b""))
            raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")

        await self.app(scope, limited, send)
