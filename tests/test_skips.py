"""The line at the end of a run says what was skipped and how to get it."""

from tests.skips import summary


def test_tools_of_debian_are_one_command() -> None:
    reasons = ["Skipped: needs prometheus"] * 3
    reasons += ["Skipped: needs chromium", "needs a CUDA device", "needs the extra ray"]
    assert summary(reasons) == (
        "skipped: 1 need chromium, 3 need prometheus (apt-get install chromium prometheus), "
        "1 need a CUDA device, 1 need the extra ray (pip install -e '.[ray]')"
    )


def test_there_is_no_line_where_nothing_was_skipped() -> None:
    assert summary([]) == ""
