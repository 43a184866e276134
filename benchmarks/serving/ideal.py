"""The ideal server: the service's engine, order and refusals on a virtual clock, where the host takes no time."""

from heapq import heappop, heappush
from itertools import count

from benchmarks.fleet import Model, Replica
from benchmarks.scheduling import CONFIG
from benchmarks.serving.load import LATE, LEFT, OK, REFUSED, Answer
from benchmarks.serving.workloads import TIMEOUT, Arrival, Closed, Kind, Workload
from service.engine.plan import compile_plan
from service.engine.request import Request
from service.wire.messages import SamplingParams

ASKS_AGAIN = 0.001  # seconds after a refusal, of a client in a closed loop
CLOSED_REQUESTS = 5000  # at most, of a closed loop: an ideal device answers tens of thousands a second


def simulate(workload: Workload) -> tuple[list[Answer], int]:
    """The answers of an ideal server, and the rows that it runs."""
    device = workload.device
    replica = Replica({name: Model(cost, device.rows) for name, cost in device.costs.items()})
    if isinstance(workload, Closed):
        answers = _closed(replica, workload)
    else:
        answers = _open(replica, list(workload.arrivals()))
    return answers, replica.rows


def make_request(name: str, kind: Kind) -> Request:
    seeds = tuple(range(kind.images))
    params = SamplingParams(kind.model, 0, kind.steps, "ddim", kind.guidance, (0.0, 1.0), seeds)
    return Request(name, params, compile_plan(CONFIG, params))


def _open(replica: Replica, arrivals: list[Arrival]) -> list[Answer]:
    """Every client leaves at its time, or after TIMEOUT, unless it was answered before."""
    answers = list[Answer]()
    events = [(a.due, True, number) for number, a in enumerate(arrivals)]
    events += [(a.due + TIMEOUT if a.leaves is None else a.leaves, False, n) for n, a in enumerate(arrivals)]
    for now, is_arrival, number in sorted(events):
        replica.run(now)
        if not is_arrival:
            if replica.abort(str(number)):
                answers.append(
                    _answer(arrivals[number], TIMEOUT, LATE if arrivals[number].leaves is None else LEFT)
                )
        elif not replica.take(now, make_request(str(number), arrivals[number].kind)):
            answers.append(_answer(arrivals[number], 0.0, REFUSED))
    latencies = {int(request.request_id): request.finished - request.arrived for request in replica.ended}
    return answers + [_answer(arrivals[number], latency, OK) for number, latency in latencies.items()]


def _answer(arrival: Arrival, latency: float, outcome: str) -> Answer:
    return Answer(arrival.kind, arrival.due, latency, outcome, was_leaving=arrival.leaves is not None)


def _closed(replica: Replica, workload: Closed) -> list[Answer]:
    due, sent = [0.0] * workload.clients, count()  # a heap
    while len(replica.ended) < CLOSED_REQUESTS and (now := heappop(due)) < workload.seconds:
        replica.run(now)
        if not replica.take(now, make_request(str(next(sent)), workload.kind)):
            heappush(due, now + ASKS_AGAIN)
        while not due:
            seen = len(replica.ended)
            replica.step()
            for request in replica.ended[seen:]:
                heappush(due, request.finished)
    return [Answer(workload.kind, r.arrived, r.finished - r.arrived, OK) for r in replica.ended]
