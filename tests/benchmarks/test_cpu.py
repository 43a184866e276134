"""The variants of a network on a CPU give its images, and what was measured is what the page says."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cpu import __main__ as command
from benchmarks.cpu import report
from benchmarks.cpu.through_http import measure_service
from benchmarks.cpu.variants import BASELINE, available_variants, build, check, compare, inputs
from models import DIT
from models.checkpoint import load_checkpoint

MEASURED = {
    "commit": "abc", "date": "2026-11-30", "processor": "a processor", "threads": 2, "versions": {"torch": "2.13"},
    "elsewhere_cores": 0.02,
}  # fmt: skip
SERVED = {"images": 40.0, "rows_a_step": 7.7, "served": 800.0, "alone": 1000.0, "share": 0.8}
ASKED = {"images_of": {"draft": 300.0, "default": 80.2, "best": 60.0}}
ASKED |= {"seconds_of": {"draft": 0.004, "default": 0.0153, "best": 0.02}}
RESULTS: dict[str, Any] = {
    "measured": MEASURED,
    "rows": {
        "dit": {BASELINE: {"1": 100.0, "8": 200.0}, "OpenVINO bfloat16": {"1": 250.0, "8": 1000.0}},
        "full-unet": {BASELINE: {"1": 10.0, "8": 20.0}},
    },
    "served": {"dit": {"openvino": SERVED}},
}
SHORT = command.RunSettings(counts=(1, 2), rounds=1, seconds=0.0, served_seconds=0.5)


def test_a_table_has_the_ratios_to_the_first_way() -> None:
    assert report.rows_table("DiT", RESULTS["rows"]["dit"]).splitlines() == [
        "| DiT | 1 row | 8 rows |",
        "|---|---|---|",
        "| torch float32 | 100 | 200 |",
        "| OpenVINO bfloat16 | 250 (2.5x) | 1,000 (5.0x) |",
    ]
    assert report.served_table(RESULTS).splitlines()[-1] == "| DiT, OpenVINO | 40.0 | 7.7 | 800 | 1,000 | 80 % |"
    asked = RESULTS | {"served": {"dit": {"openvino": SERVED | ASKED, "torch": SERVED}}}
    row = "| DiT, OpenVINO | 300/s | 80/s | 60/s | 4.0 ms | 15.3 ms | 20.0 ms |"
    assert report.quality_table(asked).splitlines()[2:] == [row]
    assert report.quality_table(RESULTS) == report.NOTHING


def test_a_busy_machine_is_told() -> None:
    assert report.when(RESULTS).endswith("Other programs used 0.02 cores meanwhile.")
    busy = RESULTS | {"measured": MEASURED | {"elsewhere_cores": 0.5}}
    assert report.when(busy).endswith("0.50 cores meanwhile, so trust ratios only.")


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    page = tmp_path / "cpu.md"
    page.write_text((command.ROOT / "docs" / "cpu.md").read_text())
    report.write(RESULTS, tmp_path)
    assert all(block in page.read_text() for block in report.blocks(RESULTS).values())
    picture = (tmp_path / "cpu.svg").read_text()
    assert all(title.replace("`", "") in picture for title in (report.TITLES["dit"], report.TITLES["full-unet"]))
    assert report.TITLES["unet"] not in picture
    assert len(re.findall(r'id="axes_\d', picture)) == len(RESULTS["rows"])  # no empty panel


def test_the_page_of_the_project_is_that_of_its_figures() -> None:
    folder = command.ROOT / "docs"
    page, results = (folder / "cpu.md").read_text(), command.read(folder / "cpu.json")
    assert report.pages.fill(page, "cpu", report.blocks(results)) == page


def test_parts_are_kept_beside_those_of_earlier_runs(tmp_path: Path) -> None:
    path = tmp_path / "more" / "cpu.json"
    command.save(path, {"rows": {"dit": {"old": {}}, "unet": {}}}, MEASURED | {"elsewhere_cores": 0.3})
    command.save(path, {"rows": {"dit": {"new": {}}}}, MEASURED)
    kept = json.loads(path.read_text())
    assert kept["rows"] == {"dit": {"new": {}}, "unet": {}}
    assert kept["measured"]["elsewhere_cores"] == 0.3  # of the busiest part
    command.save(path, {"served": {}}, MEASURED | {"commit": "other"})
    assert json.loads(path.read_text())["measured"]["elsewhere_cores"] == 0.02


def test_every_way_gives_the_images_of_the_network(checkpoints: Path) -> None:
    network, config = load_checkpoint(checkpoints / "unet")
    variants = command.usable_variants("unet", network, config, compiled=False)
    assert list(variants) == available_variants()
    found = compare(variants, config, (1, 3), rounds=1, seconds=0.0)
    assert list(found) == available_variants()
    assert all(list(speeds) == ["1", "3"] and min(speeds.values()) > 0 for speeds in found.values())
    assert next(network.parameters()).dtype == torch.float32  # nobody has changed the network


def test_a_way_that_runs_something_else_is_refused(checkpoints: Path) -> None:
    network, config = load_checkpoint(checkpoints / "dit")
    base = build(BASELINE, network, config)
    check(base, base, inputs(config, 2))
    with pytest.raises(ValueError, match="away from those of torch float32"):
        check(lambda x, *others: -base(x, *others), base, inputs(config, 2))


def test_no_product_of_a_large_network_is_with_zeros() -> None:
    network, config = command.network_of("full-dit")
    assert isinstance(network, DIT)
    assert all(parameter.any() for parameter in network.parameters() if parameter.dim() > 1)
    assert config.image_shape == (3, 32, 32)


def test_a_part_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    command.run(["dit"], SHORT, False, path)
    kept = command.read(path)
    assert list(kept["rows"]["dit"]) == available_variants()
    assert kept["measured"]["threads"] == torch.get_num_threads()
    report.write(kept, tmp_path)
    assert (tmp_path / "cpu.svg").exists()


def test_the_service_is_measured_beside_its_network() -> None:
    found = asyncio.run(measure_service("dit", "torch", 1, 0.5, 0.0))
    assert found["images"] > 0
    assert 1 <= found["rows_a_step"] <= 8
    assert found["share"] == pytest.approx(found["served"] / found["alone"])
    for by_quality in (found["images_of"], found["seconds_of"]):
        assert list(by_quality) == ["draft", "default", "best"]
        assert min(by_quality.values()) > 0
