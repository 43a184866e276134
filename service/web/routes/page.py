"""The page at /: static files, with a Content-Security-Policy that allows only this origin."""

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from service.errors import NotFound, echo
from service.web.routes.answers import has_tag

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "static"
FILES = (
    "icon.svg", "page.css", "page.js",
    "between.js", "burst.js", "cards.js", "dom.js", "drawing.js", "form.js", "forwards.js", "pen.js", "player.js",
    "service.js", "stream.js", "strip.js",
)  # fmt: skip
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # browsers ask by the ETag each time, so they see a new version at once
}


@router.get("/")
async def page(request: Request) -> Response:
    return _file("index.html", request)


@router.get("/static/{name}")
async def static(name: str, request: Request) -> Response:
    """By a list of names, so that no path can lead out of the folder."""
    if name not in FILES:
        raise NotFound(f"there is no file {echo(name)}")
    return _file(name, request)


def _file(name: str, request: Request) -> Response:
    path = FOLDER / name
    answer = FileResponse(path, headers=HEADERS, media_type=TYPES[path.suffix], stat_result=path.stat())
    if has_tag(request.headers.getlist("if-none-match"), etag := answer.headers["etag"]):
        return Response(status_code=304, headers=HEADERS | {"ETag": etag})
    return answer
