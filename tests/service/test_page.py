"""The files of the page at / and their headers; tests/service/page/ visits them with a browser."""

import re

import pytest

from service.web.routes.page import FILES, FOLDER
from tests.service.conftest import Running


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/static/page.css", "/static/icon.svg"])
def test_the_headers_keep_everything_foreign_out(server: Running, path: str) -> None:
    response = server.client.get(path)
    assert response.status_code == 200
    policy = dict(part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert "unsafe" not in str(policy)
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    again = server.client.get(path, headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.headers["ETag"]) == (304, response.headers["ETag"])


@pytest.mark.parametrize("name", ["..%2f..%2fsettings.py", "%2e%2e/app.py", "index.html", "nope.js", "%00"])
def test_no_path_leads_out_of_the_folder(server: Running, name: str) -> None:
    assert server.client.get(f"/static/{name}").status_code == 404


def test_every_file_of_the_page_is_served() -> None:
    names = {path.name for path in FOLDER.iterdir()} - {"index.html"}
    assert set(FILES) == names
    imports = [name for path in FOLDER.glob("*.js") for name in re.findall(r'from "\./(.+?)"', path.read_text())]
    assert set(imports) < names


def test_the_page_names_no_foreign_host() -> None:
    text = (FOLDER / "index.html").read_text()
    assert "http://" not in text
    assert "https://" not in text
