"""What the compiler makes of every kernel at its served shapes: registers, spills, shared memory, tensor cores and
the width of its accesses, within the limits of benchmarks/inspection/limits.py. No GPU is needed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

import kernels
from benchmarks.inspection.__main__ import DTYPES, main
from benchmarks.inspection.compiled import Facts, accesses, facts, occupancy, resource
from benchmarks.inspection.limits import broken_limits
from benchmarks.inspection.recorder import recorded_launches
from benchmarks.inspection.served import served
from kernels.backend import tl, triton


@pytest.fixture(scope="module", autouse=True)
def fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache that an older compiler filled would answer for this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


# 15 to 25 seconds each, so each is a group of its own. Never in threads: ast.parse of CPython 3.11 fails in them.
@pytest.mark.parametrize(
    ("dtype", "architecture"),
    [
        pytest.param(*case, id=f"{case[0]}-sm_{case[1]}", marks=pytest.mark.xdist_group(f"compile {case}"))
        for case in (("bf16", 80), ("bf16", 90), ("fp16", 90), ("fp32", 80))
    ],
)
def test_every_served_kernel_keeps_to_its_limits(dtype: str, architecture: int) -> None:
    cases = list(served(DTYPES[dtype]))
    assert len(cases) > 30
    limits = {
        (case.launch.name, case.name): list(broken_limits(case, architecture, facts(case.launch, architecture)))
        for case in cases
    }
    assert {name: broken for name, broken in limits.items() if broken} == {}


@triton.jit
def _hungry_kernel(x, out, eps, N: tl.constexpr):
    """Keeps more numbers than registers hold, computes in float64, and reads one number a thread."""
    at = tl.arange(0, N)
    values = tl.load(x + at * 3).to(tl.float64) + eps
    tl.store(out + at * 3, (values - tl.sum(values)).to(tl.float32))


def test_a_kernel_that_spills_is_seen() -> None:
    """Facts that a parser misses would pass every limit."""
    with recorded_launches() as launches:
        x = torch.empty(4096 * 3, device="meta")
        _hungry_kernel[(1,)](x, x, 1e-5, N=4096, num_warps=1)
    found = facts(launches[0], 90)
    assert found.stack > 0
    assert found.local_accesses > 0
    assert found.spills
    assert found.double
    assert found.widest_load == 4
    assert found.narrow_accesses >= 128  # 4096 numbers, 32 threads
    case = next(case for case in served(torch.bfloat16) if case.launch.name == "layer_norm_kernel")
    sentences = " ".join(broken_limits(case, 90, found))
    for word in ("spills", "float64", "accesses below 16 bytes", "occupancy"):
        assert word in sentences


def sound(**changes: Any) -> Facts:
    values: dict[str, Any] = {
        "registers": 90, "stack": 0, "local_accesses": 0, "shared": 20_000, "mma": 96, "wgmma": 14, "tcgen05": 0,
        "loads": {16: 3}, "stores": {16: 1}, "async_copies": 0, "double": False, "occupancy": 0.5,
    }  # fmt: skip
    return Facts(**(values | changes))


@pytest.mark.parametrize(
    ("architecture", "changes", "sentence"),
    [
        (80, {}, None),
        (90, {}, None),
        (80, {"mma": 128}, "128 products a tile, 96 are needed"),
        (90, {"wgmma": 0}, "no warpgroup products"),
        (90, {"shared": 49_153}, "49153 bytes of shared memory"),
        (90, {"async_copies": 2}, "2 asynchronous copies, which belong to the loop over keys"),
        (90, {"loads": {16: 3, 8: 1}}, "1 accesses below 16 bytes a thread, 0 of them are lookups"),
        (90, {"occupancy": 0.24}, "occupancy 24%"),
        (80, {"stack": 8}, "spills: 8 bytes of stack, 0 local accesses"),
        (80, {"local_accesses": 2}, "spills: 0 bytes of stack, 2 local accesses"),
        (80, {"double": True}, "computes in float64"),
    ],
)
def test_limits_of_attention(architecture: int, changes: dict[str, object], sentence: str | None) -> None:
    case = next(case for case in served(torch.bfloat16) if case.launch.name == "attention_kernel")
    expected = [] if sentence is None else [sentence]
    assert list(broken_limits(case, architecture, sound(**changes))) == expected


def test_accesses_are_read_off_the_ptx() -> None:
    ptx = """
    ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    @%p1 ld.global.L1::evict_last.v2.b32 { %r1, %r2 }, [ %rd1 + 0 ];
    ld.global.b16 { %rs1 }, [ %rd2 + 0 ];
    ld.global.b64 { %rd3 }, [ %rd2 + 0 ];
    cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
    cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 8, %r2;
    ld.shared.v4.b32 { %r1, %r2, %r3, %r4 }, [ %r9 ];
    st.global.v2.b64 [ %rd1 + 0 ], { %rd3, %rd4 };
    """
    assert accesses(ptx, "ld") == {16: 2, 8: 3, 2: 1}
    assert accesses(ptx, "st") == {16: 1}


def test_resources_are_read_off_the_disassembler() -> None:
    usage = " Function k:\n  REG:62 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:640"
    assert (resource(usage, "REG"), resource(usage, "STACK")) == ("62", "8")
    with pytest.raises(ValueError, match="cuobjdump names no REG"):
        resource("nothing", "REG")


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "architecture", "blocks"),
    [
        (95, 36_864, 4, 90, 5),  # by registers: 65,536 / (4 * 3,072)
        (64, 15_360, 4, 90, 8),
        (128, 256, 8, 90, 2),
        (32, 0, 4, 90, 16),  # by warps
        (56, 61_440, 4, 90, 3),  # by shared memory
        (168, 24_576, 4, 80, 3),
    ],
)
def test_occupancy_as_the_cuda_calculator_counts_it(
    registers: int, shared: int, warps: int, architecture: int, blocks: int
) -> None:
    assert occupancy(registers, shared, warps, architecture) == blocks * warps / 64


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--arch", "90", "--dtype", "bf16", "--kernel", "label_silu"]) == 0
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:5]] == ["kernel", "case", "dtype", "arch"]
    assert set(rule) == {"|", "-"}
    assert len(rows) == 4
    assert all(row.count("|") == head.count("|") for row in rows)
    assert [cell.strip() for cell in rows[0].split("|")[1:5]] == ["label_silu", "condition 768", "bf16", "sm_90"]


def test_a_kernel_that_is_not_served_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--kernel", "label_sillu"])
    assert "no served kernel has 'label_sillu' in its name" in capsys.readouterr().err


def test_every_kernel_file_is_served() -> None:
    """A kernel that nobody lists would escape the limits."""
    folder = Path(kernels.__file__).parent
    files = [path for path in folder.glob("*.py") if "_kernel[" in path.read_text()]
    launched = {case.launch.kernel.fn.__module__ for case in served(torch.bfloat16)}
    assert launched == {f"kernels.{path.stem}" for path in files}
