"""What a run measures of itself while it trains: is it still learning, or does it begin to copy?

Letters: B batch, C x H x W the image.
"""

import csv
import logging
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from models.checkpoint import ModelConfig
from models.sampling import Guidance, to_uint8
from models.schedule import NUM_TIMESTEPS, NoiseSchedule, Prediction, sample_noise_times, training_loss
from training.config import TrainConfig
from training.data import Data, Split, to_float
from training.measure import copied
from training.report import Sampling, generate, keep_rows

logger = logging.getLogger(__name__)

FILE, BEST = "measures.csv", "best"
FIELDS = ("step", "held_out_loss", "training_loss", "copies")
IMAGES = 128  # noisy images behind each loss; 256 forwards cost about three training steps of 32
SAMPLES = 32  # by 5 evaluations each, about as much again: 2.6 % of 250 steps
SAMPLING = Sampling("dpmpp_2m", 5, Guidance(1.0))
# Copies are near when the held-out loss lies by GAP above the training loss, and by RISE above its own lowest or a
# sample is a copy already. With 3,000 digits the gap was 4 % after 96,000 images of either network, and 7 % after
# all that the shipped DiT has seen. With 100 digits both were exceeded before the first copy: docs/experiments.md.
GAP, RISE = 0.25, 0.01
SEED = 2_000_000  # of the first sample; no other samples have it


class Watch:
    """measures.csv, one row a measurement. A resumed run first drops the rows beyond its step."""

    def __init__(self, folder: Path, data: Data, config: ModelConfig, *, autocast: bool, step: int):
        self.path, self.config, self.autocast = folder / FILE, config, autocast
        self.train = data.train
        self.batches = noisy_batch(data.test), noisy_batch(data.train)
        self.best, self.warned = (math.inf, 0), False  # lowest held-out loss, and its step
        for number, held_out, train, copies in keep_rows(self.path, FIELDS, step):
            self.note(int(number), float(held_out), float(train), float(copies))

    @torch.no_grad()
    def measure(self, model: nn.Module, step: int) -> bool:
        """Add a row; returns whether its held-out loss is the lowest. The training draws nothing of it."""
        device = next(model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            held_out, train = (self.loss(model, *(part.to(device) for part in batch)) for batch in self.batches)
            labels = torch.arange(SAMPLES, device=device) % self.config.num_classes
            seeds = torch.arange(SAMPLES, device=device) + SEED
            images = to_uint8(generate(model, self.config, labels, seeds, SAMPLING)).cpu()
        copies = copied(images, self.train.images)
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([step, f"{held_out:.6f}", f"{train:.6f}", f"{copies:.4f}"])
        if self.note(step, held_out, train, copies):
            logger.warning(
                "step %d: the loss is %.0f %% higher on held-out pictures than on those trained on. The network "
                "learns them by heart, and copies come next: stop, or train anew with more pictures, --shift or "
                "--flip. The lowest held-out loss was at step %d, see %s",
                *(step, 100 * (held_out / train - 1), self.best[1], self.path.parent / BEST),
            )
        return self.best[1] == step

    def note(self, step: int, held_out: float, train: float, copies: float) -> bool:
        """Remember a row; returns whether it is the first that warns of copies."""
        self.best = min(self.best, (held_out, step))
        rising = held_out > (1 + RISE) * self.best[0] or copies > 0
        first = not self.warned and rising and held_out > (1 + GAP) * train
        self.warned |= first
        return first

    def loss(self, model: nn.Module, x0: Tensor, labels: Tensor, u: Tensor, eps: Tensor) -> float:
        """The one that training minimises."""
        schedule = NoiseSchedule(self.config.schedule)
        alpha, sigma = schedule.rows(u)
        output = model(alpha * x0 + sigma * eps, u * NUM_TIMESTEPS, labels)  # [B, C, H, W]
        return float(training_loss(Prediction(self.config.prediction), schedule, output, x0, eps, u))


def start_watch(config: TrainConfig, data: Data, model_config: ModelConfig, step: int) -> Watch | None:
    """None where nothing is held out, and of a few-step network, whose loss is another one.

    config: with autocast decided.
    """
    if not config.measure_every or config.few_step or not len(data.test):
        return None
    return Watch(config.out, data, model_config, autocast=bool(config.autocast), step=step)


def noisy_batch(split: Split) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0 [B, C, H, W], labels [B], u [B], eps [B, C, H, W] of IMAGES pictures, the same at every call.

    Fewer pictures are taken several times. Noise times are those of a training batch in random order.
    """
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(split), generator=generator)
    batch = split[order.repeat(-(-IMAGES // len(split)))[:IMAGES]]
    u = sample_noise_times(IMAGES, generator)[torch.randperm(IMAGES, generator=generator)]
    return to_float(batch.images), batch.labels, u, torch.randn(batch.images.shape, generator=generator)
