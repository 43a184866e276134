"""Import the modules of the files named on the command line and print, one a line, what else that did.

Runs in its own process (see test_house.py), in the folder that the files are relative to. Libraries may do as they
like while they are imported, so those that the files use are imported before anybody watches.
"""

import ast
import importlib
import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

EVENTS = {
    *("os.putenv", "os.unsetenv", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.system"),
    *("os.fork", "os.posix_spawn", "subprocess.Popen", "socket.bind", "socket.connect", "thread"),
}


def module_name(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def libraries(file: Path, own: set[str]) -> set[str]:
    """Names of foreign modules that the top level of a file imports."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.partition(".")[0] not in own}


def writes(mode: Any, flags: Any) -> bool:
    """Whether the arguments of an `open` event ask for more than reading; os.open gives flags alone."""
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def global_state() -> dict[str, Any]:
    """What a module could change for everybody without an audit event."""
    import torch

    return {
        "torch threads": torch.get_num_threads(),
        "torch default dtype": torch.get_default_dtype(),
        "torch gradient mode": torch.is_grad_enabled(),
        "torch random state": hash(torch.get_rng_state().numpy().tobytes()),
        "CUDA initialised": torch.cuda.is_initialized(),
        "root logger": (logging.root.level, list(logging.root.handlers)),
        "sys.path": list(sys.path),
        "signal handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
    }


def audit_threads() -> None:
    """Python 3.11 raises no audit event for a new thread."""
    start = threading.Thread.start

    def audited_start(self: threading.Thread) -> None:
        sys.audit("thread", self.name)
        start(self)

    threading.Thread.start = audited_start


def main(files: list[Path]) -> None:
    modules = [module_name(file) for file in files]
    own = {module.partition(".")[0] for module in modules}
    for name in sorted(set().union(*(libraries(file, own) for file in files))):
        with suppress(ImportError):  # an attribute, not a module; or absent, and then the file itself fails below
            importlib.import_module(name)
    assert not own & sys.modules.keys(), "loaded before anybody watches"
    effects: list[str] = []
    current = ""

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in EVENTS or (event == "open" and writes(*args[1:3])):
            effects.append(f"{current}: {event} {args}")

    before = global_state()
    sys.addaudithook(watch)
    audit_threads()
    for current in modules:
        importlib.import_module(current)
    effects += [f"{key} changed" for key, value in global_state().items() if value != before[key]]
    sys.stdout.write("".join(effect + "\n" for effect in effects))


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main([Path(name) for name in sys.argv[1:]])
