"""Runs a workload against a server, and returns the answers.

A latency counts from the time at which the request was due. So requests that a slow server delays count in full.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.serving.client import Client, Reply
from benchmarks.serving.workloads import TIMEOUT, Arrival, Closed, Kind

OK, REFUSED, LATE, LEFT, BROKEN = "ok", "refused", "timeout", "left", "broken"


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a request."""

    kind: Kind
    due: float  # seconds since the start
    latency: float  # seconds since it was due
    outcome: str  # one of the five above
    retry_after: int | None = None
    was_leaving: bool = False  # whether the client would have left before TIMEOUT


Write = Callable[[Kind], bytes]  # the HTTP request of a kind, for one server


async def offer(
    client: Client, arrivals: Iterable[Arrival], write: Write, timeout: float = TIMEOUT
) -> list[Answer]:
    """Send each request when it is due; returns when all have ended."""
    requests = [(arrival, write(arrival.kind)) for arrival in arrivals]  # first, because making them takes time
    answers, started, running = list[Answer](), time.monotonic(), set[asyncio.Task[None]]()

    async def one(arrival: Arrival, request: bytes) -> None:
        ends = timeout if arrival.leaves is None else min(timeout, arrival.leaves - arrival.due)
        reply = await ask(client, request, started + arrival.due + ends)
        latency, leaving = time.monotonic() - started - arrival.due, arrival.leaves is not None
        outcome = outcome_of(reply, leaving)
        answers.append(Answer(arrival.kind, arrival.due, latency, outcome, reply and reply.retry_after, leaving))

    for arrival, request in requests:
        if (rest := started + arrival.due - time.monotonic()) > 0:
            await asyncio.sleep(rest)
        task = asyncio.create_task(one(arrival, request))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return answers


async def repeat(
    client: Client, workload: Closed, write: Write, kinds: Iterable[Kind] | None = None
) -> list[Answer]:
    """Run clients that ask again when they are answered, until the workload's time is over.

    kinds: of their requests in turn, endless; by default always the workload's own.
    """
    answers, started = list[Answer](), time.monotonic()
    coming = iter(kinds or itertools.repeat(workload.kind))

    async def one() -> None:
        while (due := time.monotonic() - started) < workload.seconds:
            kind = next(coming)
            reply = await ask(client, write(kind), started + due + TIMEOUT)
            latency, outcome = time.monotonic() - started - due, outcome_of(reply)
            answers.append(Answer(kind, due, latency, outcome, reply and reply.retry_after))
            if outcome != OK:
                await asyncio.sleep(0.01)  # a client that is refused at once must not spin

    await asyncio.gather(*(one() for _ in range(workload.clients)))
    return answers


async def ask(client: Client, request: bytes, until: float) -> Reply | None:
    """The reply, with status 0 if the server closed the connection.

    None if there was none by `until` (seconds of the monotonic clock); then the client has closed the connection.
    """
    try:
        async with asyncio.timeout(max(0.0, until - time.monotonic())):
            return await client.ask(request)
    except TimeoutError:
        return None
    except OSError:
        return Reply(0, 0)


def outcome_of(reply: Reply | None, was_leaving: bool = False) -> str:
    if reply is None:
        return LEFT if was_leaving else LATE
    return {200: OK, 503: REFUSED, 429: REFUSED}.get(reply.status, BROKEN)
