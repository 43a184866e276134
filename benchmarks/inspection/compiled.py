"""Compiles a recorded launch for any GPU and reads facts about the result, such as registers and spills.

Triton's own rules decide which arguments become constants and which are multiples of 16. The facts come from the
PTX, and from the machine code by means of the disassemblers that Triton ships.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from benchmarks.inspection.recorder import Launch

ARCHITECTURES = (80, 89, 90, 100)
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
SHARED_PER_SM = {80: 164, 86: 100, 89: 100, 90: 228, 100: 228}  # KiB; CUDA programming guide, compute capabilities
WARPS_PER_SM = {80: 64, 86: 48, 89: 48, 90: 64, 100: 64}
BLOCKS_PER_SM = {80: 32, 86: 16, 89: 24, 90: 32, 100: 32}
REGISTERS_PER_SM = 65_536
ACCESS = re.compile(r"(ld|st)\.global(?:\.\w+|::\w+)*?(?:\.v(\d))?\.[bfus](\d+)\b")
ASYNC_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (0x[0-9a-f]+|\d+)")


@dataclass(frozen=True)
class Facts:
    """Facts about a compiled kernel. Loads and stores count instructions in the code, by bytes a thread."""

    registers: int
    stack: int  # bytes a thread
    local_accesses: int  # spill loads and stores, LDL and STL
    shared: int  # bytes a block
    mma: int  # mma.sync instructions a warp
    wgmma: int
    tcgen05: int
    loads: dict[int, int]
    stores: dict[int, int]
    async_copies: int
    double: bool  # float64 anywhere; the usual cause is a Python float argument that is not constexpr
    occupancy: float  # resident warps over the maximum, as registers and shared memory allow

    @property
    def widest_load(self) -> int:
        return max(self.loads)

    @property
    def narrow_accesses(self) -> int:
        """Loads and stores of less than 16 bytes a thread; only look-ups of single numbers should be among them."""
        return sum(count for kind in (self.loads, self.stores) for width, count in kind.items() if width < 16)

    @property
    def spills(self) -> bool:
        return self.stack > 0 or self.local_accesses > 0


def compile_launch(launch: Launch, architecture: int) -> Any:
    """Compile for sm_<architecture>, specialised for the arguments of the launch."""
    target = GPUTarget("cuda", architecture, 32)
    backend = make_backend(target)
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    bound, specialization, options = bind(**launch.arguments, **launch.options, debug=False)
    options, signature, constants, attributes = launch.kernel._pack_args(
        backend, dict(launch.options), bound, specialization, options
    )
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=options.__dict__ | {"enable_fp_fusion": True})


def facts(launch: Launch, architecture: int) -> Facts:
    """Compile a launch for sm_<architecture> and read its facts."""
    compiled = compile_launch(launch, architecture)
    ptx, usage, code = compiled.asm["ptx"], *disassemble(compiled.asm["cubin"])
    registers, stack = (int(resource(usage, name)) for name in ("REG", "STACK"))
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    return Facts(
        registers=registers,
        stack=stack,
        local_accesses=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        shared=shared,
        mma=ptx.count("mma.sync"),
        wgmma=ptx.count("wgmma.mma_async"),
        tcgen05=ptx.count("tcgen05.mma"),
        loads=accesses(ptx, "ld"),
        stores=accesses(ptx, "st"),
        async_copies=len(ASYNC_COPY.findall(ptx)),
        double=".f64" in ptx,
        occupancy=occupancy(registers, shared, warps, architecture),
    )


def accesses(ptx: str, kind: str) -> dict[int, int]:
    """Number of global loads (kind "ld", with asynchronous copies) or stores (kind "st") by bytes a thread."""
    widths = [int(vector or 1) * int(bits) // 8 for op, vector, bits in ACCESS.findall(ptx) if op == kind]
    if kind == "ld":
        widths += [int(size, 0) for size in ASYNC_COPY.findall(ptx)]
    return dict(Counter(widths))


def disassemble(cubin: bytes) -> tuple[str, str]:
    """Resource usage (by cuobjdump) and machine code (by nvdisasm), as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return run_tool("cuobjdump", "--dump-resource-usage", str(path)), run_tool("nvdisasm", "-c", str(path))


def run_tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def resource(usage: str, name: str) -> str:
    """The number behind NAME: in cuobjdump's text; raises ValueError if there is none."""
    found = re.search(rf"\b{name}:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump names no {name}: {usage}")
    return found[1]


def occupancy(registers: int, shared: int, warps: int, architecture: int) -> float:
    """Resident warps over the maximum, 0..1.

    A warp's registers are allocated in units of 256, and the system adds 1 KiB to a block's shared memory (CUDA
    occupancy calculator).
    """
    by_registers = REGISTERS_PER_SM // (warps * -(-32 * registers // 256) * 256)
    by_shared = SHARED_PER_SM[architecture] * 1024 // (shared + 1024)
    most = WARPS_PER_SM[architecture]
    blocks = min(most // warps, BLOCKS_PER_SM[architecture], by_registers, by_shared)
    return blocks * warps / most
