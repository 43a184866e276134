"""Made-up lines of a whole campaign, in the format of docs/comparison/runs.jsonl."""

import json
from pathlib import Path
from typing import Any

import numpy as np

Line = dict[str, Any]
POINTS = (6016, 12000, 24000, 48000, 96000)
LEVELS = [(level + 0.5) / 8 for level in range(8)]
SIZES = {"dit": (3_099_792, 238_565_376), "unet": (2_794_000, 265_000_000)}
SPEED = {"dit": 3.0, "unet": 1.0}  # how many images the DiT needs for one of the UNet's
PLACE = {
    "commit": "c0ffee" * 6 + "c0ff",
    "machine": "Made-up processor, 2 cores, 1 torch threads, torch 2.13.0+cpu",
    "versions": {"python": "3.11.7", "torch": "2.13.0+cpu"},
}


def judge(accuracy: float = 0.9, ratio: float = 2.0, **others: float) -> Line:
    floor = 9.0
    frechet = {"generated": 1.0, "sample_size": 500, "matched_generated": ratio * floor, "matched_real": floor}
    figures = {"kid": 0.05, "precision": 0.88, "recall": 0.7, "kid_real": -0.02, "precision_real": 0.9}
    return (
        {"accuracy": accuracy, "accuracy_real": 0.98, "frechet": frechet | {"ratio": ratio}, "matched": 500}
        | figures
        | {"recall_real": 0.9}
        | others
    )


def losses(mean: float) -> Line:
    x0 = [mean * (0.05 + u**2) for u in LEVELS]
    return {"x0": x0, "training": x0, "mean": mean}


def line(group: str, network: str, seed: int, images: int = 96000, loss: float | None = 0.1, **fields: Any) -> Line:
    """Of a training; fields replace what stands here."""
    parameters, flop = SIZES[network]
    recipe = {"model": network, "data": "digits", "subset": "", "lr": 1e-3, "batch_size": 32, "seed": seed}
    found = {"group": group, "run": f"{group}-{network}-seed{seed}", "network": network, "images_seen": images}
    found |= {"recipe": recipe, "train_images": 3000, "guidance": 1.5, "parameters": parameters}
    found |= {"flop_per_row": flop, "train_flop": 3 * flop * images, "samples": 500, "copies": 0.0}
    found |= {"copies_held_out": 0.0, "judges": [judge()], **PLACE}
    if loss is not None:
        found["loss"] = {"images": 250, "u": LEVELS, "test": losses(loss), "train": losses(0.95 * loss)}
    return found | fields


def timing(network: str, seed: int, image: float = 0.005, power: float = 1.0, attention: float = 2.0) -> Line:
    """Steps grow with the pixels to the `power`, the attention alone with the tokens to the power `attention`."""
    sides, rows = (16, 32, 64, 128), (1, 8)
    step = {str(px): {str(n): 1e-3 * (px / 32) ** (2 * power) * n**0.8 for n in rows} for px in sides}
    found: Line = {"step_seconds": step, "train_image_seconds": image, "load": 0.01}
    found["step_flop"] = {str(px): SIZES[network][1] * (px / 32) ** 2 for px in sides}
    if network == "dit":
        tokens = [(px // 4) ** 2 for px in sides]
        found["attention_seconds"] = {str(n): 1e-5 * (n / 64) ** attention for n in tokens}
        found["attention_flop"] = {str(n): 4.0 * n * n * 288 for n in tokens}
    return {"group": "D8", "run": f"D8-{network}-seed{seed}", "network": network, "timing": found, **PLACE}


def rules(**shares: float) -> Line:
    return {"samples": 1000, "far": 0.5, "near": 0.6, "texture": 0.7, "coherent": 0.4, "far_clear": 0.9} | shares


def learnt(network: str, images: int, seed: int) -> float:
    """A share that grows with the images, a little different for each seed."""
    done = images * SPEED["dit"] / SPEED[network] + 900 * seed
    return done / (done + 40000)


def quality(network: str, images: int, seed: int) -> Line:
    """Loss and judges of a run that learns."""
    share = learnt(network, images, seed)
    judges = [
        judge(0.1 + 0.9 * share + 0.005 * j, 1.3 + 60 * (1 - share) ** 3, recall=0.9 * share) for j in range(3)
    ]
    return {"loss": 0.1 + 0.12 * (1 - share) ** 2, "judges": judges}


def training_lines() -> list[Line]:
    found = []
    for network in SIZES:
        found += [line("D1", network, s, n, **quality(network, n, s)) for s in range(1, 6) for n in POINTS]
        for lr in (1e-3, 3e-4, 3e-3):
            name: Line = {"run": f"D1-rates-{network}-lr{lr}-seed0"}
            recipe = line("D1-rates", network, 0)["recipe"] | {"lr": lr}
            for n in POINTS:
                found.append(line("D1-rates", network, 0, n, **quality(network, n, 0), recipe=recipe, **name))
                found[-1]["loss"]["test"]["mean"] += abs(lr - 1e-3)
            for scale in (1.0, 2.0, 3.0):
                point: Line = {"judges": [judge(0.8 + scale / 20, 1.2 + abs(scale - 1.5))], "guidance": scale}
                found.append(line("D1-rates", network, 0, loss=None, recipe=recipe, **point, **name))
    return found


def other_lines() -> list[Line]:
    """Of D3, D4, D6 and D8."""
    found = [timing(n, s, 0.003 + 0.001 * (n == "unet") + 1e-5 * s) for n in SIZES for s in range(1, 6)]
    for network in SIZES:
        for seed in range(1, 6):
            for images in (100, 300, 1000) if seed <= 3 else ():
                for n in POINTS:
                    bad = 0.1 + (8 if network == "dit" else 6) / images + 0.001 * seed
                    name: Line = {"run": f"D3-{network}-seed{seed}-subset{images}", "train_images": images}
                    copies = max(0.0, 0.6 - images / 500) * n / 96000
                    found.append(line("D3", network, seed, n, bad, copies=copies, **name))
            for n in POINTS:
                share = learnt(network, n, seed)
                shares = rules(far=0.13 + 0.8 * share, near=share, texture=share**0.5, coherent=share**2)
                real: Line = {"rules": shares, "rules_real": rules(far=1.0, near=1.0, texture=1.0, coherent=1.0)}
                found.append(line("D6", network, seed, n, judges=[], guidance=1.0, **real))
    return found


def write_docs(docs: Path, lines: list[Line], galleries: bool = True) -> Path:
    """A docs folder with these lines, the committed questions, and a small gallery of every run of D1."""
    folder = docs / "comparison"
    (folder / "data").mkdir(parents=True)
    questions = Path(__file__).resolve().parents[2] / "docs/comparison/questions.toml"
    (folder / "questions.toml").write_text(questions.read_text())
    (folder / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in sorted({line["run"] for line in lines if line["group"] in ("D1", "D4", "D6")} if galleries else ()):
        write_gallery(folder / "data" / f"{name}.npz", name)
    return docs


def write_gallery(path: Path, name: str, per_class: int = 4) -> None:
    """Bars at a place that the class and the noise tell, with a little of the run's own."""
    labels = np.arange(10).repeat(per_class).astype(np.uint8)
    images = np.zeros((len(labels), 1, 32, 32), np.uint8)
    own = np.random.default_rng(sum(name.encode()))
    for i, label in enumerate(labels):
        column = 6 + i % per_class + int(own.integers(0, 2))
        images[i, 0, 4 + 2 * int(label) : 8 + 2 * int(label), column : column + 12] = 200 + own.integers(0, 55)
    ways = {"trajectories": images[:5, None].repeat(6, 1), "trajectory_steps": np.array([0, 2, 5, 9, 14, 19])}
    np.savez_compressed(path, images=images, labels=labels, seeds=np.arange(len(labels)), **ways)
