"""Draws docs/batching.svg: requests with different samplers, steps and guidance share their forwards.

    python -m benchmarks.timeline [--checkpoint checkpoints/unet] [--out docs/batching.svg]

The service's own scheduler decides which image takes part in which forward, and the model draws the digits, each by
its own sampler, steps, guidance and seed. Only the arrivals are invented, and each forward takes one unit of time.
"""

import argparse
import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from itertools import cycle
from pathlib import Path

import torch
from PIL import Image
from torch import nn

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
# up to 3 as an input; a larger one costs a second row.
ARRIVALS: tuple[tuple[int, int, str, int, float], ...] = (
    (0, 3, "ddim", 12, 3.5),
    (0, 7, "dpmpp_2m", 6, 1.0),
    (2, 0, "euler", 10, 5.0),
    (3, 5, "ddpm", 9, 1.0),
    (4, 8, "dpmpp_2m_sde", 5, 4.0),
    (7, 2, "ab2", 7, 3.5),
    (8, 4, "dpmpp_2m", 4, 1.0),
    (9, 9, "ddim", 6, 4.0),
)
COLOURS = ("#c2410c", "#0f766e", "#4338ca", "#a16207", "#be185d", "#15803d", "#0369a1", "#7e22ce")
CELL, LANE, LEFT, TOP, PICTURE, LEGEND = 30, 46, 236, 48, 38, 78  # pixels
SHOWN = 4  # the forward that the picture highlights
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #3f3f46 } .strong { font-weight: 600; fill: #18181b }
.in { fill: #fff; font-size: 11px; text-anchor: middle } .mid { text-anchor: middle }
.card { fill: #fafaf9; stroke: #d6d3d1 } .line { stroke: #d6d3d1 } .wait { stroke: #a1a1aa; stroke-dasharray: 2 4 }
.bar { fill: #71717a } .shown { fill: #e7e5e4 }
@media (prefers-color-scheme: dark) {
text { fill: #b4b4bd } .strong { fill: #f4f4f5 } .card { fill: #18181b; stroke: #3f3f46 } .line { stroke: #3f3f46 }
.in { fill: #fff } .wait { stroke: #71717a } .bar { fill: #a1a1aa } .shown { fill: #34343b }
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


def play(config: ModelConfig) -> list[Lane]:
    """Ask the scheduler for forwards until every request has ended; a lane for each request."""
    lanes = [Lane(arrival[0], make_request(config, *arrival[1:])) for arrival in ARRIVALS]
    scheduler, forward = Scheduler(ROW_CAP, len(lanes), 10**6), 0
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


def make_request(config: ModelConfig, label: int, sampler: str, steps: int, guidance: float) -> Request:
    params = SamplingParams("model", label, steps, sampler, guidance, (0.0, 1.0), seeds=(40 + label,))
    plan = compile_plan(config, params)
    return Request(f"{label} {sampler}", params, plan, idle_seconds=float(steps))  # a forward takes a second


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


def svg(lanes: list[Lane], pictures: list[str]) -> str:
    forwards = 1 + max(forward for lane in lanes for forward, _, _ in lane.cells)
    width, bottom = LEFT + forwards * CELL + PICTURE + 40, TOP + len(lanes) * LANE
    parts = [f'<rect class="card" x=".5" y=".5" width="{width - 1}" height="{bottom + LEGEND - 1}" rx="10"/>']
    parts += draw_head([lane for lane in lanes if SHOWN in [forward for forward, _, _ in lane.cells]], bottom)
    for lane, picture, colour, y in zip(lanes, pictures, cycle(COLOURS), range(TOP, bottom, LANE), strict=False):
        parts += draw_lane(lane, picture, colour, y, width)
    rows = [sum(n for lane in lanes for at, _, n in lane.cells if at == forward) for forward in range(forwards)]
    parts += draw_rows(rows, bottom)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + LEGEND}" width="{width}">'
    title = "<title>Eight requests with different samplers, steps and guidance share forward passes</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def draw_head(shown: list[Lane], bottom: int) -> Iterator[str]:
    """The explanation of the columns, and the highlighted one."""
    x = LEFT + SHOWN * CELL
    rows = sum(count for lane in shown for forward, _, count in lane.cells if forward == SHOWN)
    yield '<text x="16" y="20">A column is one forward pass of the network.</text>'
    yield '<text x="16" y="36">Dots and gaps: others have less slack.</text>'
    yield f'<text class="strong" x="{x}" y="28">↓ one forward: {len(shown)} requests, {rows} rows</text>'
    yield f'<rect class="shown" x="{x - 1}" y="{TOP - 10}" width="{CELL + 2}" height="{bottom - TOP + 14}" rx="5"/>'


def draw_lane(lane: Lane, picture: str, colour: str, y: int, width: int) -> Iterator[str]:
    params, middle = lane.params, y + LANE // 2
    guidance = f"guidance {params.guidance_scale:g}" if params.guidance_scale != 1 else "no guidance"
    about = f"{params.sampler}, {params.num_steps} steps, {guidance}"
    yield f'<text class="strong" x="16" y="{middle - 3}">class {params.class_label}</text>'
    yield f'<text x="16" y="{middle + 12}">{escape(about)}</text>'
    started, ended = lane.cells[0][0], lane.cells[-1][0]
    if started > lane.arrived:
        x = LEFT + lane.arrived * CELL
        yield f'<line class="wait" x1="{x}" y1="{middle}" x2="{LEFT + started * CELL}" y2="{middle}"/>'
    for forward, step, rows in lane.cells:
        height = 17
        for row in range(rows):
            top = middle - rows * (height + 2) / 2 + row * (height + 2) + 1
            yield (
                f'<rect x="{LEFT + forward * CELL + 1}" y="{top:g}" width="{CELL - 2}" height="{height}" rx="3" '
                f'fill="{colour}" fill-opacity="{1 - 0.35 * row:g}"/>'
            )
        label = middle - (height + 2) * (rows - 1) / 2 + 4
        yield f'<text class="in" x="{LEFT + forward * CELL + CELL / 2:g}" y="{label:g}">{step + 1}</text>'
    x = LEFT + (ended + 1) * CELL + 8
    yield f'<image href="{picture}" x="{x}" y="{middle - PICTURE // 2}" width="{PICTURE}" height="{PICTURE}"/>'
    yield f'<line class="line" x1="16" y1="{y + LANE}" x2="{width - 16}" y2="{y + LANE}"/>'


def draw_rows(rows: list[int], y: int) -> Iterator[str]:
    yield f'<text class="strong" x="16" y="{y + 26}">rows in the forward</text>'
    yield f'<text x="16" y="{y + 41}">at most {ROW_CAP}; two for a guided image</text>'
    for forward, count in enumerate(rows):
        x, height = LEFT + forward * CELL, 4 * count
        yield f'<rect class="bar" x="{x + 4}" y="{y + 48 - height}" width="{CELL - 8}" height="{height}" rx="2"/>'
        yield f'<text class="mid" x="{x + CELL / 2:g}" y="{y + 64}">{count}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/unet"))
    parser.add_argument("--out", type=Path, default=Path("docs/batching.svg"))
    arguments = parser.parse_args()
    model, config = load_checkpoint(arguments.checkpoint)
    lanes = play(config)
    arguments.out.write_text(svg(lanes, [draw_digit(model, config, lane.params) for lane in lanes]))


if __name__ == "__main__":
    main()
