"""The picture of the idea is what the scheduler does."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import timeline
from benchmarks.batching import KeyedStep
from models.checkpoint import load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def lanes() -> list[timeline.Lane]:
    return timeline.play(load_config(ROOT / "checkpoints" / "unet"))


@pytest.fixture(scope="module")
def keyed() -> list[timeline.Lane]:
    return timeline.play(load_config(ROOT / "checkpoints" / "unet"), KeyedStep)


def test_every_request_takes_its_steps_one_after_the_other(
    lanes: list[timeline.Lane], keyed: list[timeline.Lane]
) -> None:
    for lane in lanes + keyed:
        forwards, steps, _ = zip(*lane.cells, strict=True)
        assert steps == tuple(range(lane.params.num_steps))
        assert list(forwards) == sorted(set(forwards))
        assert forwards[0] >= lane.arrived


def test_forwards_are_shared_and_stay_within_the_cap(lanes: list[timeline.Lane]) -> None:
    rows = [sum(rows for lane in lanes for at, _, rows in lane.cells if at == forward) for forward in range(18)]
    assert max(rows) == timeline.ROW_CAP
    together = {lane.params.sampler for lane in lanes if timeline.SHOWN in [at for at, _, _ in lane.cells]}
    assert len(together) >= 4


def test_with_a_key_only_equal_sampler_and_guidance_share_a_forward(keyed: list[timeline.Lane]) -> None:
    of_forward: dict[int, set[tuple[str, float]]] = {}
    for lane in keyed:
        for forward, _, _ in lane.cells:
            of_forward.setdefault(forward, set()).add((lane.params.sampler, lane.params.guidance_scale))
    assert sorted(of_forward) == list(range(max(lane.ended for lane in keyed)))  # no forward is empty
    assert [keys for keys in of_forward.values() if len(keys) != 1] == []
    assert {lane.params.sampler: lane.params.guidance_scale for lane in keyed}.keys() == timeline.COLOURS.keys()
    assert len({(lane.params.sampler, lane.params.guidance_scale) for lane in keyed}) == len(timeline.COLOURS)


def test_the_picture_in_the_documents_is_this_one(lanes: list[timeline.Lane], keyed: list[timeline.Lane]) -> None:
    """But for the digits, whose pixels may differ by rounding: draw it anew by python -m benchmarks.timeline."""
    kept = re.sub(r"data:[^\"]*", "", (ROOT / "docs" / "batching.svg").read_text())
    assert timeline.svg(keyed, lanes, [""] * len(lanes)) == kept


def test_the_command_writes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "ARRIVALS", timeline.ARRIVALS[:5])
    out = tmp_path / "batching.svg"
    monkeypatch.setattr("sys.argv", ["timeline", "--out", str(out), "--checkpoint", str(ROOT / "checkpoints/dit")])
    timeline.main()
    names = [element.tag.rpartition("}")[2] for element in ElementTree.fromstring(out.read_text()).iter()]
    assert names.count("image") == 5
