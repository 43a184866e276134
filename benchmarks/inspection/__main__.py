"""Compiles every kernel at the shapes that the service launches, and prints what it costs. It needs no GPU.

python -m benchmarks.inspection [--kernel attention] [--arch 90] [--dtype bf16]
"""

import argparse
import sys
from collections.abc import Iterator

import torch

from benchmarks.inspection.compiled import ARCHITECTURES, Facts, facts
from benchmarks.inspection.limits import broken_limits
from benchmarks.inspection.served import Case, served

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
COLUMNS = "kernel|case|dtype|arch|registers|spills|shared|mma|widest load|narrow|occupancy|bytes|of minimum"


def row(case: Case, architecture: int, found: Facts) -> list[str]:
    """The cells of COLUMNS."""
    products = {"mma.sync": found.mma, "wgmma": found.wgmma, "tcgen05": found.tcgen05}
    return [
        case.launch.name.removesuffix("_kernel"),
        case.name,
        next(name for name, dtype in DTYPES.items() if dtype == case.dtype),
        f"sm_{architecture}",
        str(found.registers),
        str(found.stack + found.local_accesses),
        str(found.shared),
        " ".join(f"{count} {name}" for name, count in products.items() if count) or "-",
        f"{found.widest_load} B",
        str(found.narrow_accesses),
        f"{found.occupancy:.0%}",
        f"{case.moved_bytes:,}",
        f"{case.moved_bytes / case.minimum_bytes:.2f}x",
    ]


def table(rows: list[list[str]]) -> Iterator[str]:
    """The lines of a Markdown table with aligned columns."""
    rows = [list(COLUMNS.split("|")), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for i, cells in enumerate(rows):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
        if i == 0:
            yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"


def main(arguments: list[str] | None = None) -> int:
    """Print the table and the broken limits; returns 1 if there is one, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inspection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--arch",
        type=int,
        choices=ARCHITECTURES,
        action="append",
        help="80 for sm_80; repeat for more; default: all",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        action="append",
        help="of the weights; repeat for more; default: bf16",
    )
    parser.add_argument("--kernel", default="", help="only kernels with this in their name")
    chosen = parser.parse_args(arguments)

    rows, broken = [], []
    for case in [case for dtype in chosen.dtype or ["bf16"] for case in served(DTYPES[dtype])]:
        for architecture in chosen.arch or ARCHITECTURES:
            if chosen.kernel in case.launch.name:
                found = facts(case.launch, architecture)
                rows.append(row(case, architecture, found))
                broken += [
                    f"{' '.join(rows[-1][:4])}: {limit}" for limit in broken_limits(case, architecture, found)
                ]
    if not rows:
        parser.error(f"no served kernel has {chosen.kernel!r} in its name")
    sys.stdout.write("\n".join([*table(rows), *broken]) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
