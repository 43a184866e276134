"""A usual server to compare with: the FastAPI batcher with the same weights, in plain PyTorch.

    python -m benchmarks.gpu.pipelines --port 8001 [--graphs] [--rows 128]

--graphs replays the forward as a CUDA graph, one for each power of two of rows. With --rows 1 requests run one by
one.
"""

import argparse
import io

import torch
from PIL import Image
from torch import Tensor

from benchmarks.gpu.device import DEVICE, DRY, DTYPE, graph_device, model_of, parse, plain_torch
from benchmarks.networks import SHIPPED
from benchmarks.serving.others.device import Settings
from benchmarks.serving.others.fastapi_batcher import serve
from models.samplers import SamplerTable, T
from models.sampling import Guidance
from service.engine.graphs import CudaDevice
from service.engine.runner import lay_out

WARM_UP = (1, 2) if DRY else (1, 2, 8, 32, 64, 128)  # images


class CapturedForward:
    """A forward of a fixed number of rows as a CUDA graph."""

    def __init__(self, pipeline: "Pipeline", rows: int, device: CudaDevice):
        self.x = torch.zeros(rows, *pipeline.config.image_shape, device=DEVICE, dtype=pipeline.dtype)
        self.x = self.x.contiguous(memory_format=pipeline.layout)
        self.numbers = torch.zeros(3 if pipeline.config.is_few_step else 1, rows, device=DEVICE)  # t, r, w
        self.y = torch.zeros(rows, dtype=torch.long, device=DEVICE)
        self.out = torch.zeros(rows, *pipeline.config.image_shape, device=DEVICE)
        self._replay = device.capture(lambda: pipeline.forward(self))

    def __call__(self, x: Tensor, y: Tensor, numbers: list[float]) -> Tensor:
        rows = len(x)
        self.x[:rows], self.y[:rows] = x, y
        for row, number in zip(self.numbers, numbers, strict=True):
            row.fill_(number)
        self._replay()
        return self.out[:rows]


class Pipeline:
    """A model with a sampling loop like that of diffusers' pipelines."""

    def __init__(self, name: str, rows: int, graphs: bool):
        model, self.config = model_of(name)
        self.dtype = torch.float32 if DRY else DTYPE
        self.model = model.to(DEVICE, self.dtype)
        self.layout = lay_out(self.model, DEVICE)
        powers = [1 << power for power in reversed(range(rows.bit_length()))] if graphs else []
        device = graph_device()
        self._graphs = {count: CapturedForward(self, count, device) for count in powers}

    def forward(self, graph: CapturedForward) -> None:
        t, *others = graph.numbers
        graph.out.copy_(self.model(graph.x, t, graph.y, *others))

    def _predict(self, x: Tensor, y: Tensor, numbers: list[float]) -> Tensor:
        x = x.to(self.dtype, memory_format=self.layout)
        if fitting := [rows for rows in self._graphs if rows >= len(x)]:
            return self._graphs[min(fitting)](x, y, numbers)
        t, *others = (torch.full((len(x),), number, device=DEVICE) for number in numbers)
        return self.model(x, t, y, *others).float()

    def plan(self, steps: int, guidance: float) -> tuple[SamplerTable, list[tuple[float, list[float]]]]:
        """The table, and of each step the scale between two rows (1: one row) and what the network takes.

        Like the service, it gives a network that was tuned for guidance the scale as an input, and guides only in
        the checkpoint's interval. Otherwise this server would run twice the rows for the same pictures.
        """
        how = self.config.default_sampling
        table = self.config.table("dpmpp_2m", steps, how["spacing"])
        guide = Guidance(guidance, *how["guidance_interval"], trained=self.config.guidance_range)
        found = []
        for t, r in zip(table.rows[:, T].tolist(), table.jumps.tolist(), strict=True):
            between, given = guide.split(t, r)
            found.append((between, [t, r, given] if self.config.is_few_step else [t]))
        return table, found

    def images(self, count: int, steps: int, guidance: float) -> Tensor:
        """Images of random classes, uint8 [count, H, W, C] on the host."""
        table, inputs = self.plan(steps, guidance)
        x = torch.randn(count, *self.config.image_shape, device=DEVICE)
        y = torch.randint(self.config.num_classes, (count,), device=DEVICE)
        both, previous = torch.cat([y, torch.full_like(y, self.config.num_classes)]), torch.zeros_like(x)
        for (between, numbers), (_, p, q, a, b, c, _) in zip(inputs, table.rows.tolist(), strict=True):
            if between == 1:
                output = self._predict(x, y, numbers)
            else:
                conditional, unconditional = self._predict(torch.cat([x, x]), both, numbers).chunk(2)
                output = unconditional + between * (conditional - unconditional)
            denoised = p * x + q * output
            denoised = denoised.clamp(-1, 1) if table.clamp else denoised
            x, previous = a * x + b * denoised + c * previous, denoised
        return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


class Pipelines:
    """The pipelines of both models, as the batcher runs them."""

    def __init__(self, rows: int, graphs: bool):
        with torch.inference_mode():
            self._pipelines = {name: Pipeline(name, rows, graphs) for name in SHIPPED}

    def rows(self, settings: Settings) -> int:
        """Of an image, at most."""
        _, inputs = self._pipelines[settings.model].plan(settings.steps, settings.guidance)
        return 2 if any(between != 1 for between, _ in inputs) else 1

    @torch.inference_mode()
    def run(self, settings: Settings, images: int) -> list[bytes]:
        pipeline = self._pipelines[settings.model]
        return [png(image) for image in pipeline.images(images, settings.steps, settings.guidance)]


def png(image: Tensor) -> bytes:
    """image: uint8 [H, W, C]."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1).numpy()).save(buffer, "png")
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rows", type=int, default=8 if DRY else 128)
    parser.add_argument("--graphs", action="store_true")
    given = parse(parser)
    with plain_torch():
        pipelines = Pipelines(given.rows, given.graphs)
        for model in SHIPPED:
            for images in (count for count in WARM_UP if count <= given.rows):
                pipelines.run(Settings(model, 2, 1.5), images)
        serve(pipelines, given.rows, given.port, "auto" if DRY else "httptools")


if __name__ == "__main__":
    main()
