"""HEAD wherever GET costs nothing, and a 405 that says what is allowed, in the dialect of its path."""

import pytest

from tests.service.conftest import Running
from tests.service.sockets import connect, head, read_all

GET_PATHS = [
    "/", "/static/page.js", "/models", "/info", "/metrics", "/livez", "/readyz", "/openapi.json", "/v1/models",
    "/v1/models/dit", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/dit", "/v2/models/dit/versions/1",
    "/v2/models/dit/ready", "/v2/models/dit/versions/1/ready", "/v2/models/dit/config", "/v2/models/dit/stats",
    "/v2/models/stats",
]  # fmt: skip


def test_the_list_has_every_path_with_get(server: Running) -> None:
    """Every path with GET in the OpenAPI document stands above, but for two whose version is a parameter, too."""
    paths = server.client.get("/openapi.json").json()["paths"]
    documented = {path.format(model="dit", version="1") for path, methods in paths.items() if "get" in methods}
    assert documented - set(GET_PATHS) == {
        "/generate", "/v2/models/dit/versions/1/config", "/v2/models/dit/versions/1/stats",
    }  # fmt: skip


@pytest.mark.parametrize("path", GET_PATHS)
def test_head_is_get_without_a_body(server: Running, path: str) -> None:
    with connect(server.url) as raw:  # a client would hide a body
        raw.sendall(head("HEAD", path, "Connection: close"))
        answer, _, body = read_all(raw).partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert body == b""
    got = server.client.get(path)
    assert got.headers["content-type"].encode() in answer


def test_head_of_nothing_is_not_found(server: Running) -> None:
    for path in ("/nope", "/static/nope.js", "/v1/models/nope", "/v2/models/nope"):
        assert server.client.head(path).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/generate", "GET, POST"),
        ("HEAD", "/generate", "GET, POST"),
        ("POST", "/models", "GET, HEAD"),
        ("DELETE", "/", "GET, HEAD"),
        ("GET", "/v1/images/generations", "POST"),
        ("POST", "/v1/models/dit", "GET, HEAD"),
        ("GET", "/v2/models/dit/infer", "POST"),
        ("PATCH", "/v2/models/dit/versions/1", "GET, HEAD"),
        ("GET", "/v2/repository/index", "POST"),
    ],
)
def test_another_method_is_told_the_right_ones(server: Running, method: str, path: str, allow: str) -> None:
    response = server.client.request(method, path)
    assert (response.status_code, response.headers["Allow"]) == (405, allow)
    assert response.headers["Cache-Control"] == "no-store"
    if method != "HEAD":
        said = f"{method} is not allowed here: use {allow.replace(', ', ' or ')}"
        assert said in response.text
