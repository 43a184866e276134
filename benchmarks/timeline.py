"""Draws docs/batching.svg: the same requests, batched with a compatibility key and without one.

    python -m benchmarks.timeline [--checkpoint checkpoints/unet] [--out docs/batching.svg]

The service's own scheduler decides which image takes part in which forward. With a key it is that of
benchmarks.batching, where only images of equal sampler and guidance share one. The model draws the digits, each by
its own sampler, steps, guidance and seed. Only the arrivals are invented, and each forward takes one unit of time.
"""

import argparse
import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from benchmarks.batching import KeyedStep
from models.checkpoint import ModelConfig, load_checkpoint
from models.samplers import build_table
from models.sampling import Guidance, sample, to_uint8
from models.schedule import NoiseSchedule, Prediction
from service.engine.plan import compile_plan
from service.engine.request import Request
from service.engine.scheduler import Scheduler, SchedulerOutput
from service.wire.messages import SamplingParams

ROW_CAP = 8
# The forward before which a request arrives, class, sampler, steps, guidance scale. The shipped UNet takes scales
# up to 3 as an input, so each of these images has one row.
ARRIVALS: tuple[tuple[int, int, str, int, float], ...] = (
    (0, 3, "ddim", 12, 2.0),
    (0, 7, "dpmpp_2m", 8, 1.0),
    (1, 0, "euler", 10, 3.0),
    (2, 5, "ddpm", 9, 1.0),
    (4, 8, "dpmpp_2m", 6, 1.0),
    (5, 2, "euler", 8, 3.0),
    (6, 4, "dpmpp_2m", 5, 1.0),
    (7, 9, "ddim", 6, 2.0),
)
SHOWN = 7  # the forward that the picture highlights
KEYED = "With a key: only requests of equal sampler and guidance share a forward, oldest first"
FREE = "Stepwise: any requests share a forward"
WORDS = "A column is one forward pass, a cell one step of a request. Dots: it waits. A colour is a key."
# Of a sampler with its guidance. By Okabe and Ito, whose colours differ for colour-blind eyes, too.
COLOURS = {"ddim": "#e69f00", "dpmpp_2m": "#0072b2", "euler": "#009e73", "ddpm": "#cc79a7"}
CELL, LANE, LEFT, HEAD, COUNTS, PICTURE = 15, 26, 248, 54, 44, 24  # pixels
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #52525b } .strong { font-weight: 600; fill: #18181b }
.title { font-size: 14px } .mid { font-size: 10px; text-anchor: middle }
.card { fill: #fafaf9; stroke: #d6d3d1 } .line { stroke: #e7e5e4 } .end { stroke: #71717a; stroke-dasharray: 3 3 }
.wait { stroke: #a1a1aa; stroke-dasharray: 1 4; stroke-width: 2; stroke-linecap: round }
.shown { fill: #e4e4e7 }
@media (prefers-color-scheme: dark) {
text { fill: #b4b4bd } .strong { fill: #f4f4f5 } .card { fill: #18181b; stroke: #3f3f46 } .line { stroke: #2e2e33 }
.wait { stroke: #71717a } .end { stroke: #a1a1aa } .shown { fill: #3a3a41 }
}
"""


@dataclass
class Lane:
    """A request, and the forwards that its image took part in."""

    arrived: int
    request: Request
    cells: list[tuple[int, int, int]] = field(default_factory=list)  # forward, step, rows

    @property
    def params(self) -> SamplingParams:
        return self.request.params

    @property
    def ended(self) -> int:
        """The number of forwards after which the image is there."""
        return self.cells[-1][0] + 1


def play(config: ModelConfig, kind: type[Scheduler] = Scheduler) -> list[Lane]:
    """Ask a scheduler for forwards until every request has ended; a lane for each request."""
    lanes = [
        Lane(arrival[0], make_request(config, number, *arrival[1:])) for number, arrival in enumerate(ARRIVALS)
    ]
    scheduler, forward = kind(ROW_CAP, len(lanes), 10**6), 0
    of_request = {id(lane.request): lane for lane in lanes}
    while forward <= max(lane.arrived for lane in lanes) or scheduler.has_work:
        for lane in lanes:
            if lane.arrived == forward:
                scheduler.add(lane.request, now=forward)
        output = scheduler.schedule(now=forward)
        for task in output.tasks:
            of_request[id(task.request)].cells.append((forward, task.step, task.rows))
        run(scheduler, output, now=forward)
        forward += 1
    return lanes


def make_request(
    config: ModelConfig, number: int, label: int, sampler: str, steps: int, guidance: float
) -> Request:
    params = SamplingParams("model", label, steps, sampler, guidance, (0.0, 1.0), seeds=(40 + label,))
    plan = compile_plan(config, params)
    return Request(str(number), params, plan, idle_seconds=float(steps))  # a forward takes a second


def run(scheduler: Scheduler, output: SchedulerOutput, now: int) -> None:
    """Pretend that the forward was computed: end its images' steps."""
    for task in output.tasks:
        if task.step == task.last_step:
            task.request.images[task.index] = None
    scheduler.advance(output)
    scheduler.end(output, {}, now)


def draw_digit(model: nn.Module, config: ModelConfig, params: SamplingParams) -> str:
    """The request's image as a data URI."""
    table = build_table(
        NoiseSchedule(config.schedule), Prediction(config.prediction), params.sampler, params.num_steps
    )
    labels, seeds = torch.tensor([params.class_label]), torch.tensor(params.seeds)
    images = sample(model, table, labels, seeds, config.image_shape, guidance=Guidance(params.guidance_scale))
    file = BytesIO()
    Image.fromarray(to_uint8(images)[0].permute(1, 2, 0).numpy()).convert("L").save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def svg(keyed: list[Lane], free: list[Lane], pictures: list[str]) -> str:
    """Both ways, one above the other, on one axis of forwards."""
    longest = max(lane.ended for lane in keyed)
    width, panel = LEFT + longest * CELL + PICTURE + 28, HEAD + len(free) * LANE + COUNTS
    height = 2 * panel + 6
    parts = [f'<rect class="card" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10"/>', "<defs>"]
    parts += [
        f'<image id="d{number}" href="{picture}" width="{PICTURE}" height="{PICTURE}"/>'
        for number, picture in enumerate(pictures)
    ]
    parts += ["</defs>", *draw_panel(keyed, 4, KEYED), f'<text x="16" y="48">{WORDS}</text>']
    parts += [f'<line class="line" x1="0" y1="{panel + 2}" x2="{width}" y2="{panel + 2}"/>']
    parts += [*draw_panel(free, panel + 4, FREE, SHOWN)]
    parts += draw_gain(keyed, free, panel + 4)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">'
    title = "<title>The same eight requests, batched with a compatibility key and without one</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def draw_panel(lanes: list[Lane], y: int, title: str, shown: int | None = None) -> Iterator[str]:
    top = y + HEAD
    bottom, ended = top + len(lanes) * LANE, max(lane.ended for lane in lanes)
    yield f'<text class="strong title" x="16" y="{y + 24}">{title}</text>'
    if shown is not None:
        x, height = LEFT + shown * CELL, bottom - top + 26
        yield f'<rect class="shown" x="{x - 1}" y="{top - 4}" width="{CELL + 2}" height="{height}" rx="5"/>'
        yield f'<text x="{x - 1}" y="{top - 10}">↓ one forward of {row_counts(lanes)[shown]} requests</text>'
    for number, lane in enumerate(lanes):
        yield from draw_lane(lane, number, top + number * LANE, LEFT + ended * CELL)
    yield f'<text x="16" y="{bottom + 17}">requests in each forward</text>'
    for forward, rows in enumerate(row_counts(lanes)):
        yield f'<text class="mid" x="{LEFT + forward * CELL + CELL / 2:g}" y="{bottom + 17}">{rows}</text>'
    x, text = LEFT + ended * CELL, f"all answered after {ended} forwards"
    yield f'<line class="end" x1="{x + 1}" y1="{top}" x2="{x + 1}" y2="{bottom + 24}"/>'
    yield f'<text class="strong" x="{x}" y="{bottom + 37}" text-anchor="end">{text}</text>'


def draw_lane(lane: Lane, number: int, y: int, right: int) -> Iterator[str]:
    params, middle = lane.params, y + LANE // 2
    colour = COLOURS[params.sampler]
    guidance = f"guidance {params.guidance_scale:g}" if params.guidance_scale != 1 else "no guidance"
    about = f"{params.sampler}, {guidance}, {params.num_steps} steps"
    yield f'<circle cx="21" cy="{middle}" r="5" fill="{colour}"/>'
    yield f'<text x="34" y="{middle + 4}">{escape(about)}</text>'
    yield f'<line class="line" x1="{LEFT}" y1="{y + LANE}" x2="{right}" y2="{y + LANE}"/>'
    started = lane.cells[0][0]
    if started > lane.arrived:
        x = LEFT + lane.arrived * CELL
        yield f'<line class="wait" x1="{x + 2}" y1="{middle}" x2="{LEFT + started * CELL - 2}" y2="{middle}"/>'
    for forward, _, _ in lane.cells:
        x = LEFT + forward * CELL + 1
        yield f'<rect x="{x}" y="{y + 5}" width="{CELL - 2}" height="{LANE - 10}" rx="3" fill="{colour}"/>'
    yield f'<use href="#d{number}" x="{LEFT + lane.ended * CELL + 5}" y="{middle - PICTURE // 2}"/>'


def row_counts(lanes: list[Lane]) -> list[int]:
    """Rows of each forward."""
    found = [0] * max(lane.ended for lane in lanes)
    for lane in lanes:
        for forward, _, rows in lane.cells:
            found[forward] += rows
    return found


def draw_gain(keyed: list[Lane], free: list[Lane], y: int) -> Iterator[str]:
    """How long a request takes on average, in the room that the faster way leaves."""
    after, before = (sum(lane.ended - lane.arrived for lane in lanes) / len(lanes) for lanes in (free, keyed))
    x, middle = LEFT + (max(lane.ended for lane in free) + 5) * CELL, y + HEAD + len(free) * LANE // 2
    lines = "On average a request is answered", f"after {after:.0f} forwards, with a key after {before:.0f}."
    for number, line in enumerate(lines):
        yield f'<text class="strong title" x="{x}" y="{middle - 4 + 20 * number}">{line}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/unet"))
    parser.add_argument("--out", type=Path, default=Path("docs/batching.svg"))
    arguments = parser.parse_args()
    model, config = load_checkpoint(arguments.checkpoint)
    keyed, free = play(config, KeyedStep), play(config)
    pictures = [draw_digit(model, config, lane.params) for lane in free]
    arguments.out.write_text(svg(keyed, free, pictures))


if __name__ == "__main__":
    main()
