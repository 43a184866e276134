"""The OpenAPI document against the service, by a tool that knows neither.

The simulated models answer at once, so that hundreds of requests cost seconds.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.app import create_app
from service.settings import ModelEntry, Settings
from tests.service.conftest import running

ROOT = Path(__file__).parents[2]
# What a schema cannot say: which class names a model has, that the query must agree with the body, and that a
# millisecond is a deadline which nobody meets.
CONFIGURATION = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "406", "422", "503", "504"]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]
"""


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="needs schemathesis")
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    simulate = {"t0_ms": 1, "t1_ms": 0.01}
    models = {
        name: ModelEntry.model_validate({"checkpoint": ROOT / "checkpoints" / name, "simulate": simulate})
        for name in ("dit", "unet")
    }
    script = Path(sys.executable).with_name("schemathesis")
    options = ["--checks", "all", "--seed", "1", "--max-examples", "40"]
    with running(create_app(Settings(models=models, device="cpu"))) as live:
        command = [script, "run", *options, f"{live.url}/openapi.json"]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        answered = live.metric("diffusion_requests_total", outcome="ok")
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", ended.stdout)
    assert tested is not None
    assert int(tested[1]) >= 17
    assert answered > 20  # it did not only knock
