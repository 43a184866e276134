"""A sampler of one's own needs one entry in models.samplers.SAMPLERS and no other change."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from models import samplers
from service.local import create_app
from tests.service.conftest import Running, running, tiny_settings

NAME = "halfway"


def halfway(grid: samplers.Grid, i: int, eta: float) -> tuple[float, float, float, float]:
    """The mean of ddim with no noise and with half of it: a sampler that no other one equals."""
    pairs = zip(samplers.ddim(grid, i, 0.0), samplers.ddim(grid, i, 0.5), strict=True)
    a, b, c, s = ((calm + noisy) / 2 for calm, noisy in pairs)
    return a, b, c, s


@pytest.fixture(scope="module")
def live(checkpoints: Path) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(samplers.SAMPLERS, NAME, halfway)
        with running(create_app(tiny_settings(checkpoints))) as server:
            yield server
    samplers.build_table.cache_clear()


def test_a_new_sampler_is_listed(live: Running) -> None:
    for model in live.client.get("/models").json()["models"]:
        assert NAME in model["samplers"]
    assert NAME in str(live.client.get("/openapi.json").json()["components"]["schemas"]["GenerateBody"])
    assert NAME in live.client.post("/generate?model=dit&class=0&sampler=nope").json()["detail"]


def test_a_new_sampler_is_served_by_all_apis(live: Running) -> None:
    query = {"model": "dit", "class": "cat", "seed": 1, "steps": 6, "deterministic": "true"}
    own = live.client.post("/generate", params=query | {"sampler": NAME})
    assert own.status_code == 200
    assert own.content != live.client.post("/generate", params=query | {"sampler": "ddim"}).content
    body = {"model": "dit", "prompt": "cat", "sampler": NAME}
    assert live.client.post("/v1/images/generations", json=body).status_code == 200
    tensor = {"name": "class", "datatype": "INT64", "shape": [1], "data": [0]}
    answer = live.client.post("/v2/models/dit/infer", json={"inputs": [tensor], "parameters": {"sampler": NAME}})
    assert answer.status_code == 200
