"""The comparison as a Markdown page: figures of every checkpoint, and what was expected of the shipped two."""

from collections.abc import Sequence
from typing import Any

PAIR = ("dit", "unet")  # the shipped models, of which claims are checked
TITLES = {"dit": "DiT", "unet": "UNet"}
CLASS_ACCURACY_BAR = 0.985  # at least
FRECHET_RATIO_BAR = 2.5  # at most
CLEAR = 1.1  # figures closer than this ratio are called equal: timings and samples are noisy
Figures = dict[str, dict[str, Any]]  # of each model, by name

INTRODUCTION = """# {titles} compared

Written by `python run.py compare`; the raw figures are in [{json}]({json}). Times were measured on {machine}, in
float32, and hold for that machine.

![samples](samples.png)
"""

NOTES = """
**Class accuracy**: {images} generated images a model, classes balanced, sampled as the service samples by default,
graded by a classifier that was trained on 1,000 digits no generator has seen. The classifier itself recognises
{judge:.1%} of 1,000 real digits that are new to it. The bar is {accuracy_bar:.1f} %.

**Frechet distance**: in the 64 features of that classifier. It grows as samples shrink, so the ratio compares
like with like: {size} generated digits against {size} held-out ones, and {size} held-out digits against {size}
others, each the mean of 20 class-balanced draws. 1 is perfect, the bar is {ratio_bar:g}.

**Nearest training image**: L2 distance in pixels of -1..1, squares averaged over channels. A copy would lie at 0.
"Suspicious" counts images closer to a training image than 99 % of real held-out digits are; 1 % is expected of
a model that does not copy. The closest pairs: {pictures}.

All of this is one run of each model, one seed, and one guidance scale. The order of the two turns with the scale:
without guidance the UNet has the lower Frechet distance, with it the DiT ([experiments.md](experiments.md)). So
these figures do not tell which network is better.
"""


def page(figures: dict[str, Any], json_name: str = "comparison.json") -> str:
    """figures: what compare.py writes as JSON."""
    models: Figures = figures["models"]
    graded = {name: model for name, model in models.items() if model["evaluation"]}
    titles = [title(name) for name in models]
    sections = [
        INTRODUCTION.format(
            titles=", ".join(titles[:-1]) + f" and {titles[-1]}", json=json_name, machine=figures["machine"]
        ),
        "## Measured\n",
        table(("", *titles), measured_rows(models)),
        *not_graded(models),
    ]
    if graded:
        misses = missed(models)
        verdict_line = "the bar is missed: " + "; ".join(misses) if misses else f"{both(graded)} pass"
        sections += [f"\n**Verdict**: {verdict_line}.", notes(graded), "## By class\n", class_table(graded)]
    if all(name in graded for name in PAIR):
        answers = claims(*(graded[name] for name in PAIR))
        sections += [
            "\n## What was expected of the two networks\n",
            table(("claim", "measured", "verdict"), answers),
        ]
    return "\n".join(sections) + "\n"


def title(name: str) -> str:
    return TITLES.get(name, name)


def both(graded: Figures) -> str:
    return "both models" if len(graded) == 2 else f"all {len(graded)} graded models"


def not_graded(models: Figures) -> list[str]:
    """A sentence for every model without an evaluation."""
    return [
        f"\n{title(name)} is not graded: {model['not_graded']}."
        for name, model in models.items()
        if not model["evaluation"]
    ]


def notes(graded: Figures) -> str:
    evaluation = next(iter(graded.values()))["evaluation"]
    return NOTES.format(
        images=evaluation["images"],
        judge=evaluation["judge_accuracy"],
        size=evaluation["frechet"]["sample_size"],
        accuracy_bar=100 * CLASS_ACCURACY_BAR,
        ratio_bar=FRECHET_RATIO_BAR,
        pictures=", ".join(f"[{title(name)}](neighbours-{name}.png)" for name in graded),
    )


def missed(models: Figures) -> list[str]:
    """One phrase for every bar that a graded model misses."""
    phrases = []
    for name, model in models.items():
        if not model["evaluation"]:
            continue
        accuracy, ratio = model["evaluation"]["class_accuracy"], model["evaluation"]["frechet"]["ratio"]
        if not accuracy >= CLASS_ACCURACY_BAR:  # a figure that is no number passes nothing
            bar = f"the bar is {100 * CLASS_ACCURACY_BAR:.1f} %"
            phrases.append(f"{title(name)}: class accuracy {100 * accuracy:.2f} % ({bar})")
        if not ratio <= FRECHET_RATIO_BAR:
            phrases.append(f"{title(name)}: Frechet ratio {ratio:.2f} (the bar is {FRECHET_RATIO_BAR:g})")
    return phrases


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured_rows(models: Figures) -> list[tuple[str, ...]]:
    rows = [
        ("parameters", lambda m: f"{m['parameters']:,}"),
        ("GFLOP a forward row", lambda m: f"{m['gflop_per_row']:.2f}"),
        ("one forward, 1 row", lambda m: f"{m['step_ms']['1']:.1f} ms"),
        ("one forward, 8 rows", lambda m: f"{m['step_ms']['8']:.1f} ms"),
        ("training throughput", throughput),
        ("training images seen", lambda m: fact(m, "images_seen", ",")),
        ("training time", lambda m: f"{m['training'].get('seconds', 0) / 60:.0f} min"),
        ("trained on", lambda m: m["training"].get("machine", "machine not recorded")),
    ]
    graded = [
        ("sampling", sampling),
        ("class accuracy", lambda m: f"{m['evaluation']['class_accuracy']:.1%}"),
        ("Frechet distance, all images", lambda m: f"{m['evaluation']['frechet']['generated']:.2f}"),
        ("Frechet distance, matched", lambda m: f"{m['evaluation']['frechet']['matched_generated']:.2f}"),
        ("the same between real halves", lambda m: f"{m['evaluation']['frechet']['matched_real']:.2f}"),
        ("ratio of the two", lambda m: f"{m['evaluation']['frechet']['ratio']:.2f}"),
        ("nearest training image, mean", lambda m: neighbour(m, "mean")),
        ("nearest training image, 1 % quantile", lambda m: neighbour(m, "first_percentile")),
        ("suspicious", lambda m: f"{m['evaluation']['neighbours']['suspicious']:.1%}"),
    ]
    found = list(models.values())
    lines = [(name, *(cell(model) for model in found)) for name, cell in rows]
    if any(model["evaluation"] for model in found):
        lines += [(name, *(cell(m) if m["evaluation"] else "not graded" for m in found)) for name, cell in graded]
    return lines


def throughput(model: dict[str, Any]) -> str:
    rate = images_per_second(model)
    return f"{rate:.0f} images/s" if rate else "not recorded"


def images_per_second(model: dict[str, Any]) -> float:
    facts = model["training"]
    return facts["images_seen"] / facts["seconds"] if facts.get("seconds") else 0.0


def fact(model: dict[str, Any], name: str, form: str) -> str:
    return format(model["training"][name], form) if name in model["training"] else "not recorded"


def sampling(model: dict[str, Any]) -> str:
    how = model["evaluation"]["sampling"]
    return f"{how['sampler']}, {how['steps']} steps, guidance {how['guidance']['scale']:g}"


def neighbour(model: dict[str, Any], figure: str) -> str:
    distances = model["evaluation"]["neighbours"]
    return f"{distances[f'generated_{figure}']:.2f} (held-out digits {distances[f'held_out_{figure}']:.2f})"


def class_table(graded: Figures) -> str:
    names = list(next(iter(graded.values()))["evaluation"]["accuracy_by_class"])
    rows = [
        (title(model), *(f"{figures['evaluation']['accuracy_by_class'][name]:.0%}" for name in names))
        for model, figures in graded.items()
    ]
    return table(("accuracy", *names), rows)


def claims(dit: dict[str, Any], unet: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Claim, measurement, verdict."""
    ratio = {rows: unet["step_ms"][rows] / dit["step_ms"][rows] for rows in ("1", "8")}
    gain = {name: 8 * m["step_ms"]["1"] / m["step_ms"]["8"] for name, m in (("DiT", dit), ("UNet", unet))}
    distance = [m["evaluation"]["frechet"]["ratio"] for m in (dit, unet)]
    accuracy = [m["evaluation"]["class_accuracy"] for m in (dit, unet)]
    return [
        ("DiT has about 4M parameters", size(dit), "with smaller arguments than the constructor's defaults"),
        ("UNet has about 10M parameters", size(unet), "with smaller arguments than the constructor's defaults"),
        (
            "DiT is faster per step",
            f"a UNet forward takes {ratio['1']:.1f} times as long at 1 row, {ratio['8']:.1f} times at 8 rows",
            verdict(min(ratio.values()), max(ratio.values())),
        ),
        (
            "DiT scales better with batch size",
            f"8 rows in one forward instead of 8 forwards: DiT {gain['DiT']:.1f} times the rows per second, "
            f"UNet {gain['UNet']:.1f} times",
            verdict(gain["DiT"] / gain["UNet"]),
        ),
        (
            "UNet gives better quality at small scale",
            f"Frechet ratio {distance[1]:.2f} against the DiT's {distance[0]:.2f}; class accuracy "
            f"{accuracy[1]:.1%} against {accuracy[0]:.1%}",
            verdict(distance[0] / distance[1]),
        ),
        (
            "UNet needs fewer training images",
            f"the figures above were reached after {fact(unet, 'images_seen', ',')} images by the UNet, "
            f"{fact(dit, 'images_seen', ',')} by the DiT",
            "seen in this run" if fewer_images(dit, unet) and distance[1] <= distance[0] else "not shown",
        ),
    ]


def size(model: dict[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in model["arguments"].items())
    return (
        f"served ({arguments}): {model['parameters'] / 1e6:.1f} M; with the constructor's defaults: "
        f"{model['default_parameters'] / 1e6:.1f} M"
    )


def verdict(*ratios: float) -> str:
    """Whether this run shows a claim of which every ratio should exceed 1."""
    if all(ratio > CLEAR for ratio in ratios):
        return "seen in this run"
    return "not seen in this run" if all(ratio < 1 / CLEAR for ratio in ratios) else "no clear difference"


def fewer_images(dit: dict[str, Any], unet: dict[str, Any]) -> bool:
    return unet["training"].get("images_seen", 0) < dit["training"].get("images_seen", 0)
