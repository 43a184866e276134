"""The page of `run.py evaluate`: verdict, words and figures of facts that are made up."""

import math
import re
from typing import Any

import pytest

from training.quality_page import COST, QUALITY, answer, page, verdict, words


def figure(value: float, margin: float, real: float = 1.0) -> dict[str, float]:
    return {"value": value, "low": value - margin, "high": value + margin, "real": real}


@pytest.fixture
def facts() -> dict[str, Any]:
    """Of a model that is good beyond doubt."""
    figures = {"accuracy": figure(0.97, 0.01, 0.98), "below_real": figure(0.01, 0.02), "ratio": figure(1.5, 0.3)}
    figures["copies"] = {"value": 0.0, "low": 0.0, "high": 0.012, "real": 0.0}
    loss = {part: {"mean": figure(value, 0.01)} for part, value in (("train", 0.1), ("held_out", 0.104))}
    judge = {"judge_saw_training": False, "accuracy_train": 0.991}
    return {"figures": figures, "samples": 300, "loss": loss, "same_data": True} | judge


WEAK, CLASSIFIER = {"accuracy": figure(0.5, 0.1, 0.6)}, "the classifier recognises too few"
FEW = "there are too few pictures to rule out that "
CLASSES, SET, COPIES = "it often draws another class", "its pictures as a whole differ", "it repeats pictures"


@pytest.mark.parametrize(
    ("changes", "word", "reasons"),
    [
        ({}, "good", []),
        ({"below_real": figure(0.05, 0.02)}, "unclear", [FEW + CLASSES]),
        (WEAK, "unclear", [CLASSIFIER]),
        (WEAK | {"below_real": figure(0.2, 0.02), "ratio": figure(5.0, 0.1)}, "unclear", [CLASSIFIER]),
        (WEAK | {"ratio": figure(math.nan, 0)}, "unclear", [CLASSIFIER]),
        (WEAK | {"copies": figure(0.05, 0.02)}, "unclear", [CLASSIFIER, FEW + COPIES]),
        (WEAK | {"copies": figure(0.5, 0.1)}, "not good", [COPIES]),
        ({"below_real": figure(0.2, 0.02)}, "not good", [CLASSES]),
        ({"ratio": figure(2.4, 0.5)}, "unclear", [FEW + SET]),
        ({"ratio": figure(3.1, 0.5), "copies": figure(0.5, 0.1)}, "not good", [SET, COPIES]),
        ({"ratio": figure(2.4, 0.5), "copies": figure(0.5, 0.1)}, "not good", [COPIES]),
        ({"ratio": figure(math.nan, 0)}, "not good", [SET]),
    ],
)
def test_the_interval_decides(changes: dict, word: str, reasons: list[str], facts: dict[str, Any]) -> None:
    facts |= {"figures": facts["figures"] | changes}
    found, why = verdict(facts)
    assert found == word
    start = "It is unclear whether a is good" if word == "unclear" else f"a is {word}"
    assert answer("a", facts) == f"{start}{': ' if why else ''}{'; '.join(why)}."
    assert [reason[: len(start)] for reason, start in zip(why, reasons, strict=True)] == reasons


@pytest.mark.parametrize(
    ("same_data", "reason", "sentence"),
    [
        (
            False,
            "it was trained on other pictures than these",
            "The model was trained on other pictures than these",
        ),
        (
            None,
            "it is not known which pictures it was trained on",
            "It is not known which pictures the model was trained on",
        ),
    ],
)
def test_nothing_is_good_on_pictures_that_may_have_been_trained_on(
    same_data: bool | None, reason: str, sentence: str, facts: dict[str, Any]
) -> None:
    facts["same_data"] = same_data
    assert verdict(facts) == ("unclear", [reason])
    assert f"<strong>{sentence}</strong>, so copies cannot be told" in words("a", facts)


def test_the_paragraph_is_in_words(facts: dict[str, Any]) -> None:
    text = words("my <model>", facts)
    assert text.startswith("<strong>my &lt;model&gt; is good.</strong> Of 300 samples, 97.0% (96.0 to 98.0%) are")
    assert "0.0% (0.0 to 1.2%) are copies of a training picture." in text
    assert "a loss 4% above that of training ones" in text
    text = words("a", facts | {"judge_saw_training": True})
    assert "it learnt from the training pictures. It recognises 99.1% of those, and favours" in text
    unsure = facts | {"figures": facts["figures"] | {"ratio": figure(2.4, 0.5)}}
    assert "<strong>It is unclear whether a is good: there are too few pictures to rule out" in words("a", unsure)
    bad = facts | {"figures": facts["figures"] | {"copies": figure(0.5, 0.1)}}
    assert words("a", bad).startswith("<strong>a is not good: it repeats pictures that it was trained on.</strong>")


@pytest.fixture
def everything(facts: dict[str, Any]) -> dict[str, Any]:
    """All that a page shows."""
    more = {"kid": figure(0, 0.1), "precision": figure(0.9, 0.1), "recall": figure(0.9, 0.1)}
    level = [figure(0.1, 0.01)] * 8
    return facts | {
        "figures": facts["figures"] | more,
        "loss": {"images": 9, "u": [0.5] * 8} | {k: mean | {"levels": level} for k, mean in facts["loss"].items()},
        "accuracy_by_class": {"<b>": 0.5},
        "neighbours": {"generated_mean": 10.0, "held_out_mean": 9.9},
        "sampling": {"sampler": "ddim", "steps": 3, "guidance": {"scale": 1.5}},
        "parameters": 1000, "flop_per_row": 1e9, "step_ms": {"1": 1.0, "8": 2.0}, "training": {},
        "train_images": 5, "held_out": 4, "matched": 3, "judges": [1, 2, 3], "sha256": "0" * 64,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["precision: samples that look real", "recall: real pictures that samples look like"]
)
def test_few_pictures_have_no_neighbours(name: str, everything: dict[str, Any]) -> None:
    assert QUALITY[name](everything | {"matched": 39}).startswith("too few pictures<small>39, and 40 are needed")
    assert QUALITY[name](everything | {"matched": 40}).startswith("90.0% (80.0 to 100.0%)")


def test_a_short_training_is_told_in_seconds() -> None:
    texts = [COST["training"]({"training": {"images_seen": 900, "seconds": seconds}}) for seconds in (12.4, 90.0)]
    assert [text.partition("<")[0] for text in texts] == [
        f"900 pictures seen, {t}" for t in ("12 seconds", "2 minutes")
    ]


def test_the_page_escapes_names(everything: dict[str, Any]) -> None:
    everything |= {"data": "folder", "data_path": "my <s> & pets"}
    command = "run.py evaluate '<u>'"
    figures = {"checkpoints": {"<i>": everything}, "machine": "two cores", "commit": "abc", "command": command}
    text = page(figures, {"samples": b"", "pairs <i>": b""})
    assert "<i>" not in text
    assert not re.search("<[bus]>", text)
    assert "<td>measured with</td><td>folder my &lt;s&gt; &amp; pets, 4 held-out pictures</td>" in text
    assert "<p>Command: <code>run.py evaluate &#x27;&lt;u&gt;&#x27;</code></p>" in text
    assert "of single classes and of nearest training pictures have none, nor have times" in text
    assert "two cores" in text
    assert "training" in text
    assert "not recorded" in text
