"""Everything a training run depends on."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.schedule import NoiseSchedule, Prediction

CIRCUMSTANCES = {"out", "data_path", "threads", "checkpoint_every", "sample_every"}


@dataclass(frozen=True)
class TrainConfig:
    """Defaults are the recipe of the shipped checkpoints; presets below fill in what differs per model."""

    model: str = "dit"  # dit or unet
    data: str = "digits"  # digits, cifar10 or folder
    data_path: Path | None = None  # archive or folder of cifar10 and folder
    out: Path = Path("runs/dit")  # where everything of this run is written
    arguments: dict[str, Any] = field(default_factory=dict)  # of the network's constructor
    schedule: str = "flow"  # noise schedule: flow, cosine or linear
    prediction: str = "x0"  # what the network outputs: x0, v, eps or flow
    steps: int = 1000  # optimizer steps of the whole run
    batch_size: int = 32  # images a step, over all processes
    lr: float = 1e-3  # peak learning rate
    warmup: int = 100  # steps of linear warm-up; a cosine to 2 % follows
    weight_decay: float = 0.01
    clip: float = 1.0  # gradient norm
    ema_decay: float = 0.999  # upper bound; the average is younger in the first steps
    label_dropout: float = 0.1  # share of images trained under the null class
    autocast: bool | None = None  # bfloat16 matrix products; None: where the processor has them
    seed: int = 0
    threads: int | None = None  # CPU threads; None leaves torch's default
    checkpoint_every: int = 250  # steps between resumable states
    sample_every: int = 2000  # steps between sample grids

    def recipe(self) -> dict[str, Any]:
        """What the weights depend on: all but where the run lives and how often it saves."""
        return {name: value for name, value in asdict(self).items() if name not in CIRCUMSTANCES}

    def __post_init__(self) -> None:
        NoiseSchedule(self.schedule)
        Prediction(self.prediction)
        for name in ("steps", "batch_size", "checkpoint_every", "sample_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("label_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        if self.lr <= 0 or self.clip <= 0 or self.warmup < 0:
            raise ValueError("lr and clip must be positive, warmup must not be negative")


# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    # Results stand in docs/comparison.md.
    "dit":  {"arguments": {"hidden_dim": 384, "depth": 2}, "steps": 16_000, "out": Path("runs/dit")},
    "unet": {"arguments": {"base_channels": 32},           "steps": 5_000,  "out": Path("runs/unet")},
}
# fmt: on
