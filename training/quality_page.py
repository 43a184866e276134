"""The page of `run.py evaluate`: a verdict in words, then all figures, then pictures."""

import base64
from collections.abc import Callable
from html import escape
from typing import Any

# Limits of a good model.
BELOW_REAL = 0.05  # accuracy on real pictures minus accuracy on samples, at most
FRECHET_RATIO = 2.5  # at most
COPIES = 0.05  # share of samples, at most
# Accuracy that a classifier needs on real pictures; below it, its grades of samples decide nothing.
CLASSIFIER = 0.8
# Matched pictures that precision and recall need: of 12 to 20, grey samples got a precision of 100 %. Three classes
# of 150 pictures give 45.
NEIGHBOURS = 40
OTHER_DATA = {  # by same_data; {} is the model
    False: "{} was trained on other pictures than these",
    None: "it is not known which pictures {} was trained on",
}
Facts = dict[str, Any]  # of one checkpoint, as training/quality.py makes them

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #59636e; --line: #d1d9e0; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --faint: #9198a1; --line: #3d444d; --paper: #0d1117; }
}
body { font: 17px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 52rem; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 0.88em; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: 0.35em 0.9em 0.35em 0; text-align: left;
  vertical-align: top; }
td small { color: var(--faint); display: block; }
.wide { overflow-x: auto; }
img { max-width: 100%; height: auto; background: #fff; }
figcaption, footer { color: var(--faint); font-size: 0.88em; }
figure { margin: 1.5rem 0; }
"""


def verdict(facts: Facts) -> tuple[str, list[str]]:
    """The verdict (good, not good or unclear) and its reasons. An interval that contains its limit is unclear."""
    figures = facts["figures"]
    missed, unsure = [], []
    if weak := not figures["accuracy"]["real"] >= CLASSIFIER:
        unsure.append("the classifier recognises too few real pictures itself")
    if facts["same_data"] is not True:
        unsure.append(OTHER_DATA[facts["same_data"]].format("it"))
    bars = (
        ("below_real", BELOW_REAL, "it often draws another class than it was asked for"),
        ("ratio", FRECHET_RATIO, "its pictures as a whole differ from real ones"),
        ("copies", COPIES, "it repeats pictures that it was trained on"),
    )
    for name, most, sentence in bars[2:] if weak else bars:  # copies are counted without the classifier
        if not figures[name]["low"] <= most:  # a figure that is no number passes nothing
            missed.append(sentence)
        elif not figures[name]["high"] <= most:
            unsure.append(f"there are too few pictures to rule out that {sentence}")
    if missed:
        return "not good", missed
    return ("unclear", unsure) if unsure else ("good", [])


def answer(name: str, facts: Facts) -> str:
    """The verdict as a sentence."""
    word, why = verdict(facts)
    start = f"It is unclear whether {name} is good" if word == "unclear" else f"{name} is {word}"
    return f"{start}: {'; '.join(why)}." if why else f"{start}."


def page(figures: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """figures: the JSON; pictures: PNG files, `samples` and `pairs NAME`."""
    checkpoints = figures["checkpoints"]
    names = ", ".join(map(escape, checkpoints))
    caption = "the samples nearest to a training picture, each above that picture."
    pairs = "".join(figure(pictures[f"pairs {name}"], f"{name}: {caption}") for name in checkpoints)
    parts = [
        f"<h1>How good {'is' if len(checkpoints) == 1 else 'are'} {names}?</h1>",
        *(f"<p>{words(name, facts)}</p>" for name, facts in checkpoints.items()),
        figure(pictures["samples"], "Samples, a row for each class."),
        "<h2>Figures</h2>",
        table(checkpoints, QUALITY),
        "<h2>Class by class</h2><p>Share of samples that are recognised as the class asked for.</p>",
        *(class_table(name, facts) for name, facts in checkpoints.items()),
        "<h2>Denoising loss by noise</h2><p>From little noise (left) to nothing but noise (right). The training"
        " pictures stand below: the larger the difference, the more was learnt by heart.</p>",
        *(loss_table(name, facts) for name, facts in checkpoints.items()),
        "<h2>Nearest training pictures</h2>",
        pairs,
        "<h2>Size, speed, training</h2>",
        table(checkpoints, COST),
        f"<h2>How it was measured</h2>{notes(figures)}",
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{names}</title>'
    top = f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>'
    return "\n".join([top, "<body>", *parts, "</body></html>\n"])


def figure(png: bytes, caption: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def words(name: str, facts: Facts) -> str:
    """The paragraph about one checkpoint."""
    figures = facts["figures"]
    accuracy, ratio, copies = (figures[key] for key in ("accuracy", "ratio", "copies"))
    held_out, train = (facts["loss"][part]["mean"]["value"] for part in ("held_out", "train"))
    sentences = [
        f"<strong>{escape(answer(name, facts))}</strong>",
        f"Of {facts['samples']:,} samples, {percent(accuracy)} are recognised as the class asked for, and of real "
        f"pictures that are new to the classifier {accuracy['real']:.1%}.",
        f"As a whole they lie {span(ratio, '.2f')} times as far from real pictures as other real pictures do: "
        f"1 is perfect, and up to {FRECHET_RATIO:g} is called good.",
        f"{percent(copies)} are copies of a training picture.",
        f"Held-out pictures are denoised with a loss {more_or_less(held_out / train - 1)} that of training ones.",
    ]
    if facts["judge_saw_training"]:
        sentences.append(
            "Too few pictures are held out to train the classifier, so it learnt from the training pictures. It "
            f"recognises {facts['accuracy_train']:.1%} of those, and favours samples that are copies of them."
        )
    if facts["same_data"] is not True:
        told = OTHER_DATA[facts["same_data"]].format("the model")
        sentences.append(
            f"<strong>{told[0].upper()}{told[1:]}</strong>, so copies cannot be told, and what is held out here "
            "may have been trained on."
        )
    return " ".join(sentences)


def more_or_less(share: float) -> str:
    return f"{abs(share):.0%} {'above' if share >= 0 else 'below'}"


def percent(figure: dict[str, float]) -> str:
    return f"{figure['value']:.1%} ({100 * figure['low']:.1f} to {figure['high']:.1%})"


def span(figure: dict[str, float], form: str) -> str:
    return f"{figure['value']:{form}} ({figure['low']:{form}} to {figure['high']:{form}})"


def interval(name: str, write: Callable[[dict[str, float]], str]) -> Callable[[Facts], str]:
    """A cell with a figure and its interval, and below it the figure of real pictures."""

    def cell(facts: Facts) -> str:
        found = facts["figures"][name]
        real = facts["figures"].get(f"{name}_real")
        return f"{write(found)}<small>real pictures: {write(real) if real else 1}</small>"

    return cell


def by_neighbours(name: str) -> Callable[[Facts], str]:
    """A cell of precision or recall; their balls of 3 neighbours cover everything if there are few pictures."""
    cell = interval(name, percent)
    few = f"too few pictures<small>{{}}, and {NEIGHBOURS} are needed</small>"
    return lambda facts: cell(facts) if facts["matched"] >= NEIGHBOURS else few.format(facts["matched"])


def small(found: dict[str, float]) -> str:
    return span(found, ".3f")


def nearest(facts: Facts) -> str:
    found = facts["neighbours"]
    mine, real = (f"{found[f'{kind}_mean']:.2f}" for kind in ("generated", "held_out"))
    return f"{mine}<small>real pictures: {real}</small>"


def loss(part: str) -> Callable[[Facts], str]:
    return lambda facts: small(facts["loss"][part]["mean"])


def sampling(facts: Facts) -> str:
    how = facts["sampling"]
    return f"{how['sampler']}, {how['steps']} steps, guidance {how['guidance']['scale']:g}"


def measured_with(facts: Facts) -> str:
    source = " ".join(filter(None, (facts["data"], facts["data_path"])))
    return f"{escape(source)}, {facts['held_out']:,} held-out pictures"


def trained(facts: Facts) -> str:
    known = facts["training"]
    if "images_seen" not in known:
        return "not recorded"
    seconds, machine = known.get("seconds", 0), escape(known.get("machine", "machine not recorded"))
    time = f"{seconds:.0f} seconds" if seconds < 60 else f"{seconds / 60:.0f} minutes"
    return f"{known['images_seen']:,} pictures seen, {time}<small>{machine}</small>"


QUALITY: dict[str, Callable[[Facts], str]] = {
    "recognised as its class": interval("accuracy", percent),
    "Frechet distance, over that of real pictures": interval("ratio", lambda found: span(found, ".2f")),
    "KID": interval("kid", small),
    "precision: samples that look real": by_neighbours("precision"),
    "recall: real pictures that samples look like": by_neighbours("recall"),
    "copies of training pictures": interval("copies", percent),
    "distance to the nearest training picture": nearest,
    "loss on held-out pictures": loss("held_out"),
    "loss on training pictures": loss("train"),
    "sampled by": sampling,
    "measured with": measured_with,
}
COST: dict[str, Callable[[Facts], str]] = {
    "parameters": lambda facts: f"{facts['parameters']:,}",
    "GFLOP a row": lambda facts: f"{facts['flop_per_row'] / 1e9:.2f}",
    "one forward, 1 row": lambda facts: f"{facts['step_ms']['1']:.1f} ms",
    "one forward, 8 rows": lambda facts: f"{facts['step_ms']['8']:.1f} ms",
    "training": trained,
    "pictures trained on, held out": lambda facts: f"{facts['train_images']:,}, {facts['held_out']:,}",
}


def table(checkpoints: dict[str, Facts], rows: dict[str, Callable[[Facts], str]]) -> str:
    lines = [[title, *(cell(facts) for facts in checkpoints.values())] for title, cell in rows.items()]
    return html_table(["", *map(escape, checkpoints)], lines)


def html_table(head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def class_table(name: str, facts: Facts) -> str:
    shares = facts["accuracy_by_class"]
    return html_table(["", *map(escape, shares)], [[escape(name), *(f"{share:.0%}" for share in shares.values())]])


def loss_table(name: str, facts: Facts) -> str:
    found = facts["loss"]
    titles = {"held_out": f"{escape(name)}, held out", "train": "training pictures"}
    rows = [[title, *(span(level, ".3f") for level in found[part]["levels"])] for part, title in titles.items()]
    return html_table(["noise", *(f"{u:.0%}" for u in found["u"])], rows)


def notes(figures: dict[str, Any]) -> str:
    facts = next(iter(figures["checkpoints"].values()))
    matched, images = facts["matched"], facts["loss"]["images"]
    hashes = ", ".join(f"{escape(n)} {f['sha256'][:12]}" for n, f in figures["checkpoints"].items())
    return (
        "<p>The numbers in brackets are an interval of 95 %. Figures of single classes and of "
        "nearest training pictures have none, nor have times and the difference of the two losses. An interval "
        "covers the samples drawn, the pictures held out and "
        f"the {len(facts['judges'])} classifiers, which differ by their seeds: a jackknife over 10 groups of "
        "pictures and Student's t, and for a share at least Wilson's interval. It does not cover a second "
        "training. A loss has a t interval over 10 groups of pictures.</p>"
        f"<p>Distances compare like with like: {matched} samples with {matched} held-out pictures, and those with "
        f"{matched} others, classes balanced, 20 draws. Features are those of the classifiers, so compare them "
        "within one set of pictures only. A sample is a copy if its nearest training picture is less than a third "
        f"as far as the second nearest. Losses are of {images} pictures each.</p>"
        f"<p>Command: <code>{escape(figures['command'])}</code></p>"
        f"<footer>Weights (SHA-256): {hashes}. Code: {escape(figures['commit'])}. Times: "
        f"{escape(figures['machine'])}, float32, longer beside other work.</footer>"
    )
