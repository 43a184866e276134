"""The table of constants: one at a time is changed, and put back."""

import pytest

from benchmarks import constants


def test_every_constant_is_changed_and_put_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def measure(seconds: float, rows: int) -> list[float]:
        seen.append(tuple(getattr(module, name) for module, name, *_ in constants.CHANGES))
        return [0.5] * 5

    monkeypatch.setattr(constants, "measure", measure)
    monkeypatch.setattr("sys.argv", ["constants"])
    constants.main()
    assert len(set(seen)) == len(seen) == 1 + 2 * len(constants.CHANGES)
    assert seen[0] == tuple(getattr(module, name) for module, name, *_ in constants.CHANGES)
    assert capsys.readouterr().out.count("50.0%") == 5 * len(seen)


def test_a_load_is_measured() -> None:
    assert len(shares := constants.measure(seconds=0.3, rows=32)) == 5
    assert all(0 <= share <= 1 for share in shares)
