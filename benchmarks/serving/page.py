"""Sends mixed requests to a running server of this project, and writes an HTML page about the answers.

    make load URL=http://127.0.0.1:8000 [RATE=20] [DURATION=30]
    python -m benchmarks.serving.page URL [--rate 20] [--seconds 30] [--out build/load.html]

Every kind of request is first sent alone. Then requests arrive at random (Poisson), whether or not the earlier ones
were answered. A latency counts from the time at which the request was due. The default rate is what the server
could do with one request after another. An API key is read from STEPWISE_KEY.
"""

import argparse
import asyncio
import io
import os
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from urllib.parse import SplitResult, urlencode, urlsplit

import httpx
import numpy as np

from benchmarks import ROOT
from benchmarks.serving.client import Client
from benchmarks.serving.load import OK, REFUSED, Answer, ask, offer, outcome_of
from benchmarks.serving.servers import http_post
from benchmarks.serving.workloads import GUIDANCE, STEPS, TARGET_FACTOR, TIMEOUT, Arrival, Kind, mixed

ALONE = 3  # times that each kind is sent before the load; the median counts
PATIENCE = 2.0  # a client waits so many times as long as an answer in time may take
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .8rem; text-align: right }
th:first-child, td:first-child, .facts td { text-align: left } tr { border-bottom: 1px solid #ddd }
svg { max-width: 100% }
"""


@dataclass(frozen=True)
class Load:
    """The requests that were sent to a server, and their answers."""

    url: str
    rate: float
    seconds: float
    alone: dict[Kind, float]  # seconds of a request without others
    answers: list[Answer]

    def slowdown(self, answer: Answer) -> float:
        return answer.latency / self.alone[answer.kind]

    def is_good(self, answer: Answer) -> bool:
        return answer.outcome == OK and self.slowdown(answer) <= TARGET_FACTOR


def write_request(url: SplitResult, key: str | None, kind: Kind) -> bytes:
    fields = {"model": kind.model, "class": 0, "steps": kind.steps, "guidance": kind.guidance}
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    return http_post(f"{url.path.rstrip('/')}/generate?{urlencode(fields)}", url.netloc, headers=authorization)


def served_models(url: str, key: str | None) -> list[str]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = httpx.get(f"{url.rstrip('/')}/models", headers=headers).raise_for_status()
    return [model["name"] for model in answer.json()["models"]]


async def measure(url: str, key: str | None, rate: float | None, seconds: float, seed: int = 0) -> Load:
    """Send every kind alone, then the load.

    Raises:
        httpx.HTTPError: the server does not say which models it has.
        RuntimeError: it refuses a request that is alone.
    """
    parts, models = urlsplit(url), served_models(url, key)
    tls = parts.scheme == "https"
    write, rng = partial(write_request, parts, key), np.random.default_rng(seed)
    kinds = [Kind(model, steps, scale) for model in models for steps in STEPS for scale in GUIDANCE]
    with closing(Client(parts.hostname or "", parts.port or (443 if tls else 80), tls)) as client:
        alone = {kind: await _alone(client, kind, write(kind)) for kind in kinds}
        rate = rate or 1 / sum(alone[kind] * STEPS[kind.steps] / len(models) / len(GUIDANCE) for kind in kinds)
        arrivals = [Arrival(due, kind) for due, kind in mixed(models, rate, seconds, rng)]
        patience = max(TIMEOUT, PATIENCE * TARGET_FACTOR * max(alone.values()))
        answers = await offer(client, arrivals, write, patience)
    return Load(url, rate, seconds, alone, answers)


async def _alone(client: Client, kind: Kind, request: bytes) -> float:
    seconds = []
    for _ in range(ALONE):
        started = time.monotonic()
        reply = await ask(client, request, started + 60)
        if (outcome := outcome_of(reply)) != OK:
            status = reply.status if reply else "none"
            raise RuntimeError(f"{kind.model}, {kind.steps} steps, alone: {outcome} (status {status})")
        seconds.append(time.monotonic() - started)
    return float(np.median(seconds))


def page(load: Load) -> str:
    """One HTML document that needs no other file."""
    good = sum(map(load.is_good, load.answers))
    waits = [answer.retry_after for answer in load.answers if answer.retry_after is not None]
    facts = [
        ("server", load.url),
        (
            "sent",
            f"{len(load.answers)} requests in {load.seconds:g} s, planned {load.rate:.1f} a second at random",
        ),
        ("mixture", f"steps {_shares(STEPS.items())}; guidance {' or '.join(map(str, GUIDANCE))}; models equally"),
        ("in time", f"{good / load.seconds:.1f} a second, {good / max(1, len(load.answers)):.0%} of the requests"),
        ("Retry-After of refusals", f"{min(waits)} to {max(waits)} s" if waits else "none"),
    ]
    kinds = sorted(load.alone, key=lambda kind: (kind.model, kind.steps, kind.guidance))
    return "\n".join(
        [
            f"<!doctype html><html lang=en><meta charset=utf-8><title>Load on {escape(load.url)}</title>",
            f"<style>{STYLE}</style><h1>Load on {escape(load.url)}</h1>",
            f"<div class=facts>{_table([], [list(fact) for fact in facts])}</div>",
            f"<p>In time is at most {TARGET_FACTOR:g} times what the same request takes alone.</p>",
            _table(["outcome", "requests", "share"], _outcomes(load.answers)),
            scatter(load),
            _table(
                ["model, steps, guidance", "alone", "sent", "answered", "in time", "p50", "p95"],
                [_row(load, kind) for kind in kinds],
            ),
            "</html>",
        ]
    )


def _shares(pairs: Iterable[tuple[int, float]]) -> str:
    return ", ".join(f"{value} ({share:.0%})" for value, share in pairs)


def _outcomes(answers: list[Answer]) -> list[list[str]]:
    counts = {name: sum(answer.outcome == name for answer in answers) for name in {a.outcome for a in answers}}
    return [[name, str(count), f"{count / len(answers):.1%}"] for name, count in sorted(counts.items())]


def _row(load: Load, kind: Kind) -> list[str]:
    sent = [answer for answer in load.answers if answer.kind == kind]
    done = [answer.latency for answer in sent if answer.outcome == OK]
    p50, p95 = (f"{1000 * float(np.quantile(done, q)):.0f} ms" if done else "" for q in (0.5, 0.95))
    good = f"{sum(map(load.is_good, sent)) / len(sent):.0%}" if sent else ""
    name = f"{kind.model}, {kind.steps}, {kind.guidance:g}"
    return [name, f"{1000 * load.alone[kind]:.0f} ms", str(len(sent)), str(len(done)), good, p50, p95]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}' for cell in head)}" if head else ""]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}' for cell in row)}" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def scatter(load: Load) -> str:
    """An SVG: each request by its arrival, and by its latency over what it takes alone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for number, model in enumerate(sorted({kind.model for kind in load.alone})):
        done = [a for a in load.answers if a.outcome == OK and a.kind.model == model]
        slow = [load.slowdown(answer) for answer in done]
        axes.plot([answer.due for answer in done], slow, ".", ms=4, color=f"C{number}", label=model)
    for name, colour, height in ((REFUSED, "C3", 0.6), ("not answered", "black", 0.55)):
        others = [a.due for a in load.answers if a.outcome != OK and (a.outcome == REFUSED) == (name == REFUSED)]
        if others:
            axes.plot(others, [height] * len(others), "|", color=colour, ms=7, label=name)
    axes.axhline(TARGET_FACTOR, color="0.3", lw=1, ls="--")
    axes.set(yscale="log", xlabel="seconds", ylabel="latency / alone", yticks=(1, 3, 10, 30))
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right", ncols=4)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="where the server listens, as in http://127.0.0.1:8000")
    parser.add_argument("--rate", type=float, help="requests a second; default: what the server can do one by one")
    parser.add_argument("--seconds", type=float, default=30.0, help="of the load (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "load.html", help="default: build/load.html")
    given = parser.parse_args()
    if not urlsplit(given.url).hostname:
        parser.error(f"{given.url!r} is no URL: give one like http://127.0.0.1:8000")
    if given.seconds <= 0 or (given.rate is not None and given.rate <= 0):
        parser.error("--seconds and --rate must be greater than 0")
    try:
        load = asyncio.run(measure(given.url, os.environ.get("STEPWISE_KEY"), given.rate, given.seconds))
    except (httpx.HTTPError, OSError, RuntimeError) as error:
        print(f"{given.url}: {error}", file=sys.stderr)
        return 1
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(page(load))
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
