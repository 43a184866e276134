"""OpenVINO itself behind the runner, against torch: on small networks, in the engine and over HTTP."""

import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
import torch
from pydantic import SecretStr
from torch import Tensor, nn

from models.checkpoint import ModelConfig, load_checkpoint, save_checkpoint
from models.files import GRAPH, WEIGHTS
from models.graph import trace, write_graph
from service.backend import TOLERANCE, CompiledNetwork, NotCompiled, OpenVINO, choose_backend, compare, traced
from service.engine.cards import describe
from service.engine.request import Request
from service.engine.runner import ModelRunner
from service.local import create_app, load_core
from service.registry import load_runners
from service.settings import ModelEntry, SettingsError
from tests.checkpoints import CLASS_NAMES, TINY, write_checkpoint
from tests.service.conftest import running, tiny_settings
from tests.service.engine.test_repetition import ROWS, requests
from tests.service.engine.tiny import (
    CPU,
    drive,
    make_request,
    picture_of,
    random_params,
    recording_runner,
    samplers_of,
    solo,
    tiny_config,
    tiny_model,
    warm_core,
)
from tests.service.pictures import difference
from tests.service.process import ROOT, two_workers
from tests.service.test_admin import ADMIN, put, write_other
from tests.waiting import wait_until

LATENT_TOLERANCE = 1e-4  # of up to 12 steps with guidance of up to 4, in float32; 8e-6 was seen
TAKEN_OVER = "is served by openvino from here on"
LINK = {"model": "dit", "class": "cat", "seed": 7, "steps": 3, "deterministic": "true", "format": "png"}
each_network = pytest.mark.parametrize("architecture", ["dit", "unet", "few-dit", "few-unet"])
pytestmark = pytest.mark.skipif(not find_spec("openvino"), reason="needs OpenVINO: pip install -e '.[cpu]'")


def compiled(architecture: str, precision: str = "f32", model: nn.Module | None = None) -> CompiledNetwork:
    config = tiny_config(architecture)
    return CompiledNetwork(trace(model or tiny_model(architecture), config), precision, threads=1)


def inputs(config: ModelConfig, rows: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, *config.image_shape, generator=generator)
    t = 1000 * torch.rand(rows, generator=generator)
    y = torch.randint(config.num_classes + 1, (rows,), generator=generator)
    return [x, t, y, *((t / 3, 1 + 2 * torch.rand(rows, generator=generator)) if config.is_few_step else ())]


@each_network
def test_any_row_count_gives_what_torch_gives(architecture: str) -> None:
    config, model, network = tiny_config(architecture), tiny_model(architecture), compiled(architecture)
    for rows in (5, 1, 2, 3, 4, 8, 7, 16, 1, 33):
        given = inputs(config, rows)
        torch.testing.assert_close(network(*given), model(*given), rtol=1e-4, atol=1e-5)


def test_a_count_that_changes_for_a_step_or_two_is_padded() -> None:
    config, model, network = tiny_config(), tiny_model(), compiled("dit")
    request, run = network._request, list[int]()

    def infer(**options: bool) -> Any:
        run.append(request.get_input_tensor(0).shape[0])
        return request.infer(**options)

    network._request = SimpleNamespace(infer=infer, set_input_tensor=request.set_input_tensor)
    wanted = [8, 7, 8, 6, 8, 7, 7, 7, 6, 3, 4, 1, 1]
    for rows in wanted:
        given = inputs(config, rows)
        torch.testing.assert_close(network(*given), model(*given), rtol=1e-4, atol=1e-5)
    assert run == [8, 8, 8, 8, 8, 8, 8, 8, 8, 3, 4, 4, 1]


def test_inputs_may_be_bfloat16_and_strided() -> None:
    model, network = tiny_model(), compiled("dit")
    x, t, y = inputs(tiny_config(), 4)
    halves = x.bfloat16()
    torch.testing.assert_close(network(halves, t, y), model(halves.float(), t, y), rtol=1e-4, atol=1e-5)
    pairs = torch.stack([t, t], dim=1)
    other = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(other, pairs[:, 0], y), model(x, t, y), rtol=1e-4, atol=1e-5)


@each_network
def test_whole_images_in_mixed_batches_are_those_of_torch(architecture: str) -> None:
    rng = random.Random(3)
    config, model = tiny_config(architecture), tiny_model(architecture)
    runner = recording_runner(compiled(architecture), config)
    everyone = [make_request(random_params(rng, architecture, samplers_of(config)), config) for _ in range(24)]
    arrivals: dict[int, list[Request]] = {}
    for request in everyone:
        arrivals.setdefault(rng.randrange(40), []).append(request)
    ended, _ = drive(warm_core(runner, architecture), arrivals)
    assert Counter(ended) == Counter(everyone)
    for request in everyone:
        for index in range(len(request.tasks)):
            wanted, latent = solo(model, config, request.params, index), runner.latents[request.request_id, index]
            torch.testing.assert_close(latent, wanted, rtol=LATENT_TOLERANCE, atol=LATENT_TOLERANCE)
            assert difference(request.images[index], picture_of(wanted, request.params)) <= 1


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("architecture", ["dit", "unet"])
def test_deterministic_images_have_the_same_bits_in_any_company(architecture: str, precision: str) -> None:
    network = compiled(architecture, precision)

    def latents(everyone: list[Request], arrivals: dict[int, list[Request]]) -> list[Tensor]:
        runner = recording_runner(network, tiny_config(architecture), ROWS)
        core = warm_core(runner, architecture, ROWS)
        assert runner.repeats_itself
        drive(core, arrivals)
        chosen = [request for request in everyone if request.params.deterministic]
        return [runner.latents[request.request_id, i] for request in chosen for i in range(len(request.tasks))]

    alone, together, rng = requests(architecture, 0), requests(architecture, 0), random.Random(1)
    wanted = latents(alone, {200 * place: [request] for place, request in enumerate(alone)})
    arrivals: dict[int, list[Request]] = {}
    for request in rng.sample(together, len(together)):
        arrivals.setdefault(rng.randrange(15), []).append(request)
    found = latents(together, arrivals)
    assert len(found) > 6
    assert all(map(torch.equal, found, wanted))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Checkpoints with their graphs."""
    root = tmp_path / "checkpoints"
    for architecture in TINY:
        store_graph(write_checkpoint(root / architecture, architecture))
    return root


def store_graph(folder: Path) -> Path:
    write_graph(*load_checkpoint(folder), folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stored_graph_serves_from_the_start(stored: Path, dtype: str) -> None:
    core = load_core(tiny_settings(stored, backend="openvino", dtype=dtype, threads=1))
    torches = load_runners(tiny_settings(stored, dtype=dtype))
    for card in describe(core).cards:
        runner, before = core.runners[card.name], torches[card.name]
        assert (card.backend, card.device, card.dtype, runner.make_faster) == ("openvino", "cpu", dtype, None)
        assert card.parameters == before.num_parameters > 0
        assert not list(runner.model.parameters())  # torch's weights are free
        given = inputs(runner.config, 5)
        with torch.inference_mode():
            wanted = before.model(*given).float()
            assert (runner.model(*given) - wanted).norm() < (1e-4 if dtype == "float32" else 0.03) * wanted.norm()


def test_auto_takes_what_is_installed() -> None:
    assert choose_backend("auto", CPU, torch.float32) == OpenVINO(torch.get_num_threads())
    assert choose_backend("auto", torch.device("cuda"), torch.bfloat16) is None
    assert choose_backend("torch", CPU, torch.float32) is None


@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.bfloat16), ("cpu", torch.float16)])
def test_what_openvino_cannot_do_is_refused(device: str, dtype: torch.dtype) -> None:
    with pytest.raises(SettingsError, match="DIFFUSION_DEVICE to cpu and DIFFUSION_DTYPE to float32, bfloat16"):
        choose_backend("openvino", torch.device(device), dtype)


def test_where_it_is_not_installed_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.backend.find_spec", lambda name: None)
    assert choose_backend("auto", CPU, torch.float32) is None
    with pytest.raises(SettingsError, match=r"installed: pip install 'stepwise-diffusion\[cpu\]', or use auto"):
        choose_backend("openvino", CPU, torch.float32)


def test_other_outputs_than_torchs_are_refused() -> None:
    other = tiny_model()
    with torch.no_grad():
        next(other.parameters()).mul_(1.1)
    runner = ModelRunner(tiny_model(), tiny_config(), CPU, torch.float32, 4)
    compare(compiled("dit"), runner, TOLERANCE[torch.float32])
    with pytest.raises(NotCompiled, match="differs from torch's by"):
        compare(compiled("dit", model=other), runner, TOLERANCE[torch.float32])


def test_a_graph_that_does_not_fit_is_made_anew_and_says_why_once(
    stored: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (stored / "dit" / GRAPH).write_text("<net>torn")
    runners = load_runners(tiny_settings(stored, backend="openvino"))
    assert {name: runner.backend for name, runner in runners.items()} == {"dit": "torch", "unet": "openvino"}
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith("model dit is traced: ")
    assert "make it anew by `run.py export" in line
    assert "\n" not in line
    assert runners["dit"].make_faster is not None


def test_fresh_weights_and_other_dtypes_stay_on_torch(stored: Path, caplog: pytest.LogCaptureFixture) -> None:
    fresh = {"new": ModelEntry(config={"architecture": "dit", "arguments": TINY["dit"]})}
    with caplog.at_level(logging.INFO):
        (runner,) = load_runners(tiny_settings(stored, backend="openvino", models=fresh)).values()
        halves = load_runners(tiny_settings(stored, backend="auto", dtype="float16"))
    assert {(made.backend, made.make_faster) for made in (runner, *halves.values())} == {("torch", None)}
    assert caplog.text.count("stays on torch") == 3


class Untraceable(nn.Module):
    """A network of somebody else's, which cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if torch._C._get_tracing_state() is not None:
            raise NotImplementedError("not while it is traced\nas the second line says")
        return x + self.weight.view(1, 3, 1, 1)


def foreign(folder: Path) -> Path:
    """A checkpoint of Untraceable."""
    config = ModelConfig("foreign", {}, class_names=CLASS_NAMES, shape=(3, 8, 8))
    save_checkpoint(folder, Untraceable(), config)
    return folder


def reason(folder: Path, architecture: type[nn.Module] | None = None) -> str:
    """Why a checkpoint cannot be traced."""
    path = architecture and f"{architecture.__module__}:{architecture.__name__}"
    with pytest.raises(NotCompiled) as caught, traced(folder, path, threading.Event()):
        pass
    return str(caught.value)


def test_a_network_that_cannot_be_traced_says_why(tmp_path: Path) -> None:
    said = reason(foreign(tmp_path), Untraceable)
    assert re.search("cannot be traced: .*not while it is traced", said)
    assert "\n" not in said


def test_a_process_that_is_killed_says_so_and_leaves_nothing(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(psutil.Process().children())

    def kill() -> None:
        wait_until(lambda: bool(set(psutil.Process().children()) - before))
        (tracer,) = set(psutil.Process().children()) - before
        tracer.kill()

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        assert "cannot be traced: the process has ended with code -9" in reason(checkpoints / "dit")
        killed.result()
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_does_not_end_is_given_up(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("service.backend.TRACE_SECONDS", 0.0)
    before = set(psutil.Process().children())
    assert "took more than 0 s" in reason(checkpoints / "dit")
    assert set(psutil.Process().children()) <= before
    assert list(tmp_path.iterdir()) == []


class Killed(Untraceable):
    """Makes a temporary folder while it is traced, and kills its process."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        tempfile.mkdtemp()
        os.kill(os.getpid(), signal.SIGKILL)
        return x


def test_temporary_files_of_a_killed_process_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert "the process has ended with code -9" in reason(foreign(tmp_path / "foreign"), Killed)
    assert list(folder.iterdir()) == []


def test_weights_that_were_replaced_meanwhile_do_not_serve(stored: Path) -> None:
    """They are not those whose SHA-256 the answers name, however close they are."""
    models = {"dit": ModelEntry(checkpoint=stored / "dit")}
    (runner,) = load_runners(tiny_settings(stored, backend="torch", dtype="bfloat16", models=models)).values()
    network, config = load_checkpoint(stored / "dit")
    for parameter in network.parameters():
        parameter.mul_(1 + 2**-10)
    save_checkpoint(stored / "dit", network, config)
    backend = OpenVINO(1)
    with pytest.raises(NotCompiled, match="model.safetensors has been replaced"):
        backend.compile(runner, stored / "dit", stored / "dit" / WEIGHTS, None)


def test_a_folder_that_cannot_be_written_is_traced_and_stays_as_it_is(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = checkpoints / "dit"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    folder.chmod(0o555)
    try:
        (runner,) = load_runners(
            tiny_settings(checkpoints, backend="auto", models={"dit": ModelEntry(checkpoint=folder)})
        ).values()
        assert runner.make_faster is not None
        made = runner.make_faster(runner, threading.Event())
    finally:
        folder.chmod(0o755)
    assert made.backend == "openvino"
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == []


def test_over_http_openvino_takes_over_and_no_link_names_two_pictures(
    checkpoints: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = tiny_settings(checkpoints, backend="openvino", threads=1)
    with running(create_app(settings)) as live, ThreadPoolExecutor(4) as pool:

        def cards() -> list[dict[str, Any]]:
            return live.client.get("/models").json()["models"]

        def ask(number: int) -> tuple[int, str, bytes]:
            answer = httpx.get(f"{live.url}/generate", params=LINK | {"seed": number % 3}, timeout=120)
            return answer.status_code, answer.headers.get("etag", ""), answer.content

        started = cards()
        others = [pool.submit(ask, number) for number in range(12)]
        plain = live.client.post("/generate", params={"model": "dit", "class": "cat", "seed": 7, "steps": 3})
        assert plain.status_code == 200  # torch serves meanwhile
        wait_until(lambda: {card["backend"] for card in cards()} == {"openvino"})
        answers = [other.result() for other in others] + [ask(number) for number in range(3)]
        ended = cards()
        assert live.metric("diffusion_model_info", backend="openvino") == 2
    assert {answer[0] for answer in answers} == {200}
    assert len({content for _, _, content in answers}) == 3  # one a seed, whenever it was asked for
    assert len({tag for _, tag, _ in answers} - {""}) == 3
    assert caplog.text.count(TAKEN_OVER) == 2
    changed = {"backend": "openvino", "deterministic": True}
    assert ended == [card | changed for card in started]


def test_weights_are_swapped_on_openvino(stored: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those with a graph are compiled before they serve; those without one are traced while torch serves."""
    caplog.set_level(logging.INFO)
    write_other(stored / "staged/bare", stored / "dit")
    store_graph(write_other(stored / "staged/whole", stored / "dit", seed=3))
    models = {"dit": ModelEntry(checkpoint=stored / "dit")}
    settings = tiny_settings(stored, backend="openvino", models=models, admin_key=SecretStr(ADMIN), threads=1)
    with running(create_app(settings)) as live:
        found = []
        for place in ("staged/whole", "staged/bare", "dit"):
            card = put(live, place).json()
            assert place == "staged/bare" or card["backend"] == "openvino"
            found.append((live.client.get("/generate", params=LINK).content, card["version"]))
            assert live.card()["backend"] == "openvino"
            assert caplog.text.count(TAKEN_OVER) == (place != "staged/whole")  # of those without a graph
    assert [version for _, version in found] == [2, 3, 4]
    assert len({content for content, _ in found}) == 3


def test_a_stop_while_it_traces_leaves_no_process_and_no_folder(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    with two_workers(checkpoints, tmp_path, models="", backend="openvino") as service:
        engine = service.engine()
        wait_until(lambda: bool(engine.children()))
        (tracer,) = engine.children()
        service.supervisor.terminate()
        assert service.supervisor.wait(timeout=60) == 0
        wait_until(lambda: not tracer.is_running())
    assert list(folder.iterdir()) == []


def test_nothing_is_imported_that_is_not_used_and_nothing_is_reported(stored: Path, tmp_path: Path) -> None:
    """Its telemetry would connect, and write into the home folder."""
    program = f"""
import sys
events = []
sys.addaudithook(lambda name, given: name in ("socket.connect", "socket.getaddrinfo") and events.append(given))
from pathlib import Path
from service.registry import load_runners
from service.settings import Settings
more = dict(checkpoints=Path({str(stored)!r}), device="cpu", dtype="float32", max_rows=2)
load_runners(Settings(backend="torch", **more))
assert "openvino" not in sys.modules
runners = load_runners(Settings(backend="openvino", **more))
assert [runner.backend for runner in runners.values()] == ["openvino"] * 2
assert "openvino" in sys.modules
assert not events, events
"""
    (home := tmp_path / "home").mkdir()
    variables = {"HOME": str(home), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(home.iterdir()) == []
