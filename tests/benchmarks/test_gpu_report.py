"""docs/gpu.md says what the GPU gave."""

from pathlib import Path

from benchmarks import gpu_report as report

ROOT = Path(__file__).parents[2]
RESULTS = report.read(ROOT / "docs" / "gpu.jsonl")


def test_the_page_quotes_what_was_measured() -> None:
    """Write it anew by python -m benchmarks.gpu_report."""
    page = (ROOT / "docs" / "gpu.md").read_text()
    for block in ("steps", "kernels", "engine", "service"):
        assert f"<!-- gpu: {block} -->\n| " in page
    assert report.fill(page, RESULTS) == page


def test_a_step_stands_beside_what_the_compiler_made_of_it() -> None:
    (step,) = (r for r in RESULTS if r["part"] == "steps" and r["model"] == "dit" and r["rows"] == 64)
    (compiled,) = (r for r in RESULTS if r["part"] == "compiled" and r["model"] == "dit" and r["rows"] == 64)
    assert step["compiled_graph_us"] == compiled["compiled_graph_us"]
    assert f"| DiT, shipped | 64 | {step['floor_us']:.0f} | {step['ours_us']:.0f} |" in report.steps(RESULTS)


def test_clients_come_before_rates_and_full_size_last() -> None:
    base = {"part": "load", "answers_per_s": 5.0, "p50_ms": 1.0, "p95_ms": 2.0, "refused": 0, "server_cpu": 0.5}
    results = [
        base | {"server": "ours deep", "workload": "mixed", "load": 4},
        base | {"server": "ours", "workload": "mixed", "load": "821/s"},
        base | {"server": "batch", "workload": "mixed", "load": 64},
        base | {"server": "ours", "workload": "mixed", "load": 64},
        base | {"server": "ours", "workload": "mixed", "load": 4, "refused": 7},
    ]
    rows = [line.split(" | ")[1:3] for line in report.service(results).splitlines()[2:]]
    assert rows == [
        ["4", "this service"],
        ["64", "this service"],
        ["64", "batcher"],
        ["821/s", "this service"],
        ["4", "this service"],
    ]


def test_a_run_whose_kernels_all_failed_has_an_empty_table() -> None:
    (_, rule) = report.show([{"part": "kernel times", "ceiling_GB_s": 4000}]).splitlines()
    assert rule == "|---|---|---|---|---|"


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        report.plot(RESULTS, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "torch.compile in a graph" in (tmp_path / "a.svg").read_text()
