"""The page at /: static files, with a Content-Security-Policy that allows only this origin."""

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from service.errors import NotFound, echo

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
    "Cache-Control": "no-cache",  # browsers revalidate by FileResponse's ETag, so they see a new version at once
}


@router.get("/")
async def page() -> Response:
    return _file("index.html")


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """By a list of names, so that no path can lead out of the folder."""
    if name not in FILES:
        raise NotFound(f"there is no file {echo(name)}")
    return _file(name)


def _file(name: str) -> Response:
    path = FOLDER / name
    return FileResponse(path, headers=HEADERS, media_type=TYPES[path.suffix])
