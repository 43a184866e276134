"""Which methods a path takes: HEAD wherever GET costs nothing, and the list for whoever sends another one."""

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.types import ASGIApp, Receive, Scope, Send

COSTLY = {"/generate"}  # HEAD would run the model to send no picture


class HeadMiddleware:
    """Answers HEAD as GET; the server leaves the body out."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD" and scope["path"] not in COSTLY:
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """Of all routes of a path; Starlette's Allow names those of the first one."""
    found = {
        m for route in iter_route_contexts(app.routes) if route.path_regex.match(path) for m in route.methods or ()
    }
    if "GET" in found and path not in COSTLY:
        found.add("HEAD")
    return sorted(found)
