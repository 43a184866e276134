"""The judge: a small classifier that grades generated images.

It learns from data.judge alone. Generators are not trained on these images, so copies of training images gain
nothing with it. Its accuracy on data.test, images new to both, says how far its grades can be trusted.

Letters: B batch, C x H x W the image, F features, K classes.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from models.files import replace_file
from training.augment import distort
from training.data import Data, Split, fingerprint, to_float

FEATURES = 64
EPOCHS = 80
BATCH = 50
PEAK_LR = 3e-3
WEIGHTS, CARD = "judge.safetensors", "judge.json"


class Judge(nn.Module):
    """Six convolutions, then FEATURES features, in which the Frechet distance is measured, then the classes."""

    def __init__(self, image_channels: int = 3, num_classes: int = 10):
        super().__init__()
        stages = stage(image_channels, 32), stage(32, 64), stage(64, 128)
        self.stages = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.features = nn.Sequential(nn.Linear(128 * 16, FEATURES), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(FEATURES, num_classes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [B, C, H, W] in -1..1. Returns features [B, F] and logits [B, K]."""
        features = self.features(self.stages(x))
        return features, self.head(features)

    @torch.no_grad()
    def grade(self, images: Tensor, batch_size: int = 250) -> tuple[Tensor, Tensor]:
        """images: [N, C, H, W] uint8. Returns features [N, F] and predicted labels [N], both on the CPU."""
        device = next(self.parameters()).device
        parts = [self(to_float(images[i : i + batch_size]).to(device)) for i in range(0, len(images), batch_size)]
        features, logits = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        return features, logits.argmax(1)

    def accuracy(self, split: Split) -> float:
        return (self.grade(split.images)[1] == split.labels).double().mean().item()


def stage(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two convolutions, the second one to half the resolution."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.Dropout2d(0.1),
    )


def train_judge(split: Split, num_classes: int, *, seed: int, epochs: int) -> Judge:
    """Train on one split under random distortions; the same seed gives the same judge."""
    from tqdm import tqdm

    with torch.random.fork_rng(devices=[]):  # dropout and initial weights draw from torch's global generator
        torch.manual_seed(seed)
        judge = Judge(split.images.shape[1], num_classes).train()
        optimizer = torch.optim.AdamW(judge.parameters(), PEAK_LR, weight_decay=0.01)
        steps = epochs * math.ceil(len(split) / BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps, pct_start=0.1)
        for _ in tqdm(range(epochs), desc="judge", unit="epoch", mininterval=5):
            for index in torch.randperm(len(split)).split(BATCH):
                _, logits = judge(distort(to_float(split.images[index])))
                loss = nn.functional.cross_entropy(logits, split.labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return judge.eval().requires_grad_(False)


def load_judge(folder: Path, data: Data, *, seed: int = 0) -> tuple[Judge, dict[str, Any]]:
    """The judge of this data and its card: loaded from `folder`, or else trained and saved there.

    The card holds the accuracy on data.test, the seed, and the SHA-256 of the images it learnt from. A judge of
    other data has another SHA-256, and is replaced.
    """
    identity = {"seed": seed, "epochs": EPOCHS, "images": len(data.judge), "data_sha256": fingerprint(data.judge)}
    card = read_card(folder)
    if card and identity.items() <= card.items():
        judge = Judge(data.judge.images.shape[1], len(data.class_names))
        judge.load_state_dict(load_file(folder / WEIGHTS))
        return judge.eval().requires_grad_(False), card
    judge = train_judge(data.judge, len(data.class_names), seed=seed, epochs=EPOCHS)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / WEIGHTS, save(judge.state_dict()))
    card = identity | {"accuracy": judge.accuracy(data.test), "sha256": _sha256(folder / WEIGHTS)}
    replace_file(folder / CARD, (json.dumps(card, indent=2) + "\n").encode())
    return judge, card


def load_judges(folder: Path, data: Data, count: int) -> list[tuple[Judge, dict[str, Any]]]:
    """`count` judges with seeds 0, 1, ... and their cards, each in a sub-folder named by data and seed."""
    known = fingerprint(data.judge)[:8]
    return [load_judge(folder / f"{known}-{seed}", data, seed=seed) for seed in range(count)]


def read_card(folder: Path) -> dict[str, Any] | None:
    """The card, or None if card or weights are missing or damaged; both are a cache and can be made again."""
    try:
        card = json.loads((folder / CARD).read_text())
        return card if card["sha256"] == _sha256(folder / WEIGHTS) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
