"""The measure of the service at accelerator speed: its requests, its ideal, its figures, and a short run."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.serving import __main__ as command
from benchmarks.serving import flood, ideal, report
from benchmarks.serving.load import LATE, LEFT, OK, REFUSED, Answer
from benchmarks.serving.others.device import Pipelines, Settings, groups
from benchmarks.serving.others.fastapi_batcher import Batcher
from benchmarks.serving.servers import run_server, write_request
from benchmarks.serving.summary import Cost, is_good, recovery, summarise
from benchmarks.serving.workloads import ACCELERATOR, Closed, Device, Kind, Open, capacity, workloads
from service.engine.simulated_device import StepCost

ROOT = Path(__file__).resolve().parents[2]
PLAIN = Kind("dit", 20)
IDLE = 0.0404  # seconds of PLAIN: 20 steps of 2.02 ms


def test_half_of_the_capacity_goes_to_each_model() -> None:
    # 25 steps and 1.5 rows on the average; a full step of 64 rows takes 3.28 ms (dit) or 7.2 ms (unet)
    assert capacity(ACCELERATOR) == pytest.approx(1 / (25 * 1.5 * (3.28 + 7.2) / 2 / 64 / 1000))


def test_a_request_alone_takes_its_steps() -> None:
    assert PLAIN.idle_seconds(ACCELERATOR) == pytest.approx(IDLE)
    assert Kind("unet", 10, 3.0, images=2).idle_seconds(ACCELERATOR) == pytest.approx(10 * (4 + 4 * 0.05) / 1000)


def test_a_trace_is_the_same_every_time() -> None:
    burst = workloads()["W5"]
    assert isinstance(burst, Open)
    once, again, other = list(burst.arrivals()), list(burst.arrivals()), list(burst.arrivals(seed=1))
    assert once == again != other
    due = [arrival.due for arrival in once]
    assert due == sorted(due)
    counts = np.histogram(due, [0, 8, 28, 36])[0] / (8, 20, 8)  # a second, in each phase
    assert counts == pytest.approx([capacity(ACCELERATOR) * load for load in (0.5, 1.5, 0.5)], rel=0.1)


def test_the_mixture_is_as_described() -> None:
    leaving = Open("x", ((1.0, 30),), leaving=0.3)
    arrivals = list(leaving.arrivals())
    steps = Counter(arrival.kind.steps for arrival in arrivals)
    assert [steps[n] / len(arrivals) for n in (10, 20, 50, 100)] == pytest.approx([0.5, 0.25, 0.2, 0.05], abs=0.02)
    assert np.mean([arrival.kind.guidance != 1 for arrival in arrivals]) == pytest.approx(0.5, abs=0.02)
    stays = [(a.leaves - a.due) / a.kind.idle_seconds(ACCELERATOR) for a in arrivals if a.leaves is not None]
    assert len(stays) / len(arrivals) == pytest.approx(0.3, abs=0.02)
    assert 0.3 <= min(stays) < 0.32
    assert 1.48 < max(stays) <= 1.5


def test_the_ideal_at_low_load_is_the_idle_latency() -> None:
    answers, rows = ideal.simulate(Open("low", ((0.01, 60),)))
    assert rows == sum(answer.kind.steps * answer.kind.rows for answer in answers)
    assert {answer.outcome for answer in answers} == {OK}
    slowdowns = [answer.latency / answer.kind.idle_seconds(ACCELERATOR) for answer in answers]
    assert min(slowdowns) == pytest.approx(1.0)
    assert np.median(slowdowns) == pytest.approx(1.0, abs=0.01)
    assert max(slowdowns) < 3


def test_the_ideal_of_closed_loops() -> None:
    alone, _ = ideal.simulate(Closed("one", 1, PLAIN, 2.0))
    assert [answer.latency for answer in alone] == pytest.approx([IDLE] * len(alone))
    full = summarise(Closed("64", 64, PLAIN, 2.0), *ideal.simulate(Closed("64", 64, PLAIN, 2.0)))
    assert full["images"] == pytest.approx(64 / (20 * 3.28e-3), rel=0.05)


def test_who_leaves_an_ideal_server_is_not_served_further() -> None:
    leaving = Open("x", ((0.7, 3),), leaving=0.3)
    answers, rows = ideal.simulate(leaving)
    left = [answer for answer in answers if answer.outcome == LEFT]
    assert all(answer.was_leaving for answer in left)
    assert 0.2 < len(left) / len(answers) < 0.3  # a few are answered before they would leave
    assert len(answers) == len(list(leaving.arrivals()))
    assert 0 < summarise(leaving, answers, rows)["unanswered_rows"] < 0.3


def answer(due: float, latency: float = IDLE, outcome: str = OK, leaving: bool = False) -> Answer:
    return Answer(PLAIN, due, latency, outcome, None, leaving)


def test_good_is_three_times_the_idle_latency() -> None:
    assert is_good(answer(0, 2.9 * IDLE), ACCELERATOR)
    assert not is_good(answer(0, 3.1 * IDLE), ACCELERATOR)
    assert not is_good(answer(0, IDLE, REFUSED), ACCELERATOR)


def test_the_first_fifth_is_dropped_and_the_rest_counted() -> None:
    mixed = [
        *(answer(1), answer(1.9, outcome=REFUSED)),  # too early
        *(answer(2), answer(3, 4 * IDLE), answer(4, outcome=REFUSED), answer(5, 10, LATE)),
        *(answer(6, outcome=LEFT, leaving=True), answer(7, leaving=True)),
    ]
    found = summarise(
        Open("x", ((1.0, 10),)), mixed, cost=Cost(server=1.2, engine=0.8, client=0.4, elsewhere=0.0, seconds=8)
    )
    assert found["sent"] == 6
    assert found["outcomes"] == {OK: 3, REFUSED: 1, LATE: 1, LEFT: 1}
    assert found["good"] == 2 / 8
    assert found["refused"] == pytest.approx(1 / 6, abs=1e-4)
    assert found["in_time"] == {"20": 0.25, "dit": 0.25}  # one of the four who stay
    assert found["cpu_ms"] == pytest.approx(400)
    assert (found["server_cores"], found["engine_cores"], found["client_cores"]) == (0.15, 0.1, 0.05)


@pytest.mark.parametrize(
    ("elsewhere", "kept", "tries"), [([0.0, 9], 0.0, 1), ([0.2, 0.01, 9], 0.01, 2), ([0.3, 0.1, 0.2, 9], 0.1, 3)]
)
def test_a_disturbed_run_is_made_again(
    monkeypatch: pytest.MonkeyPatch, elsewhere: list[float], kept: float, tries: int
) -> None:
    """The runs themselves are replaced: a test cannot make a hypervisor take time away."""
    left = iter(elsewhere)

    @contextlib.asynccontextmanager
    async def no_server(*_: object) -> AsyncIterator[None]:
        yield

    async def measure(*_: object) -> dict[str, float]:
        return {"elsewhere_cores": next(left)}

    monkeypatch.setattr(command, "run_server", no_server)
    monkeypatch.setattr(command, "measure", measure)
    found = asyncio.run(command.undisturbed("stepwise", Open("x", ((1.0, 1),))))
    assert found["elsewhere_cores"] == kept
    assert next(left) == elsewhere[tries]


def test_recovery_is_the_first_second_that_is_as_before() -> None:
    burst = Open("x", ((0.5, 8), (1.5, 10), (0.5, 8)))
    calm = [answer(t / 10, 2 * IDLE) for t in range(80)]
    late = [answer(18 + t / 10, 9 * IDLE) for t in range(20)]
    fine = [answer(20 + t / 10, 2.8 * IDLE) for t in range(20)]
    assert recovery(burst, calm + late + fine) == 3.0
    assert recovery(burst, calm + late) is None
    slow_before = [answer(t / 10, 7 * IDLE) for t in range(80)]
    assert recovery(burst, slow_before + late) == 1.0  # 9 is less than 1.5 times 7
    assert recovery(burst, fine) is None  # nobody was answered before


def test_every_system_is_asked_in_its_own_way() -> None:
    ours = write_request("stepwise", 80, Kind("dit", 10, 1.5, images=16), "npy")
    assert b"n=16&format=npy HTTP/1.1\r\n" in ours
    assert ours.endswith(b"Content-Length: 0\r\n\r\n")
    head, _, body = write_request("litserve", 80, PLAIN).partition(b"\r\n\r\n")
    assert json.loads(body) == {"model": "dit", "steps": 20, "guidance": 1.0}
    assert f"Content-Length: {len(body)}".encode() in head


COSTS = json.dumps({"dit": [0.1, 0.0], "unet": [0.1, 0.0]})


def test_the_other_servers_batch_requests_of_equal_settings() -> None:
    one, other = Settings("dit", 2, 1.0), Settings("dit", 2, 3.0)
    assert groups([one, other, one]) == {one: [0, 2], other: [1]}
    pictures = Pipelines(COSTS, max_rows=4).run(other, 5)  # of two rows each, so in three batches
    assert len(pictures) == 5
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


async def _batches(requests: list[Settings]) -> list[tuple[Settings, int]]:
    seen: list[tuple[Settings, int]] = []

    class Watched(Pipelines):
        def run(self, settings: Settings, images: int) -> list[bytes]:
            seen.append((settings, images))
            return super().run(settings, images)

    batcher = Batcher(Watched(COSTS, 4), 4)
    waiting = [asyncio.create_task(batcher.submit(settings)) for settings in requests]
    await asyncio.sleep(0)  # all are in the queue
    running = asyncio.create_task(batcher.run())
    await asyncio.gather(*waiting)
    running.cancel()
    return seen


def test_the_batcher_takes_who_waited_longest_and_all_that_fit() -> None:
    one, other = Settings("dit", 2, 1.0), Settings("dit", 2, 3.0)
    seen = asyncio.run(_batches([one, other, one, one, other, one, one, other]))
    assert seen == [(one, 4), (other, 2), (one, 1), (other, 1)]


def result(**figures: Any) -> dict[str, Any]:
    usual = {"good": 10.0, "refused": 0.25, "p50_ms": 40.4, "p95_ms": 50.0, "images": 1234.5, "sent": 8}
    return usual | {"in_time": {"dit": 0.5}, "outcomes": {OK: 5, REFUSED: 2, LATE: 1}} | figures


def test_the_tables_say_what_was_measured() -> None:
    columns = {
        "ideal": {"runs": {"W2-50": result(in_time={"dit": 1.0})}},
        "now": {"runs": {"W2-50": result(outcomes={OK: 8}, elsewhere_cores=0.5), "W1": result(cpu_ms=1.0)}},
    }
    shown = report.table(columns, report.ROWS)
    assert "| | ideal | this service |" in shown
    assert "good answers | 10/s, 25 % refused, 12 % timed out | 10/s, 25 % refused * |" in shown
    assert "| W1: 64 clients, images |  | 1,234/s |" in shown
    assert "| 50 % | 50 % (0.50) |" in report.class_table(columns, "now")


def test_only_what_lies_between_the_comments_is_written() -> None:
    facts = {"commit": "abc", "date": "today", "python": "3", "cores": "2", "runs": {}}
    page = "one\n<!-- serving: when -->\nold\nold\n<!-- end -->\ntwo\n"
    filled = report.fill(page, {"now": facts})
    assert filled == (
        "one\n<!-- serving: when -->\n- this service: commit abc, today, Python 3, 2 cores\n<!-- end -->\ntwo\n"
    )
    assert report.fill(filled, {"now": facts}) == filled


@pytest.mark.parametrize("name", ["README.md", "docs/serving.md"])
def test_the_documents_quote_what_was_measured(name: str) -> None:
    """Draw them anew by python -m benchmarks.serving --report."""
    page = (ROOT / name).read_text()
    assert "<!-- serving: summary -->" in page
    assert report.fill(page, json.loads((ROOT / "docs" / "serving.json").read_text())) == page


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    columns = json.loads((ROOT / "docs" / "serving.json").read_text())
    report.plot(columns, tmp_path / "a.svg")
    report.plot(columns, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    text = (tmp_path / "a.svg").read_text()
    assert [title for name, title in report.TITLES.items() if name in columns and title not in text] == []


def test_three_times_the_capacity_is_answered_or_refused() -> None:
    """By a device that is ten times slower, so that few requests are a load."""
    slow = Device(
        {name: StepCost(10 * cost.t0_ms, 10 * cost.t1_ms) for name, cost in ACCELERATOR.costs.items()}, 64
    )

    async def run() -> dict[str, Any]:
        async with run_server("stepwise", slow) as server:
            return await command.measure("stepwise", server, Open("x", ((3.0, 4),), device=slow))

    found = asyncio.run(run())
    assert set(found["outcomes"]) == {OK, REFUSED}  # every request has its answer
    assert found["sent"] == sum(found["outcomes"].values()) > 2 * capacity(slow)
    assert 0 < found["refused"] < 1


@pytest.mark.parametrize("kind", ["quota", "deadline"])
def test_a_flood_is_refused_and_the_others_are_answered(kind: str) -> None:
    workload = workloads(0.05)["W2-50"]
    assert isinstance(workload, Open)
    figures = asyncio.run(flood.measure(kind, 100.0, workload))
    assert 95 <= figures["refusals"] <= 100 - (kind == "quota")  # whose first request is let through
    assert figures["good"] > 0
    assert 0 < figures["engine_cores"] < 2


def test_a_run_of_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "serving.json"
    wanted = ["--only", "W2-50", "H-4", "--scale", "0.05", "--systems", "stepwise", "ideal"]
    monkeypatch.setattr("sys.argv", ["serving", *wanted, "--column", "short", "--json", str(out)])
    command.main()
    columns = json.loads(out.read_text())
    assert columns.keys() == {"short", "ideal"}
    for column in columns.values():
        assert column["runs"].keys() == {"W2-50", "H-4"}
    mixed = columns["short"]["runs"]["W2-50"]
    assert mixed["sent"] == columns["ideal"]["runs"]["W2-50"]["sent"] == sum(mixed["outcomes"].values())
    assert "broken" not in mixed["outcomes"]
    assert mixed["server_cores"] > 0
    assert columns["short"]["runs"]["H-4"]["outcomes"]["ok"] > 0
