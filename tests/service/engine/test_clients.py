"""What the engine keeps for a worker that does not read."""

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from service.wire import clients
from service.wire.clients import MAX_UNSENT, Client
from service.wire.frames import FrameReader
from service.wire.messages import FromEngine, Preview, Reply, RequestOutput
from tests.waiting import wait_until

MIB = 1024 * 1024


class Pair:
    """A client of the engine, and the worker's end of its socket."""

    def __init__(self, client: Client, worker: socket.socket):
        self.client, self._worker = client, worker
        self._reader = FrameReader[FromEngine](FromEngine)  # pyright: ignore[reportArgumentType]
        worker.setblocking(False)

    def answer(self, number: int) -> None:
        self.client.send(Reply(number, RequestOutput(bytes(MIB), (1, 1, 1, MIB), 0.0, 0.0, 0.0)))

    def show(self, number: int, step: int) -> None:
        self.client.show(number, Preview(b"\0", (1, 1, 1), 0, step))

    def take(self) -> list[FromEngine]:
        try:
            return self._reader.feed(self._worker.recv(MIB))
        except BlockingIOError:
            return []

    def take_until_answered(self, number: int) -> list[Reply]:
        """Everything up to the answer of that number."""
        taken: list[Reply] = []

        def answered() -> bool:
            self.client.flush()
            taken.extend(message for message in self.take() if isinstance(message, Reply))
            return any(isinstance(reply.result, RequestOutput) for reply in taken if reply.number == number)

        wait_until(answered)
        return taken


@pytest.fixture
def pair() -> Iterator[Pair]:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        yield Pair(Client(0, mine, 1), theirs)


def steps(replies: list[Reply], number: int) -> list[int]:
    """Of the previews of a request."""
    return [each.result.step for each in replies if each.number == number and isinstance(each.result, Preview)]


def test_beyond_8_mib_the_newest_preview_waits_and_every_answer_is_kept(pair: Pair) -> None:
    assert MAX_UNSENT == 8 * MIB
    full = range(100, 110)  # answers of 1 MiB, and nobody reads
    for number in full:
        pair.answer(number)
        assert pair.client.flush()
    for step in (1, 2, 3):
        pair.show(1, step)
        pair.show(2, step)
        assert pair.client.flush()
    pair.answer(2)
    replies = pair.take_until_answered(2)
    pair.answer(3)
    replies += pair.take_until_answered(3)
    assert [reply.number for reply in replies if isinstance(reply.result, RequestOutput)] == [*full, 2, 3]
    assert steps(replies, 1) == [3]
    assert steps(replies, 2) == []  # a preview never follows its answer


def test_within_8_mib_every_preview_is_sent(pair: Pair) -> None:
    for number in range(100, 106):
        pair.answer(number)
        assert pair.client.flush()
    for step in (1, 2, 3):
        pair.show(1, step)
        assert pair.client.flush()
    pair.answer(1)
    assert steps(pair.take_until_answered(1), 1) == [1, 2, 3]


def test_a_worker_that_reads_nothing_is_given_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr(clients, "time", SimpleNamespace(monotonic=lambda: clock))
    pair.answer(1)
    pair.answer(2)
    for _ in range(10):
        assert pair.client.flush()  # the socket is full by now
    clock += clients.STUCK_SECONDS - 0.1
    assert pair.client.flush()
    while pair.take():
        pass
    assert pair.client.flush()  # it has taken something
    clock += clients.STUCK_SECONDS - 0.1
    assert pair.client.flush()
    clock += clients.STUCK_SECONDS
    assert not pair.client.flush()
