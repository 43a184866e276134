"""The list of a campaign: which networks are trained, how often, and when they are measured.

A list is a TOML file; its groups are worked off in order:

    [defaults]                # fields of TrainConfig (options of `run.py train`) and of Measure, for all runs
    batch_size = 32
    measure_at = [3200, 9600]
    samples = [500, 1000]

    [network.dit]             # one table a network; its name stands in the names of the runs
    model = "dit"
    arguments = { hidden_dim = 288, depth = 2 }

    [[group]]
    name = "D1"
    seed = [1, 2, 3]          # a field of TrainConfig with a list of values: one run for each
    dit.lr = 1e-3             # for this network alone; networks = ["dit"] would leave out the others

    [[group]]
    name = "D8"
    task = "time"             # measure seconds instead of training; a seed is a process of its own
    threads = 1
    seed = [1, 2, 3]

    [[group]]
    name = "D5"
    task = "probe"            # probe the finished runs of a group above
    of = "D1"

    [[group]]
    name = "D1-evaluations"
    task = "sample"           # grade samples with these numbers of evaluations; all else as at their last point
    of = "D1"
    evaluations = [5, 10, 20]

Later tables win: defaults, network, group, the network's own part of the group. Two groups may have one name, as
long as their runs do not. The number of steps follows from measure_at.
"""

import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

from models.checkpoint import ARCHITECTURES
from models.samplers import build_table
from models.schedule import NoiseSchedule, Prediction
from training.config import DATA, TrainConfig

TASKS = ("train", "time", "probe", "sample")
KINDS: dict[Any, Any] = {Path | None: str, dict[str, Any]: dict}  # as TOML writes them
KINDS |= dict.fromkeys((float, float | None), (int, float))
KINDS |= dict.fromkeys((tuple[int, ...], tuple[float, ...]), list)


class ListError(ValueError):
    """A list that cannot be read; the message names the field."""


@dataclass(frozen=True)
class Measure:
    """When and how the networks of a group are measured."""

    measure_at: tuple[int, ...]  # images seen; multiples of the batch size; the run ends at the last one
    samples: tuple[int, ...]  # drawn at each of these points
    guidance: float = 1.5
    guidance_grid: tuple[float, ...] = ()  # further scales, at the end only
    sampler: str = "dpmpp_2m"
    evaluations: int = 10  # of the network, for a sample
    loss_images: int = 500  # held-out images of the denoising loss, and as many of the training images
    swap_held_out: bool = False  # swaps judge and test, so that hyperparameters are chosen on other pictures
    gallery: bool = True  # keeps samples of the finished network for the report

    def __post_init__(self) -> None:
        at = self.measure_at
        if not at or at[0] < 1 or list(at) != sorted(set(at)):
            raise ValueError(f"measure_at must rise from at least 1, got {list(at)}")
        if len(self.samples) != len(at) or min(self.samples) < 20:
            raise ValueError(f"samples must be {len(at)} numbers from 20, one a point, got {list(self.samples)}")
        if not all(map(math.isfinite, (self.guidance, *self.guidance_grid))):
            raise ValueError(
                f"guidance and guidance_grid must be finite, got {self.guidance}, {self.guidance_grid}"
            )
        if self.loss_images < 1:
            raise ValueError(f"loss_images must be at least 1, got {self.loss_images}")


@dataclass(frozen=True)
class Point:
    """One measurement, one line of results."""

    images_seen: int
    samples: int
    guidance: float
    with_loss: bool  # false for further guidance scales, which do not change the loss

    @property
    def key(self) -> tuple[int, float]:
        return self.images_seen, self.guidance


@dataclass(frozen=True)
class Run:
    """One training with its measurements, or another task."""

    name: str
    group: str
    network: str
    config: TrainConfig  # with the steps of the whole run
    measure: Measure
    task: str = "train"
    of: "Run | None" = None  # the training that a probe or sample task examines
    evaluations: tuple[int, ...] = ()  # of a sample task: one set of samples for each number

    @property
    def points(self) -> list[Point]:
        how = self.measure
        points = [
            Point(images, samples, how.guidance, True)
            for images, samples in zip(how.measure_at, how.samples, strict=True)
        ]
        others = [scale for scale in how.guidance_grid if scale != how.guidance]
        return points + [Point(points[-1].images_seen, points[-1].samples, scale, False) for scale in others]


TRAIN = {f.name: f.type for f in fields(TrainConfig) if f.name not in ("out", "steps")}
MEASURE = {f.name: f.type for f in fields(Measure)}
TYPES = TRAIN | MEASURE
FIELDS = TYPES.keys() - {"threads"}  # threads is an option of the command line, except for timings


def read_list(path: Path) -> list[Run]:
    """All runs, in the order of the list.

    Raises:
        ListError: a field that does not exist or has an impossible value.
        OSError: no such file.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
        check_names(table, {"defaults", "network", "group"}, "the list")
        networks, defaults = table.get("network", {}), table.get("defaults", {})
        check_names(defaults, FIELDS, "defaults")
        for name, network in networks.items():
            check_names(network, FIELDS, f"network {name}")
        runs: list[Run] = []
        for group in table.get("group", []):
            if group.get("task") in ("probe", "sample"):
                runs.extend(afterwards(group, list(runs)))
            else:
                runs.extend(runs_of_group(group, networks, defaults))
        if not runs:
            raise ValueError("group: the list has none")
        names = [run.name for run in runs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"name: more than one run is called {', '.join(twice)}")
    except ValueError as error:  # of TOML, too
        raise ListError(f"{path}: {error}") from error
    return runs


def choose(runs: list[Run], names: list[str]) -> list[Run]:
    """The runs of the named groups and the named runs; all for no names. Raises ListError: an unknown name."""
    if unknown := set(names) - {name for run in runs for name in (run.group, run.name)}:
        raise ListError(f"the list has no group or run {', '.join(sorted(unknown))}")
    return [run for run in runs if not names or {run.group, run.name} & set(names)]


def check_names(table: Any, known: set[str], where: str) -> None:
    if not isinstance(table, dict):
        raise ValueError(f"{where} must be a table")
    if unknown := sorted(table.keys() - known):
        raise ValueError(f"{where} has no field {', '.join(unknown)}")


def runs_of_group(group: dict[str, Any], networks: dict[str, Any], defaults: dict[str, Any]) -> Iterator[Run]:
    """The runs of a group. Networks alternate, so that an interrupted campaign has runs of all of them."""
    name, task = name_of_group(group), group.get("task", "train")
    if task not in TASKS:
        raise ValueError(f"task of group {name} must be one of {', '.join(TASKS)}, got {task!r}")
    own = FIELDS | {"threads"} if task == "time" else FIELDS
    check_names(group, {"name", "task", "networks", *own, *networks}, f"group {name}")
    chosen = group.get("networks", list(networks))
    if not isinstance(chosen, list) or not chosen or not networks.keys() >= set(chosen):
        raise ValueError(f"networks of group {name} must be a list from {', '.join(networks)}, got {chosen!r}")
    for network in chosen:
        check_names(group.get(network, {}), FIELDS, f"{network} of group {name}")
    shared = {key: value for key, value in group.items() if key in own}
    merged = {key: defaults | networks[key] | shared | group.get(key, {}) for key in chosen}
    rows = zip_longest(*(runs_of_network(name, key, values) for key, values in merged.items()))
    yield from (replace(run, task=task) for row in rows for run in row if run)


def name_of_group(group: dict[str, Any]) -> str:
    name = group.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name of a group must be letters, digits, dots and dashes, got {name!r}")
    return name


def afterwards(group: dict[str, Any], runs: list[Run]) -> Iterator[Run]:
    """The runs of a probe or sample task. runs: those of the groups above."""
    name, task, of = name_of_group(group), group["task"], group.get("of")
    samples = task == "sample"
    check_names(group, {"name", "task", "of"} | ({"evaluations"} if samples else set()), f"group {name}")
    counts = group.get("evaluations", [])
    if samples and not (isinstance(counts, list) and counts and all(type(count) is int for count in counts)):
        raise ValueError(f"evaluations of group {name} must be a list of whole numbers, got {counts!r}")
    found = [run for run in runs if run.task == "train" and run.group == of]
    if not found:
        raise ValueError(f"of in group {name} must name a group of trainings above it, got {of!r}")
    for run, count in product(found, counts):
        check_sampling(run.config, run.measure.sampler, count)
    changes = {"group": name, "task": task, "evaluations": tuple(counts)}
    yield from (replace(run, name=f"{name}-{run.name}", of=run, **changes) for run in found)


def runs_of_network(group: str, network: str, values: dict[str, Any]) -> Iterator[Run]:
    """A run for each combination of the listed values."""
    axes = {key: value for key, value in values.items() if key in TRAIN and isinstance(value, list)}
    for choice in product(*axes.values()):
        chosen = dict(zip(axes, choice, strict=True))
        parts = [f"{key}{re.sub('[^a-zA-Z0-9.-]', 'of', str(value))}" for key, value in chosen.items()]
        name = "-".join([group, network, *parts])
        try:
            yield build_run(name, group, network, values | chosen)
        except ValueError as error:
            raise ValueError(f"run {name}: {error}") from error


def build_run(name: str, group: str, network: str, values: dict[str, Any]) -> Run:
    for needed in ("model", "measure_at", "samples"):
        if needed not in values:
            raise ValueError(f"{needed} is missing")
    given = {key: typed(key, value) for key, value in values.items()}
    measure = Measure(**{key: value for key, value in given.items() if key in MEASURE})
    config = TrainConfig(**{key: value for key, value in given.items() if key in TRAIN})
    check_together(config, measure)
    config = replace(config, steps=measure.measure_at[-1] // config.batch_size)
    return Run(name, group, network, config, measure)


def check_together(config: TrainConfig, measure: Measure) -> None:
    if config.model not in ARCHITECTURES:
        raise ValueError(f"model must be one of {', '.join(ARCHITECTURES)}, got {config.model!r}")
    if config.data not in DATA:
        raise ValueError(f"data must be one of {', '.join(DATA)}, got {config.data!r}")
    if config.data == "folder" and not (config.data_path and config.hold_out and not measure.swap_held_out):
        raise ValueError("data folder needs data_path, a hold_out above 0, and swap_held_out = false")
    if any(images % config.batch_size for images in measure.measure_at):
        raise ValueError(f"measure_at must be multiples of batch_size {config.batch_size}")
    if len(measure.measure_at) > 1 and config.decay:
        raise ValueError("decay must be 0 with several measure_at: a rate that falls knows where the run ends")
    check_sampling(config, measure.sampler, measure.evaluations)


def check_sampling(config: TrainConfig, sampler: str, evaluations: int) -> None:
    build_table(NoiseSchedule(config.schedule), Prediction(config.prediction), sampler, evaluations)


def typed(name: str, value: Any) -> Any:
    """Convert a TOML value to the field's type: lists to tuples, strings to paths. Raises ValueError."""
    kind = TYPES[name]
    wanted = KINDS.get(kind, kind)
    if not isinstance(value, wanted) or (wanted is list and not all(isinstance(v, (int, float)) for v in value)):
        raise ValueError(f"{name} cannot be {value!r}")
    if wanted is list:
        return tuple(value)
    return Path(value) if wanted is str and kind is not str else value
