"""Which row counts are tried, and how many rows a step may have at most."""

from collections.abc import Iterable

ALL_COUNTS = 16  # every row count up to here is warmed up and measured, then steps of about a half
KNEE = 0.8  # of the best rows per second: rows beyond it add more latency than images


def knee(step_seconds: dict[int, float]) -> int:
    """The smallest possible cap with KNEE of the best rows per second, at least 2."""
    throughput = {rows: rows / step_seconds[rows] for rows in possible_caps(step_seconds)}
    best = max(throughput.values())
    return max(2, min(rows for rows, value in throughput.items() if value >= KNEE * best))


def possible_caps(counts: Iterable[int]) -> list[int]:
    """Powers of two, and the largest count, in order.

    Between neighbours like 6 and 7 noise would decide, at every start anew, and batching and the ETags of
    deterministic images would change with it.
    """
    largest = max(counts)
    return sorted(rows for rows in counts if rows.bit_count() == 1 or rows == largest)


def row_counts(limit: int) -> list[int]:
    """1, 2, 3, ... 16, 24, 32, 48, 64, 96, ... and the limit itself."""
    counts = list(range(1, min(limit, ALL_COUNTS) + 1))
    while counts[-1] < limit:
        step = 1 << (counts[-1].bit_length() - 2)
        counts.append(min(limit, counts[-1] + step))
    return counts
