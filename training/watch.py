"""Measurements during training: held-out loss and copies, to detect memorisation and keep the best checkpoint.

Letters: B batch, C x H x W the image.
"""

import csv
import logging
import math
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from models.checkpoint import ModelConfig
from models.sampling import Guidance, to_uint8
from models.schedule import NUM_TIMESTEPS, NoiseSchedule, Prediction, sample_noise_times, training_loss
from training.config import TrainConfig
from training.data import Data, Split, to_float
from training.measure import copied
from training.report import MEASURED, MEASURES, NOISE, Sampling, generate, keep_rows

logger = logging.getLogger(__name__)

BEST = "best"
IMAGES = 128  # noisy images of each loss; the 256 forwards of both cost about three training steps of 32
SAMPLES = 32  # with 5 evaluations each, which cost about as much; together 2.4 % of 250 steps
SAMPLING = Sampling("dpmpp_2m", 5, Guidance(1.0))
# Warn of copies when the held-out loss is GAP above the training loss, and either RISE above its own minimum or a
# sample is a copy already. With 3,000 digits the gap was 4 % after 96,000 images of either network, and 7 % at the
# end of the shipped DiT's training. With 100 digits both were exceeded before the first copy: docs/experiments.md.
GAP, RISE = 0.25, 0.01
SEED = 2_000_000  # of the first sample; different from the seeds of all other samples


class Watch:
    """measures.csv, one row a measurement. A resumed run first drops the rows beyond its step."""

    def __init__(self, folder: Path, data: Data, config: ModelConfig, *, autocast: bool, step: int):
        self.path, self.config, self.autocast = folder / MEASURES, config, autocast
        self.train = data.train
        self.batches = noisy_batch(data.test), noisy_batch(data.train)
        self.held_out, self.best, self.warned = math.nan, (math.inf, 0), False  # last loss; lowest, and its step
        for number, held_out, train, copies, *_ in keep_rows(self.path, MEASURED, step):
            self.note(int(number), float(held_out), float(train), float(copies))

    @torch.no_grad()
    def measure(self, model: nn.Module, step: int) -> bool:
        """Add a row; returns whether its held-out loss is the lowest. Uses no random numbers of the training."""
        device = next(model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            quarters, trained = (self.losses(model, *(x.to(device) for x in batch)) for batch in self.batches)
            labels = torch.arange(SAMPLES, device=device) % self.config.num_classes
            seeds = torch.arange(SAMPLES, device=device) + SEED
            images = to_uint8(generate(model, self.config, labels, seeds, SAMPLING)).cpu()
        copies, held_out, train = copied(images, self.train.images), fmean(quarters), fmean(trained)
        losses = [f"{loss:.6f}" for loss in (held_out, train, *quarters)]
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([step, *losses[:2], f"{copies:.4f}", *losses[2:]])
        if self.note(step, held_out, train, copies):
            logger.warning(
                "step %d: the loss is %.0f %% higher on held-out pictures than on those trained on. The network "
                "learns them by heart, and copies come next: stop, or train anew with more pictures, --shift or "
                "--flip. The lowest held-out loss was at step %d, see %s",
                *(step, 100 * (held_out / train - 1), self.best[1], self.path.parent / BEST),
            )
        return self.best[1] == step

    def note(self, step: int, held_out: float, train: float, copies: float) -> bool:
        """Update held_out, best and warned by a row; returns whether it is the first to warn of copies."""
        self.held_out, self.best = held_out, min(self.best, (held_out, step))
        rising = held_out > (1 + RISE) * self.best[0] or copies > 0
        first = not self.warned and rising and held_out > (1 + GAP) * train
        self.warned |= first
        return first

    def losses(self, model: nn.Module, x0: Tensor, labels: Tensor, u: Tensor, eps: Tensor) -> list[float]:
        """The loss that training minimises, for each quarter of the noise times u, from the least noise up."""
        schedule, prediction = NoiseSchedule(self.config.schedule), Prediction(self.config.prediction)
        alpha, sigma = schedule.rows(u)
        output = model(alpha * x0 + sigma * eps, u * NUM_TIMESTEPS, labels)  # [B, C, H, W]
        quarters = u.argsort().chunk(len(NOISE))
        return [float(training_loss(prediction, schedule, output[i], x0[i], eps[i], u[i])) for i in quarters]


def start_watch(config: TrainConfig, data: Data, model_config: ModelConfig, step: int) -> Watch | None:
    """A Watch; None if turned off, without held-out pictures, or for few-step networks, which have another loss.

    config.autocast must not be None.
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
