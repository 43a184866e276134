"""A campaign: trains and measures the runs of a list one after another, and appends each result as a line.

A run is trained to its first point, measured there, then continued to the next one. This gives the same bits as
uninterrupted training, because the random numbers of a step depend on the seed and the step alone. If the process
ends, the same command resumes: training continues from its last state, and no line is measured twice. Other tasks,
such as timings and probes, are one line each.
"""

import importlib.metadata
import json
import logging
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.checkpoint import CheckpointError, ModelConfig, load_checkpoint
from models.files import replace_file
from models.sampling import Guidance
from training.comparison.campaign_list import Point, Run
from training.comparison.gallery import draw_gallery, packed
from training.comparison.probe import probe
from training.comparison.results import append_result, held, read_results
from training.comparison.timing import settings, time_network
from training.config import LATER, TrainConfig
from training.data import Data, fingerprint
from training.info import config_info
from training.judge import Judge, load_judges
from training.machine import describe_machine, git_commit
from training.measure import measure_loss, measure_samples
from training.quality import check_held_out
from training.report import Sampling
from training.state import MAKES_PICTURES, differences
from training.stop import Signals, Stopped
from training.train import TrainingDiverged, load_training_data, train

logger = logging.getLogger(__name__)

JUDGES = 3  # classifiers that differ by their seed
PASSES = 3  # FLOPs of a training image, in forwards: the backward counts as two
SEGMENT = {"steps", "autocast"}  # ignored in comparing recipes: steps differs by point, autocast by machine
PACKAGES = ("torch", "numpy", "mlxtend")


class Campaign:
    """Runs a campaign. results: the file of lines; work: folder of checkpoints, states, judges and locks."""

    def __init__(self, results: Path, work: Path, threads: int | None = None):
        self.results, self.work, self.threads = results, work, threads
        self.commit = git_commit()  # now: files may change while runs go on
        if threads:
            torch.set_num_threads(threads)

    def work_off(self, runs: list[Run]) -> str:
        """Perform runs in order, skipping those of other processes, until none is left; returns status."""
        while any(self.take(run) for run in runs):
            pass
        return self.status(runs)

    def take(self, run: Run) -> bool:
        """Perform a run; False if it is done, waits for another, or another process works with its checkpoint."""
        with held(self.work / "locks" / (run.of or run).name, wait=False) as mine:
            if not mine or self.is_done(run) or self.waits(run):
                return False
            logger.info("%s begins or goes on", run.name)
            if run.task == "train":
                self.perform(run)
            else:
                self.perform_task(run)
            return True

    def perform_task(self, run: Run) -> None:
        """Perform a timing, probe or sample task. Raises ValueError: other processes disturbed a timing."""
        started = time.monotonic()
        if run.of:
            if not self.has_weights(run.of):
                logger.info("%s is trained again: %s does not have its weights", run.of.name, self.work)
                self.train_to(run.of.points[-1], run.of)
            model, config = load_checkpoint(self.work / run.of.name)
            result = {"weights_sha256": config.sha256} | self.look_into(run, run.of, model, config)
        else:
            result = time_network(run.config)
        self.append(run, result | {"measure_seconds": round(time.monotonic() - started, 1)})

    def look_into(self, run: Run, of: Run, model: nn.Module, config: ModelConfig) -> dict[str, Any]:
        """Figures of a probe, or of samples by number of evaluations; of: the finished training."""
        data, how = pictures_of(of), of.measure
        if run.task == "probe":
            figures, arrays = probe(model, config, data)
            self.save(run, packed(arrays))
            return {"probe": figures}
        judges, found = self.judges(data), {}
        for count in run.evaluations:
            sampling = Sampling(how.sampler, count, Guidance(how.guidance))
            found[str(count)] = measure_samples(model, config, data, judges, how.samples[-1], sampling)
        return {"guidance": how.guidance, "by_evaluations": found}

    def waits(self, run: Run) -> str:
        """The reason why a task must wait for a training, or ""."""
        if run.of is None:
            return ""
        if not self.is_done(run.of):
            return f"{run.of.name} is not finished"
        return f"{run.of.name} has diverged" if "diverged" in self.lines(run.of)[-1] else ""

    def has_weights(self, run: Run) -> bool:
        try:
            _, config = load_checkpoint(self.work / run.name)
        except CheckpointError:
            return False
        return config.training.get("images_seen") == run.points[-1].images_seen

    def perform(self, run: Run) -> None:
        """Train and measure a run. Raises what train raises, but records TrainingDiverged as a result."""
        folder, data = self.work / run.name, pictures_of(run)
        for point in self.points_left(run):
            try:
                self.train_to(point, run)
            except TrainingDiverged as error:
                failed = {"images_seen": point.images_seen, "guidance": point.guidance, "diverged": str(error)}
                return self.append(run, failed | {"recipe": run.config.recipe()})
            self.append(run, self.measure(folder, data, run, point))
        if run.measure.gallery:
            self.save(run, draw_gallery(*load_checkpoint(folder), data))
        return None

    def train_to(self, point: Point, run: Run) -> None:
        """Train, from where the run was stopped, and raise what train raises."""
        steps, signals = point.images_seen // run.config.batch_size, Signals()
        train(replace(run.config, steps=steps, out=self.work / run.name, threads=self.threads), signals)
        if signals.received:  # during the last step, so that train did not raise Stopped
            raise Stopped(signals.received, f"stopped after step {steps} of {run.name}, the same command goes on")

    def measure(self, folder: Path, data: Data, run: Run, point: Point) -> dict[str, Any]:
        """Measure the checkpoint, which holds the average of the weights; returns the fields of a line."""
        judges, started = self.judges(data), time.monotonic()
        model, config = load_checkpoint(folder)
        sampling = Sampling(run.measure.sampler, run.measure.evaluations, Guidance(point.guidance))
        figures = measure_samples(model, config, data, judges, point.samples, sampling)
        if point.with_loss:
            figures["loss"] = measure_loss(model, config, data, run.measure.loss_images)
        info, facts = config_info(config), config.training
        return {
            **{name: facts[name] for name in ("images_seen", "recipe", "train_sha256", "train_images")},
            "budget": run.points[-1].images_seen,
            "guidance": point.guidance,
            "held_out": "judge" if run.measure.swap_held_out else "test",
            "parameters": info["parameters"],
            "flop_per_row": info["flops"],
            "train_flop": PASSES * info["flops"] * point.images_seen,
            "train_seconds": facts["seconds"],
            "measure_seconds": round(time.monotonic() - started, 1),
            **figures,
        }

    def judges(self, data: Data) -> list[Judge]:
        """The judges, trained by the first process that needs them; [] for data with rules."""
        if data.rules:
            return []
        folder = self.work / "judges"
        with held(folder / ".lock"):
            return [judge for judge, _ in load_judges(folder, data, JUDGES)]

    def save(self, run: Run, content: bytes) -> None:
        self.gallery(run).parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.gallery(run), content)

    def gallery(self, run: Run) -> Path:
        return self.results.parent / "data" / f"{run.name}.npz"

    def append(self, run: Run, result: dict[str, Any]) -> None:
        versions = {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES}
        place = {"commit": self.commit, "machine": describe_machine(), "versions": versions}
        place |= {name: result[name] for name in place.keys() & result.keys()}  # of the process that measured
        append_result(self.results, {"group": run.group, "run": run.name, "network": run.network} | result | place)
        what = "{images_seen} images, guidance {guidance:g}" if run.task == "train" else run.task
        logger.info("%s: line of %s", run.name, what.format(**result))

    def lines(self, run: Run) -> list[dict[str, Any]]:
        """The results of a run. Raises ValueError: they have another recipe, so list or pictures have changed."""
        lines = [line for line in read_results(self.results) if line["run"] == run.name]
        for line in lines:
            if found := changed(run, line):
                raise ValueError(
                    f"{self.results} has run {run.name} with another recipe: {found}. Rename its group"
                )
        return lines

    def points_left(self, run: Run) -> list[Point]:
        """The points without a line; [] for a run that diverged."""
        lines = self.lines(run)
        measured = {(line["images_seen"], line["guidance"]) for line in lines}
        diverged = any("diverged" in line for line in lines)
        return [point for point in run.points if point.key not in measured and not diverged]

    def is_done(self, run: Run) -> bool:
        if run.task != "train":
            return bool(self.lines(run))
        diverged = any("diverged" in line for line in self.lines(run))
        kept = diverged or not run.measure.gallery or self.gallery(run).exists()
        return not self.points_left(run) and kept

    def status(self, runs: list[Run]) -> str:
        """Text: finished runs by group, the next run, and the hours left for one process, from lines so far."""
        left = [run for run in runs if not self.is_done(run)]
        rows = []
        for group in dict.fromkeys(run.group for run in runs):
            of_group = [run.group == group for run in runs]
            undone = [run for run in left if run.group == group]
            reasons = [reason for run in undone if (reason := self.waits(run))]
            waiting = f", {len(reasons)} wait: {reasons[0]}" if reasons else ""
            rows.append(f"{group}: {sum(of_group) - len(undone)} of {sum(of_group)} runs done{waiting}")
        seconds = {run.name: self.seconds_left(run) for run in left}
        hours = sum(value or 0 for value in seconds.values()) / 3600
        unknown = sum(value is None for value in seconds.values())
        rows.append(f"next: {next((run.name for run in left if not self.waits(run)), 'nothing')}")
        rows.append(f"left: {hours:.1f} hours" + (f", and {unknown} runs of unknown speed" if unknown else ""))
        return "\n".join(rows)

    def seconds_left(self, run: Run) -> float | None:
        """Estimated seconds; None if no line has this network, for other tasks than train in this group."""
        if run.task != "train":
            mine = {"group": run.group, "network": run.network}
            spent = [line["measure_seconds"] for line in read_results(self.results) if mine.items() <= line.items()]
            return sum(spent) / len(spent) if spent else None  # without a training that is made again
        lines = [line for line in read_results(self.results) if line["network"] == run.network and "loss" in line]
        if not lines:
            return None
        image = sum(line["train_seconds"] for line in lines) / sum(line["images_seen"] for line in lines)
        point = sum(line["measure_seconds"] for line in lines) / len(lines)
        points, seen = self.points_left(run), [line["images_seen"] for line in self.lines(run)]
        return image * (run.points[-1].images_seen - max(seen, default=0)) + point * len(points)


def changed(run: Run, line: dict[str, Any]) -> str:
    """How the list's recipe differs from that of a line; "" if it does not."""
    if run.task == "probe":
        return ""
    if run.task == "sample":
        measured = [int(count) for count in line["by_evaluations"]]
        return differences({"evaluations": measured}, {"evaluations": list(run.evaluations)})
    if run.task == "time":
        return differences(line["settings"], settings(run.config))
    known, now = (
        {name: value for name, value in recipe.items() if name not in SEGMENT}
        for recipe in (LATER | line["recipe"], run.config.recipe())
    )
    if run.config.data_path and "train_sha256" in line:  # elsewhere the pictures follow from the recipe
        known["train_sha256"], now["train_sha256"] = line["train_sha256"], pictures_sha256(run.config)
    return differences(known, now)


def pictures_sha256(config: TrainConfig) -> str:
    """Of the training pictures, read once by this process."""
    key = json.dumps([str(config.data_path), {name: getattr(config, name) for name in sorted(MAKES_PICTURES)}])
    if key not in _SHA256:
        _SHA256[key] = fingerprint(load_training_data(config).train)
    return _SHA256[key]


_SHA256: dict[str, str] = {}


def pictures_of(run: Run) -> Data:
    """The data of a run, with judge and test as it declares. Raises DataError, also if too few are held out."""
    data = load_training_data(run.config)
    check_held_out(data, "declare a larger hold_out")
    if not len(data.judge):  # of a folder, whose held-out pictures all measure
        data = replace(data, judge=data.train)
    return replace(data, judge=data.test, test=data.judge) if run.measure.swap_held_out else data
