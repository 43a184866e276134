"""Samples of all networks from the same noise: how much they agree, as numbers and as sheets of pictures (D4)."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from training.comparison.agreement import Gallery, agreement, pair_correlations, standard_rows
from training.comparison.drawing import COLOURS, SOFT, source
from training.comparison.rates import Table
from training.comparison.selection import DIT, PAIR, UNET, Line, Lines, of, seed_of
from training.comparison.verdicts import interval
from training.comparison.words import percent, span
from training.report import tiled

Galleries = dict[tuple[str, int], Gallery]  # by network and seed
Pairs = dict[str, list[tuple[Gallery, Gallery]]]  # by what differs between the two
Agreements = dict[str, list[dict[str, float]]]  # for each of these pairs
GAP, HEADER = 6, 5  # pixels between blocks, and of the bar that tells the network
SHOWN = 12  # pictures of a row of the best, the worst and the oddest
COLUMNS = 8  # pictures of each class in a grid
APART = {"D6": 1}  # pixels between pictures that have no dark edge
Rows = list[list[np.ndarray]]  # of pictures [H, W, 3]
Block = tuple[str, Rows]  # a network and its pictures

HALVES = (
    "D4: correlation of the pixels that two networks trained on disjoint halves draw from one noise, "
    "UNet's less DiT's"
)
WHOLE = "D4: the same between UNet and DiT, and between two seeds of each, trained on all pictures"


@dataclass(frozen=True)
class Sheet:
    """A picture of samples with its words. file: its name where the Markdown page shows it, too."""

    png: bytes
    alt: str
    caption: str
    file: str = ""


def load(folder: Path, lines: Lines, group: str, keep: Callable[[Line], bool] = lambda _: True) -> Galleries:
    """The galleries in `folder` of a group's runs, by network and seed."""
    found = {}
    for line in of(lines, group, keep=lambda x: x["network"] in PAIR and "recipe" in x and keep(x)):
        path = folder / f"{line['run']}.npz"
        if path.exists() and (line["network"], seed_of(line)) not in found:
            with np.load(path, allow_pickle=False) as arrays:
                found[line["network"], seed_of(line)] = {name: arrays[name] for name in arrays.files}
    return dict(sorted(found.items()))


def halves(folder: Path, lines: Lines) -> dict[str, list[tuple[Gallery, Gallery]]]:
    """Pairs of galleries of one seed, trained on disjoint halves of the data, by network."""
    first, second = (
        load(folder, lines, "D4", lambda x, part=part: x["recipe"]["subset"] == part) for part in ("1/2", "2/2")
    )
    return {n: [(a, second[key]) for key, a in first.items() if key[0] == n and key in second] for n in PAIR}


def kinds(
    found: Galleries, parts: dict[str, list[tuple[Gallery, Gallery]]]
) -> dict[str, list[tuple[Gallery, Gallery]]]:
    """Pairs of galleries by what differs between them."""
    mine = {name: [gallery for (network, _), gallery in found.items() if network == name] for name in PAIR}
    across = [
        (gallery, found[UNET, seed])
        for (name, seed), gallery in found.items()
        if name == DIT and (UNET, seed) in found
    ]
    return {
        "DiT and UNet of one seed": across,
        "two seeds of the DiT": list(combinations(mine[DIT], 2)),
        "two seeds of the UNet": list(combinations(mine[UNET], 2)),
        "two DiTs, trained on disjoint halves": parts[DIT],
        "two UNets, trained on disjoint halves": parts[UNET],
    }


def agreements(pairs: Pairs) -> Agreements:
    return {kind: [agreement(a, b) for a, b in found] for kind, found in pairs.items()}


def agreement_table(found: Agreements) -> Table:
    head = [
        "pair",
        "pairs",
        "one noise",
        "other noise, same class",
        "difference",
        "partner found",
        "found by chance",
    ]
    rows = []
    for kind, figures in found.items():
        if figures:
            mean = {name: float(np.mean([figure[name] for figure in figures])) for name in figures[0]}
            shown = [f"{mean[name]:.3f}" for name in ("same_noise", "same_class", "beyond_class")]
            rows.append([kind, f"{len(figures)}", *shown, percent(mean["found"]), percent(mean["found_by_chance"])])
    return head, rows


def agreement_texts(found: Agreements) -> dict[str, str]:
    """Texts for `beside` of the questions. Pairs of seeds are not independent, so they get a range, no interval."""
    across, dits, unets, half_dits, half_unets = ([x["same_noise"] for x in figures] for figures in found.values())
    texts = {}
    if half_dits and half_unets and len(half_dits) == len(half_unets):
        less = interval([u - d for u, d in zip(half_unets, half_dits, strict=True)])
        means = f"UNet {np.mean(half_unets):.3f}, DiT {np.mean(half_dits):.3f}"
        texts[HALVES] = f"{span(less, signed)}; {means}"
    if across:
        texts[WHOLE] = f"UNet and DiT {span(interval(across), lambda x: f'{x:.3f}')}"
        for name, values in (("DiT", dits), ("UNet", unets)):
            if values:
                ends = f" (range of {len(values)} pairs: {min(values):.3f} to {max(values):.3f})"
                texts[WHOLE] += f"; two seeds of the {name} {np.mean(values):.3f}{ends * (len(values) > 1)}"
    return texts


def signed(value: float) -> str:
    return f"{value:+.3f}"


def sheets(found: Galleries, lines: Lines, group: str, file: str, compared: bool = True) -> list[Sheet]:
    """Of a group; nothing without samples of both networks from one seed. compared: also the pairs and failures."""
    both = [seed for name, seed in found if name == DIT and (UNET, seed) in found]
    if not both:
        return []
    used = [x for x in of(lines, group) if "judges" in x and (x["network"], seed_of(x)) in found]
    apart = APART.get(group, 0)
    guided = any(x["guidance"] != 1 for x in used)
    of_one = [class_grid(found, both[0], file, apart, guided), *trajectories(found, both[0], apart)]
    of_all = [one_noise(found, apart)]
    if compared:
        of_all += [pairs_sheet(found, both, worst=True), pairs_sheet(found, both, worst=False), oddest(found, both)]
    first = source([x for x in used if seed_of(x) == both[0]])
    told = [(x, first) for x in of_one] + [(x, source(used)) for x in of_all]
    return [Sheet(x.png, x.alt, f"{x.caption} {runs}", x.file) for x, runs in told]


def class_grid(found: Galleries, seed: int, file: str, apart: int, guided: bool) -> Sheet:
    """guided: whether the figures of these runs take other samples than these, which have no guidance."""
    blocks = [(name, grid_rows(found[name, seed])) for name in PAIR]
    caption = (
        f"Seed {seed}, a row for each class: left the DiT, right the UNet, each pair of places from one noise. "
        "Drawn with 20 evaluations and no guidance, which shows what a network has learnt."
    )
    if guided:
        caption += " The figures of the verdicts take samples with the guidance chosen for each network."
    alt = "A row of samples for each class, by the DiT and by the UNet."
    return Sheet(draw(blocks, apart=apart), alt, caption, file)


def real_tiles() -> Sheet:
    """What D6 trains on; drawn by code from a seed, with the same bits each time."""
    import torch

    from training.tiles import CLASSES, draw_tiles

    labels = torch.arange(len(CLASSES)).repeat_interleave(2 * COLUMNS)
    pictures = [as_picture(image) for image in draw_tiles(labels, seed=0).numpy()]
    rows = [pictures[i : i + 2 * COLUMNS] for i in range(0, len(pictures), 2 * COLUMNS)]
    caption = (
        "Real tiles, a row for each class. The patches in two opposite corners have one colour, and so have the "
        "two side by side. Drawn by `training/tiles.py`, seed 0. Made by `python run.py compare`."
    )
    return Sheet(draw([("", rows)], apart=APART["D6"]), "Real tiles, a row for each class.", caption, "tiles.png")


def grid_rows(gallery: Gallery) -> Rows:
    return [
        [picture(gallery, i) for i in np.flatnonzero(gallery["labels"] == label)[:COLUMNS]]
        for label in np.unique(gallery["labels"])
    ]


def one_noise(found: Galleries, apart: int) -> Sheet:
    """A row a class, a column a seed."""
    blocks = []
    for name in PAIR:
        mine = [gallery for (network, _), gallery in found.items() if network == name]
        firsts = [np.flatnonzero(mine[0]["labels"] == label)[0] for label in np.unique(mine[0]["labels"])]
        blocks.append((name, [[picture(gallery, i) for gallery in mine] for i in firsts]))
    caption = "Every row is one noise, drawn by all seeds: left the DiT's, right the UNet's."
    alt = "One noise a row, drawn by each training of both networks."
    return Sheet(draw(blocks, apart=apart), alt, caption)


def trajectories(found: Galleries, seed: int, apart: int) -> list[Sheet]:
    """On the way from one noise; nothing of runs that kept none."""
    if not all("trajectories" in found[name, seed] for name in PAIR):
        return []
    steps = found[DIT, seed]["trajectory_steps"] + 1
    shared = min(len(found[name, seed]["trajectories"]) for name in PAIR)
    rows = {name: found[name, seed]["trajectories"][:shared] for name in PAIR}
    blocks = [(name, [list(map(as_picture, row)) for row in shown]) for name, shown in rows.items()]
    caption = (
        f"Seed {seed}: what the networks take an image for after steps {', '.join(map(str, steps))} of 20, "
        "every row from one noise: left the DiT, right the UNet."
    )
    alt = "Images on their way from noise, by the DiT and by the UNet."
    return [Sheet(draw(blocks, apart=apart), alt, caption)]


def pairs_sheet(found: Galleries, seeds: list[int], worst: bool) -> Sheet:
    """Above the DiT's, below the UNet's picture of one noise, over all seeds."""
    scores = [
        (score, seed, i)
        for seed in seeds
        for i, score in enumerate(pair_correlations(found[DIT, seed], found[UNET, seed]))
    ]
    chosen = sorted(scores, reverse=not worst)[:SHOWN]
    blocks = [(name, [[picture(found[name, seed], i) for _, seed, i in chosen]]) for name in PAIR]
    ends = f"{chosen[0][0]:.2f} to {chosen[-1][0]:.2f}"
    which = "least" if worst else "most"
    caption = (
        f"The {SHOWN} pairs of one noise that agree {which}: above the DiT, below the UNet; correlations {ends}."
    )
    return Sheet(draw(blocks, stacked=True), f"Pairs of samples that agree {which}.", caption)


def oddest(found: Galleries, seeds: list[int]) -> Sheet:
    """Failures, found without a judge: samples that correlate least with their most similar sample of the class.

    Only seeds that both networks have, and one sample for each noise, because several seeds fail at the same noise.
    """
    both = {(name, seed): found[name, seed] for name in PAIR for seed in seeds}
    blocks, alike = [], likeness(both)
    for name in PAIR:
        by_noise = np.array([alike[name, seed] for seed in seeds])  # [seeds, N]
        chosen = [(seeds[by_noise[:, i].argmin()], i) for i in by_noise.min(0).argsort(kind="stable")[:SHOWN]]
        blocks.append((name, [[picture(found[name, seed], i) for seed, i in chosen]]))
    caption = (
        f"Failures: the {SHOWN} samples of each network that are least like any sample of their class from other "
        "noise, by the correlation of pixels; of each noise the worst of all seeds. No guidance. Above the DiT's, "
        "below the UNet's."
    )
    return Sheet(draw(blocks, stacked=True), "The oddest samples of both networks.", caption)


def likeness(found: Galleries) -> dict[tuple[str, int], np.ndarray]:
    """Highest correlation of each sample with any of its class from other noise, by any network: [N] each."""
    labels = next(iter(found.values()))["labels"]
    best = {key: np.zeros(len(labels)) for key in found}
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        rows = np.concatenate([standard_rows(gallery["images"][places]) for gallery in found.values()])
        table, place = rows @ rows.T, np.tile(places, len(found))
        highest = np.where(place[:, None] == place, -1, table).max(1)
        for key, scores in zip(found, highest.reshape(len(found), -1), strict=True):
            best[key][places] = scores
    return best


def picture(gallery: Gallery, index: int) -> np.ndarray:
    """[H, W, 3] uint8."""
    return as_picture(gallery["images"][index])


def as_picture(image: np.ndarray) -> np.ndarray:
    """[C, H, W] uint8, C 1 or 3, to [H, W, 3]."""
    return image.transpose(1, 2, 0).repeat(3 // len(image), axis=2)


def draw(blocks: list[Block], stacked: bool = False, apart: int = 0) -> bytes:
    """PNG; the blocks side by side or stacked, a bar in the network's colour at the top or the left of each.

    apart: white pixels right of and below each picture.
    """
    parts: list[np.ndarray] = []
    for name, rows in blocks:
        pixels = tiled(np.array(rows), apart)
        parts += [bar(pixels, name, stacked), gap(pixels, stacked)]
    content = io.BytesIO()
    whole = np.concatenate(parts[:-1], 0 if stacked else 1)
    Image.fromarray(whole.repeat(2, 0).repeat(2, 1)).save(content, format="PNG", optimize=True)
    return content.getvalue()


def gap(pixels: np.ndarray, below: bool) -> np.ndarray:
    """White, of the size of a block and its bar in the other direction."""
    height, width, _ = pixels.shape
    return np.full((GAP, width + HEADER, 3) if below else (height + HEADER, GAP, 3), 255, np.uint8)


def bar(pixels: np.ndarray, name: str, left: bool) -> np.ndarray:
    colour = np.array([int(COLOURS.get(name, SOFT)[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    shape = (len(pixels), HEADER, 3) if left else (HEADER, pixels.shape[1], 3)
    return np.concatenate([np.broadcast_to(colour, shape), pixels], 1 if left else 0)
