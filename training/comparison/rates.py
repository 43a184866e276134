"""The learning rate and the guidance of each network, by the rule of docs/comparison/digits.toml on seed 0."""

from dataclasses import dataclass

from training.comparison.selection import PAIR, TITLES, Lines, accuracy, loss, of, ratio
from training.comparison.words import number, percent

Table = tuple[list[str], list[list[str]]]  # head and rows


@dataclass(frozen=True)
class Chosen:
    """The chosen lr and guidance. scales: lines of the last point at this rate, one for each guidance scale."""

    lr: float
    guidance: float
    scales: Lines


def choose(lines: Lines) -> dict[str, Chosen]:
    """Lowest held-out loss after the last image, then the lowest Frechet ratio at this rate. By network."""
    found = {}
    for network in PAIR:
        last = ends(lines, network)
        if with_loss := [line for line in last if "loss" in line]:
            lr = min(with_loss, key=loss)["recipe"]["lr"]
            scales = [line for line in last if line["recipe"]["lr"] == lr]
            found[network] = Chosen(lr, min(scales, key=ratio)["guidance"], scales)
    return found


def ends(lines: Lines, network: str) -> Lines:
    """The last points of all rates."""
    mine = of(lines, "D1-rates", keep=lambda x: "judges" in x)
    last = max((line["images_seen"] for line in mine), default=0)
    return [line for line in mine if line["network"] == network and line["images_seen"] == last]


def table(lines: Lines, chosen: dict[str, Chosen]) -> Table:
    """Every rate and scale that was tried; the choice is marked."""
    head, rows = ["network", "learning rate", "loss", "guidance", "Frechet ratio", "accuracy", "chosen"], []
    for network, choice in chosen.items():
        tried = ends(lines, network)
        losses = {line["recipe"]["lr"]: loss(line) for line in tried if "loss" in line}
        for line in sorted(tried, key=lambda x: (x["recipe"]["lr"], x["guidance"])):
            lr, scale = line["recipe"]["lr"], line["guidance"]
            mark = ("rate and guidance" if scale == choice.guidance else "rate") if lr == choice.lr else ""
            shown = f"{losses[lr]:.4f}" if lr in losses else ""
            rows.append(
                [
                    TITLES[network],
                    f"{lr:g}",
                    shown,
                    f"{scale:g}",
                    number(ratio(line)),
                    percent(accuracy(line)),
                    mark,
                ]
            )
    return head, rows


def disagreements(lines: Lines, chosen: dict[str, Chosen]) -> list[str]:
    """Where the runs of D1 were declared with another rate or guidance than the rule chooses."""
    found = []
    for network, choice in chosen.items():
        pairs = {(x["recipe"]["lr"], x["guidance"]) for x in of(lines, "D1", network, lambda x: "loss" in x)}
        for lr, scale in sorted(pairs - {(choice.lr, choice.guidance)}):
            found.append(
                f"The {TITLES[network]} of D1 has rate {lr:g} and guidance {scale:g}, but the rule chooses "
                f"{choice.lr:g} and {choice.guidance:g}."
            )
    return found
