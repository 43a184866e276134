"""The training loop: one process, or several under torchrun.

Letters: B batch of this process, C x H x W the image.
"""

import logging
import math
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.checkpoint import (
    CheckpointError,
    ModelConfig,
    build_model,
    half_weights,
    load_checkpoint,
    save_checkpoint,
)
from models.precision import multiplies_bfloat16
from models.schedule import NUM_TIMESTEPS, NoiseSchedule, Prediction, sample_noise_times, training_loss
from training.augment import moved
from training.config import TrainConfig
from training.data import Data, fingerprint, load_data, take_subset, to_float
from training.ema import EMA
from training.few_step import KINDS, Draws, Tuning, draw, few_step_config
from training.machine import describe_machine, git_commit
from training.meter import Meter
from training.processes import Processes
from training.randomness import batch_indices, mix
from training.report import LossLog, save_sample_grid
from training.run_folder import check_own, locked
from training.start import describe_start, initial_sha256, load_initial_weights
from training.state import Progress, load_state, save_state
from training.stop import Signals, Stopped, deferred_signals
from training.watch import BEST, Watch, start_watch

logger = logging.getLogger(__name__)

FINAL_LR = 0.02  # of the peak


class TrainingDiverged(ValueError):
    """Loss, gradient or weights are no longer finite; the state on disk is from an earlier step."""

    def __init__(self, step: int, reason: str):
        super().__init__(
            f"training diverged at step {step}: {reason}. Nothing of this step was saved. "
            "Try a lower --lr, a longer --warmup or --autocast false, in another --out"
        )


def train(config: TrainConfig, signals: Signals | None = None) -> Path:
    """Train until config.steps, continuing from the state in config.out where there is one.

    Returns the folder of the finished checkpoint (model.safetensors and config.json). signals: receives also a
    signal during the last step, after which the run finishes as usual.

    Raises:
        DataError, CheckpointError, StateError: bad input, named in the message.
        TrainingDiverged: the loss or the weights are no longer finite.
        Stopped: SIGINT or SIGTERM ended the run; its state is saved.
    """
    check_own(config.out)
    if config.threads:
        torch.set_num_threads(config.threads)
    world = Processes.join()
    try:
        with locked(config.out) if world.rank == 0 else nullcontext():
            return Trainer(config, world).run(signals)
    finally:
        world.leave()


def load_training_data(config: TrainConfig) -> Data:
    """The config's data, with its subset as `train`. Raises DataError."""
    channels, size = config.arguments.get("image_channels", 3), config.arguments.get("image_size", 32)
    data = load_data(config.data, config.data_path, size, channels, config.hold_out or 0.0)
    return replace(data, train=take_subset(data.train, config.subset))


class Trainer:
    """One run. Everything random in step k is a function of (seed, k): see draw_batch."""

    def __init__(self, config: TrainConfig, world: Processes):
        self.autocast = multiplies_bfloat16(world.device) if config.autocast is None else config.autocast
        self.config, self.world = replace(config, autocast=self.autocast), world
        self.data = load_training_data(config)
        self.model_config = ModelConfig(
            config.model, config.arguments, config.schedule, config.prediction, self.data.class_names
        )
        self.train_sha256 = fingerprint(self.data.train)
        torch.manual_seed(config.seed)
        self.model = build_model(self.model_config).to(world.device)
        self.init_sha256 = initial_sha256(config.init_from) if config.init_from else ""
        self.trained: nn.Module = self.model  # what the optimizer moves and the state holds
        if config.init_from:
            load_initial_weights(self.model, self.model_config, config.init_from, same_classes=config.few_step)
            if config.few_step:
                self.trained = self.tuning(config.init_from)
        self.null_label = len(self.data.class_names)
        self.schedule, self.prediction = NoiseSchedule(config.schedule), Prediction(config.prediction)
        self.ema = EMA(self.model, config.ema_decay)
        betas = 0.5 if config.few_step else 0.9, 0.99  # less momentum: the critic must follow a changing student
        self.optimizer = torch.optim.AdamW(
            self.trained.parameters(), config.lr, betas, weight_decay=config.weight_decay, fused=True
        )
        self.resumed = load_state(config.out, self.trained, self.ema, self.optimizer, self.identity())
        self.step, self.seconds, self.saved_step = self.resumed.step, self.resumed.seconds, self.resumed.step
        world.agree(self.step)
        self.network: nn.Module = DistributedDataParallel(self.trained) if world.size > 1 else self.trained

    def tuning(self, folder: Path) -> Tuning:
        """The few-step network with its critic; folder: of the teacher's checkpoint."""
        if self.config.batch_size < KINDS * self.world.size:
            raise ValueError(f"batch_size must be at least {KINDS} a process for few_step")
        teacher, known = load_checkpoint(folder)
        self.model_config = few_step_config(self.model_config, known)
        return Tuning(self.model, teacher.to(self.world.device), known.default_sampling["guidance_interval"])

    def run(self, noted: Signals | None = None) -> Path:
        leader = self.world.rank == 0
        log = LossLog(self.config.out / "loss.csv", self.step) if leader else None
        if log:
            logger.info(describe_start(self.config, self.model, self.data, self.world, self.step))
        with deferred_signals(noted) as signals:
            self.loop(log, signals)
        if log:
            if not self.exported():
                self.export()
            log.plot(f"{self.config.model}, {self.config.data}")
        return self.config.out

    def loop(self, log: LossLog | None, signals: Signals) -> None:
        """Train until the last step or a signal. log: None in all processes but 0."""
        started = time.monotonic() - self.seconds
        watch = start_watch(self.config, self.data, self.model_config, self.step) if log else None
        with Meter(self.config.steps, self.step, bool(log)) as meter:
            while self.step < self.config.steps:
                loss = self.train_step()
                self.seconds = time.monotonic() - started
                if log:
                    log.add(self.step, loss, self.learning_rate(self.step - 1), self.seconds)
                    self.save_if_due(watch)
                    meter.update(log.smoothed, watch.held_out if watch else math.nan)
                number = self.world.largest(signals.received)  # else processes would stop at different steps
                if number and self.step < self.config.steps:
                    self.stop(number)
        self.world.wait()

    def stop(self, number: int) -> None:
        """Save the state in process 0 and raise Stopped; number: of the signal."""
        if self.world.rank == 0 and self.saved_step != self.step:
            self.save()
        self.world.wait()
        name, steps = signal.Signals(number).name, f"step {self.step} of {self.config.steps}"
        raise Stopped(
            number, f"stopped by {name}: {steps} is saved in {self.config.out}, the same command goes on from there"
        )

    def train_step(self) -> Tensor:
        """One optimizer step; returns the loss of this process's images."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        loss = self.loss()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained.parameters(), self.config.clip, foreach=True)
        # The norm is the same in all processes. Adding both on the device needs one synchronisation instead of two.
        if not math.isfinite(loss.detach() + norm):
            raise TrainingDiverged(self.step + 1, f"the loss is {loss:g}, the norm of its gradient {norm:g}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model, self.step)
        self.step += 1
        return loss.detach()

    def loss(self) -> Tensor:
        x0, labels, u, eps = self.draw_batch(self.step)
        if self.config.few_step:
            return self.few_step_loss((x0, labels, eps))
        alpha, sigma = self.schedule.rows(u)
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=self.autocast):
            output = self.network(alpha * x0 + sigma * eps, u * NUM_TIMESTEPS, labels)  # [B, C, H, W]
        return training_loss(self.prediction, self.schedule, output, x0, eps, u)

    def few_step_loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        size, generator = self.config.batch_size, torch.Generator()
        draws = draw(Size((size, *batch[0].shape[1:])), generator.manual_seed(mix(self.config.seed, self.step, 2)))
        with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=self.autocast):
            return self.network(batch, Draws(*(value[self.world.share(size)] for value in draws)))

    def draw_batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x0 [B, C, H, W], labels [B], u [B], eps [B, C, H, W] of this process.

        Drawn for the whole batch and then sliced, so that any number of processes trains on the same numbers.
        """
        size = self.config.batch_size
        batch = self.data.train[batch_indices(self.config.seed, step, size, len(self.data.train))]
        generator = torch.Generator().manual_seed(mix(self.config.seed, step))
        u = sample_noise_times(size, generator)
        u = u[torch.randperm(size, generator=generator)]  # else process 0 would get the cleanest images
        eps = torch.randn(batch.images.shape, generator=generator)
        dropped = torch.rand(size, generator=generator) < self.config.label_dropout
        labels = torch.where(dropped, self.null_label, batch.labels)
        part = self.world.share(size)
        images = moved(batch.images, self.config.shift, self.config.flip, mix(self.config.seed, step, 3))
        whole = (to_float(images), labels, u, eps)
        x0, labels, u, eps = (tensor[part].to(self.world.device) for tensor in whole)
        return x0, labels, u, eps

    def learning_rate(self, step: int) -> float:
        config = self.config
        if step < config.warmup:
            return config.lr * (step + 1) / config.warmup
        start = max(config.warmup, config.steps - config.decay * config.steps)
        progress = max(0, step - start) / max(1, config.steps - start)
        return config.lr * (FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * progress)) / 2)

    def save_if_due(self, watch: Watch | None) -> None:
        """Measure, save, then draw samples, so that no saved step lacks its measurement. In process 0 only."""
        config, last = self.config, self.step == self.config.steps
        due = watch and (last or self.step % config.measure_every == 0)
        if watch and due and watch.measure(self.ema.model, self.step):
            self.export(config.out / BEST)
        if last or self.step % config.checkpoint_every == 0:
            self.save()
        if last or self.step % config.sample_every == 0:
            path = config.out / "samples" / f"{self.step:06d}.png"
            save_sample_grid(path, self.ema.model, self.model_config, columns=8)

    def save(self) -> None:
        """Save the state, then the average as a checkpoint, because check_own refuses a checkpoint without a state.

        Raises TrainingDiverged if the weights cannot be exported, before they replace the last good state.
        """
        try:
            half_weights(self.ema.model)
        except CheckpointError as error:
            raise TrainingDiverged(self.step, str(error)) from error
        progress = Progress(self.step, self.seconds, self.resumed.finished_at)
        recipe = self.identity()
        save_state(self.config.out, self.trained, self.ema, self.optimizer, progress=progress, recipe=recipe)
        self.export()
        self.saved_step = self.step

    def export(self, folder: Path | None = None) -> None:
        save_checkpoint(
            folder or self.config.out, self.ema.model, replace(self.model_config, training=self.facts())
        )

    def exported(self) -> bool:
        """Whether config.out has a complete checkpoint of this step."""
        try:
            _, config = load_checkpoint(self.config.out)
        except CheckpointError:
            return False
        return config.training.get("steps") == self.step

    def identity(self) -> dict[str, Any]:
        """Recipe and hashes; a state can be resumed only by a run with the same ones."""
        return self.config.recipe() | self.sources()

    def sources(self) -> dict[str, str]:
        """SHA-256 of the training pictures, and of the initial weights with init_from."""
        initial = {"init_sha256": self.init_sha256} if self.init_sha256 else {}
        return {"train_sha256": self.train_sha256} | initial

    def facts(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "recipe": self.config.recipe(),
            **self.sources(),
            "steps": self.step,
            "images_seen": self.step * self.config.batch_size,
            "train_images": len(self.data.train),
            "seconds": round(self.seconds, 1),
            "machine": describe_machine(),
            "processes": self.world.size,
            "git_commit": git_commit(),
        }
        return facts | ({"finished_at": self.resumed.finished_at} if self.resumed.finished_at else {})
