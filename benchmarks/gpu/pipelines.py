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
from models.samplers import build_table
from models.schedule import NoiseSchedule, Prediction
from service.engine.graphs import CudaDevice
from service.engine.runner import lay_out

WARM_UP = (1, 2) if DRY else (1, 2, 8, 32, 64)  # images


class CapturedForward:
    """A forward of a fixed number of rows as a CUDA graph."""

    def __init__(self, pipeline: "Pipeline", rows: int, device: CudaDevice):
        self.x = torch.zeros(rows, *pipeline.config.image_shape, device=DEVICE, dtype=pipeline.dtype)
        self.x = self.x.contiguous(memory_format=pipeline.layout)
        self.t = torch.zeros(rows, device=DEVICE)
        self.y = torch.zeros(rows, dtype=torch.long, device=DEVICE)
        self.out = torch.zeros(rows, *pipeline.config.image_shape, device=DEVICE)
        self._replay = device.capture(lambda: pipeline.forward(self))

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        rows = len(x)
        self.x[:rows], self.t[:rows], self.y[:rows] = x, t, y
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
        graph.out.copy_(self.model(graph.x, graph.t, graph.y))

    def _predict(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = x.to(self.dtype, memory_format=self.layout)
        if fitting := [rows for rows in self._graphs if rows >= len(x)]:
            return self._graphs[min(fitting)](x, t, y)
        return self.model(x, t, y).float()

    def images(self, count: int, steps: int, guidance: float) -> Tensor:
        """Images of random classes, uint8 [count, H, W, C] on the host."""
        schedule, prediction = NoiseSchedule(self.config.schedule), Prediction(self.config.prediction)
        table = build_table(schedule, prediction, "dpmpp_2m", steps)
        x = torch.randn(count, *self.config.image_shape, device=DEVICE)
        y = torch.randint(self.config.num_classes, (count,), device=DEVICE)
        both, previous = torch.cat([y, torch.full_like(y, self.config.num_classes)]), torch.zeros_like(x)
        for t, p, q, a, b, c, _ in table.rows.tolist():
            if guidance == 1:
                output = self._predict(x, torch.full((count,), t, device=DEVICE), y)
            else:
                rows = torch.cat([x, x]), torch.full((2 * count,), t, device=DEVICE), both
                conditional, unconditional = self._predict(*rows).chunk(2)
                output = unconditional + guidance * (conditional - unconditional)
            denoised = p * x + q * output
            denoised = denoised.clamp(-1, 1) if table.clamp else denoised
            x, previous = a * x + b * denoised + c * previous, denoised
        return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


class Pipelines:
    """The pipelines of both models, as the batcher runs them."""

    def __init__(self, rows: int, graphs: bool):
        with torch.inference_mode():
            self._pipelines = {name: Pipeline(name, rows, graphs) for name in SHIPPED}

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
            for images in (count for count in WARM_UP if 2 * count <= max(2, given.rows)):
                pipelines.run(Settings(model, 2, 1.5), images)
        serve(pipelines, given.rows, given.port, "auto" if DRY else "httptools")


if __name__ == "__main__":
    main()
