"""Everything a training run depends on. The command line, its help and docs/training.md read the options here."""

import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.checkpoint import ARCHITECTURES, load_config
from models.schedule import ALPHAS, NoiseSchedule, Prediction

DATA = ("digits", "tiles", "cifar10", "folder")
HOLD_OUT = 0.2  # as for digits: 30 of 150 pictures a class, which give the accuracy of three classes to within 5 %
# Fields on which the weights do not depend, or only by init_sha256 and train_sha256:
CIRCUMSTANCES = {"out", "data_path", "init_from", "threads", "checkpoint_every", "sample_every", "measure_every"}
AT_LEAST = {"steps": 1, "batch_size": 1, "warmup": 0, "weight_decay": 0, "seed": 0, "threads": 1}
AT_LEAST |= {"checkpoint_every": 1, "sample_every": 1, "measure_every": 0, "decay": 0, "hold_out": 0, "shift": 0}
AT_MOST = {"decay": 1, "hold_out": 0.9, "shift": 1024, "threads": 1024, "seed": 2**63 - 1}
# Fields that older recipes lack, with the values that those runs had:
LATER: dict[str, Any] = {"decay": 1.0, "subset": "", "few_step": False, "hold_out": 0.0, "shift": 0, "flip": False}


def option(default: Any, text: str, choices: tuple[str, ...] = (), shown: str = "") -> Any:
    """A field with its help; shown: text of the default in the help, if it is not the value itself."""
    metadata = {"help": text, "choices": choices, "shown": shown}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """Defaults are the recipe of the shipped checkpoints; presets below fill in what differs per model."""

    model: str = option("dit", "network: a transformer (dit) or a convolutional UNet (unet)", tuple(ARCHITECTURES))
    data: str = option(
        "digits",
        "what to learn: 3,000 MNIST digits, 3,000 tiles (patterns drawn by rules), the CIFAR-10 archive, or a "
        "folder of your own with a sub-folder of pictures for every class",
        DATA,
    )
    data_path: Path | None = option(
        None, "path of the CIFAR-10 archive or of your folder of pictures", shown="none"
    )
    out: Path = option(Path("runs/dit"), "folder that everything of this run is written to", shown="runs/MODEL")
    subset: str = option(
        "",
        "train on so many pictures, as in 300 (every class alike; a smaller part lies in a larger one), or on one "
        "of several disjoint parts, as in 1/2",
        shown="all",
    )
    hold_out: float | None = option(
        None,
        "share of every class of a folder that is kept for `evaluate` to measure with; 0 trains on all pictures",
        shown="0.2 of a folder; other data have held-out pictures of their own",
    )
    shift: int = option(0, "move every picture by up to so many pixels both ways; its border is repeated")
    flip: bool = option(False, "mirror every second picture left to right, by chance")
    init_from: Path | None = option(
        None,
        "folder of a checkpoint whose weights the run starts from; its arguments, schedule and prediction become "
        "the defaults",
        shown="fresh weights",
    )
    few_step: bool = option(
        False, "tune the weights of --init-from to jump over many steps at once, with guidance as an input"
    )
    arguments: dict[str, Any] = option(
        {},
        'arguments of the network\'s constructor as JSON, for example \'{"hidden_dim": 256, "image_size": 64}\'',
        shown="the preset of the model",
    )
    schedule: str = option("flow", "noise schedule", tuple(ALPHAS))
    prediction: str = option(
        "x0",
        "what the network outputs: noise (eps), velocity (v), image (x0) or noise minus image (flow)",
        tuple(Prediction),
    )
    steps: int = option(1000, "optimizer steps of the whole run", shown="16000 for dit, 5000 for unet")
    batch_size: int = option(32, "pictures in a step, over all processes")
    lr: float = option(1e-3, "peak of the learning rate")
    warmup: int = option(100, "steps in which the learning rate rises; then it falls along a cosine to 2 % of it")
    decay: float = option(
        1.0,
        "share of the steps, at the end, in which the learning rate falls; 0 keeps it, for curves over the steps",
    )
    weight_decay: float = option(0.01, "weight decay of AdamW")
    clip: float = option(1.0, "largest norm of the gradient; a larger one is scaled down to it")
    ema_decay: float = option(0.999, "decay of the average of the weights, which is what the checkpoint holds")
    label_dropout: float = option(
        0.1, "share of pictures that are trained without their class, which guidance needs"
    )
    autocast: bool | None = option(
        None, "multiply matrices in bfloat16", shown="true where the processor has bfloat16"
    )
    seed: int = option(0, "seed of weights, order, noise and dropped classes")
    threads: int | None = option(None, "CPU threads", shown="what torch chooses")
    checkpoint_every: int = option(250, "steps between two saved states; Ctrl-C and SIGTERM save one, too")
    sample_every: int = option(2000, "steps between two sheets of samples")
    measure_every: int = option(
        250, "steps between two measurements of held-out loss and copies, of which the best is kept; 0 is never"
    )

    def recipe(self) -> dict[str, Any]:
        """The fields that the weights depend on: all but CIRCUMSTANCES."""
        return {name: value for name, value in asdict(self).items() if name not in CIRCUMSTANCES}

    def __post_init__(self) -> None:
        NoiseSchedule(self.schedule)
        Prediction(self.prediction)
        self._check_hold_out()
        if self.few_step:
            self._check_few_step()
        check_subset(self.subset)
        for name, least in AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name, most in AT_MOST.items():
            if (value := getattr(self, name)) is not None and value > most:
                raise ValueError(f"{name} must be at most {most}, got {value}")
        for name in ("label_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")

    def _check_hold_out(self) -> None:
        """Set the default of hold_out, HOLD_OUT for a folder and else 0, and refuse it for other data."""
        if self.hold_out is None:
            object.__setattr__(self, "hold_out", HOLD_OUT if self.data == "folder" else 0.0)
        if self.hold_out and self.data != "folder":
            raise ValueError(f"hold_out is for data folder: {self.data} has held-out pictures of its own")

    def _check_few_step(self) -> None:
        if self.init_from is None:
            raise ValueError("few_step tunes trained weights: name their folder by init_from")
        if (self.schedule, self.prediction) != ("flow", "x0"):
            raise ValueError("few_step needs schedule flow and prediction x0")
        if not self.arguments.get("few_step"):
            raise ValueError('few_step needs "few_step": true among the arguments')


def check_subset(text: str) -> None:
    part = re.fullmatch(r"([1-9][0-9]*)(?:/([1-9][0-9]*))?", text)
    if text and (not part or (part[2] and int(part[1]) > int(part[2]))):
        raise ValueError(f"subset must be a number of pictures or a part such as 1/2, got {text!r}")


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    # docs/results.md, "The shipped models", has the figures that they reach.
    "dit":  {"arguments": {"hidden_dim": 384, "depth": 2}, "steps": 16_000, "out": Path("runs/dit")},
    "unet": {"arguments": {"base_channels": 32},           "steps": 5_000,  "out": Path("runs/unet")},
}
# fmt: on


def recipe_of(given: dict[str, Any]) -> TrainConfig:
    """Build a config. Given options win over those of the init_from checkpoint, and these over the model's preset.

    Raises:
        CheckpointError: init_from cannot be read.
        ValueError: an impossible value, or init_from has another architecture than the model.
    """
    inherited = {}
    if "init_from" in given:
        known = load_config(given["init_from"])
        if known.architecture != given["model"]:
            raise ValueError(
                f"init_from: {given['init_from']} is a {known.architecture}, --model says {given['model']}"
            )
        inherited = {name: getattr(known, name) for name in ("arguments", "schedule", "prediction")}
    options = PRESETS[given["model"]] | inherited | given
    if given.get("few_step"):
        options["arguments"] = options["arguments"] | {"few_step": True}
    return TrainConfig(**options)
