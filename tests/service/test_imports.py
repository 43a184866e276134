"""Each kind of process imports what it needs: the modules of one that has started, in a process of its own."""

import json
from pathlib import Path

import pytest

from models.files import SHIPPED
from tests.service.process import run_program

HTTP = {"fastapi", "starlette.applications", "uvicorn", "httptools", "PIL", "prometheus_client", "python_multipart"}
COMPILERS = {"triton", "sympy", "networkx", "torch._dynamo", "torch._inductor", "torch.onnx", "onnx", "onnxruntime"}
TRAINING = {"training.config", "training.train", "benchmarks", "scipy", "mlxtend", "matplotlib", "pandas"}
OTHERS = {"httpx", "aiohttp", "ray", "opentelemetry.sdk"}
ENGINES = {"torch", "safetensors", "service.engine", "kernels", "models.checkpoint", "openvino"}

# A process of the service in the main thread. The other one waits until it is up, tells its modules and ends it.
HEAD = """
import json, os, socket, sys, threading, time
from service.child import open_board
from service.settings import load_settings, model_entries

settings = load_settings()
names = list(model_entries(settings))
board = open_board(names, settings, entries=2)
mine, theirs = socket.socketpair()
given = {"control": theirs.fileno(), "board": board.descriptor, "entries": 2, "models": names}

def tell():
    print(json.dumps(sorted(name for name, module in sys.modules.items() if module)), flush=True)
"""
PROCESSES = {
    "engine": """
def watch():
    while board.state != "ready":
        time.sleep(0.01)
    tell()
    mine.send(CONTROL.pack(STOP, 0.0))

from service import engine_process
from service.wire.control import CONTROL, STOP
threading.Thread(target=watch, daemon=True).start()
engine_process.main(given)
""",
    "worker": """
def watch():
    mine.recv(1)  # STARTED
    tell()
    mine.send(bytes([3]))

from service.web import worker
listener = socket.create_server(("127.0.0.1", 0))
engine, its_own = socket.socketpair()
threading.Thread(target=watch, daemon=True).start()
worker.main(given | {"entry": 1, "engine": engine.fileno(), "listeners": [listener.fileno()], "side": []})
""",
    "supervisor": """
import run
from service import supervisor
run.build_parser(serving=True)
tell()
""",
}
ABSENT = {
    "engine": HTTP | COMPILERS | TRAINING | OTHERS,
    "worker": ENGINES | COMPILERS | TRAINING | OTHERS,
    "supervisor": HTTP | ENGINES | COMPILERS | TRAINING | OTHERS | {"numpy"},
}


def modules(process: str, checkpoints: Path, backend: str) -> set[str]:
    settings = {"checkpoints": checkpoints, "backend": backend, "device": "cpu", "max_rows": 2}
    done = run_program(HEAD + PROCESSES[process], **settings)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("process", "needs"), [("engine", "torch"), ("worker", "fastapi"), ("supervisor", "pydantic")]
)
def test_a_process_imports_nothing_that_it_does_not_use(process: str, needs: str, checkpoints: Path) -> None:
    loaded = modules(process, checkpoints, "torch")
    assert needs in loaded
    assert sorted(loaded & (ABSENT[process] | {"openvino"})) == []


def test_openvino_brings_nothing_else_along() -> None:
    """The shipped checkpoints have their graphs, so nothing is traced."""
    pytest.importorskip("openvino")
    loaded = modules("engine", SHIPPED, "openvino")
    assert "openvino" in loaded
    assert sorted(loaded & ABSENT["engine"]) == []


def test_a_network_may_import_triton_after_the_kernels() -> None:
    """It is kept from the kernels only: a network of the operator may need it, at least for its import."""
    program = (
        "import sys; from service.engine_process import import_kernels; import_kernels('cpu')\n"
        "assert 'triton' not in sys.modules\n"
        "import triton; from kernels import backend; assert backend.triton is not triton"
    )
    pytest.importorskip("triton")
    done = run_program(program)
    assert done.returncode == 0, done.stderr
