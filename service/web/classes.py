"""Parse the class of an image: a name, an index, or a mixture of up to four classes, as text or as JSON."""

import json
import math
import re
from collections.abc import Sized
from functools import lru_cache
from typing import Any

import msgspec

from models.names import class_key
from service.errors import InvalidRequest, echo
from service.wire.messages import Mixture, ModelCard

MAX_CLASSES, MAX_WEIGHT = 4, 1000
Weights = dict[str, float]
Choice = int | str | Weights
NUMBER = re.compile(r"([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})(e[-+]?[0-9]{1,3})?")
ONE = 'the name of a class, its index as a whole number, or a mixture such as {"3": 0.5, "8": 0.5}'


def check_shape(value: Any, several: bool = True) -> Any:
    """Return the value if it is a Choice, or with `several` a list of them.

    Raises:
        ValueError: it is neither; the message is meant for the client.
    """
    kind = Choice | list[Choice] | None if several else Choice | None
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"must be {ONE}{', or a list of these' if several else ''}") from error


@lru_cache(maxsize=64)
def _labels(names: tuple[str, ...]) -> dict[str, int]:
    """Class indices by normalised name; no two classes of a model share one."""
    return {class_key(name): label for label, name in enumerate(names)}


def find_class(card: ModelCard, value: str | int | None, field: str = "class") -> int:
    """Class index. A number is an index. Text is a name; digits that are no class's name are an index.

    Raises:
        InvalidRequest: there is no such class.
    """
    names = _labels(tuple(card.class_names))
    wanted = f"one of {', '.join(card.class_names[:20])}" + (", ..." if len(names) > 20 else "")
    wanted += f", or an index from 0 to {len(names) - 1}"
    if value is None:
        raise InvalidRequest.field(field, f"required: {wanted}")
    text = class_key(value) if isinstance(value, str) else ""
    if text in names:
        return names[text]
    if text.isascii() and text.isdigit() and len(text) < 10:
        value = int(text)
    if isinstance(value, int) and 0 <= value < len(names):
        return value
    raise InvalidRequest.field(field, f"must be {wanted}, not {echo(value)}")


def find_mixture(card: ModelCard, value: Any, field: str = "class") -> Mixture:
    """The mixture of a Choice, or of text that contains one; one class has weight 1.

    Raises:
        InvalidRequest: names the field and what is allowed.
    """
    value = _read(card, value, field)
    if isinstance(value, list):
        raise InvalidRequest.field(field, f"must be {ONE}, and not a list")
    if not isinstance(value, dict):
        return ((find_class(card, value, field), 1.0),)
    _check_count(value, field)  # first: the body has room for thousands of names
    return _weighted([(find_class(card, name, field), weight) for name, weight in value.items()], field)


def find_mixtures(card: ModelCard, value: Any, most: float) -> tuple[list[Mixture], bool]:
    """Mixtures of the field class: one for all images, or one for each; the bool is true for the latter.

    Args:
        most: limit on the images of a request.

    Raises:
        InvalidRequest: names the field and what is allowed.
    """
    value = _read(card, value, "class")
    if not isinstance(value, list):
        return [find_mixture(card, value)], False
    if not 1 <= len(value) <= most:
        raise InvalidRequest.field("class", f"must have from 1 to {most} elements, not {len(value)}")
    return [find_mixture(card, each) for each in value], True


def blend(first: Mixture, last: Mixture, part: float) -> Mixture:
    """Interpolate linearly from `first` (part 0) to `last` (part 1)."""
    if part in (0, 1):
        return last if part else first
    weights = {label: (1 - part) * weight for label, weight in first}
    for label, weight in last:
        weights[label] = weights.get(label, 0.0) + part * weight
    return _checked(weights, "class_to", "together with the first end ")


def mixture_text(card: ModelCard, mixture: Mixture) -> str:
    """The mixture as text that the field class accepts; "" for no class."""
    if len(mixture) == 1:
        return card.class_name(mixture[0][0]) or ""
    names = [(card.class_names[label], weight) for label, weight in mixture]
    text = ",".join(f"{name}:{weight!r}" for name, weight in names)
    if any(re.search("[:,{[]", name) for name, _ in names) or _is_name(card, text):
        return json.dumps(dict(names), ensure_ascii=False)
    return text


def _is_name(card: ModelCard, text: str) -> bool:
    return class_key(text) in _labels(tuple(card.class_names))


def _read(card: ModelCard, value: Any, field: str) -> Any:
    """Parse text that contains a mixture or a list; return class names and all other values unchanged."""
    if not isinstance(value, str) or _is_name(card, value):
        return value
    if value.lstrip()[:1] in ("{", "["):
        try:
            return check_shape(msgspec.json.decode(value))
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise InvalidRequest.field(field, f"must be {ONE}, or a list of these, not {echo(value)}") from error
    return _weights(value, field) if ":" in value else value


def _weights(text: str, field: str) -> Weights:
    """Parse a mixture in text, such as 3:0.5,8:0.5."""
    weights: Weights = {}
    for part in text.split(","):
        name, colon, weight = part.rpartition(":")
        if not colon or not NUMBER.fullmatch(weight.strip()):
            example = "classes with weights between commas, such as 3:0.5,8:0.5"
            raise InvalidRequest.field(field, f"must be a class, or {example}, not {echo(text)}")
        weights[name] = weights.get(name, 0.0) + float(weight)
    return weights


def _weighted(pairs: list[tuple[int, float]], field: str) -> Mixture:
    weights: dict[int, float] = {}
    for label, weight in pairs:
        if not 0 < weight <= MAX_WEIGHT:  # so nan is outside, too
            message = f"a weight must be a number above 0 and at most {MAX_WEIGHT}, not {echo(weight)}"
            raise InvalidRequest.field(field, message)
        weights[label] = weights.get(label, 0.0) + weight
    return _checked(weights, field)


def _check_count(weights: Sized, field: str, how: str = "") -> None:
    if not 1 <= len(weights) <= MAX_CLASSES:
        raise InvalidRequest.field(field, f"must have {how}from 1 to {MAX_CLASSES} classes, not {len(weights)}")


def _checked(weights: dict[int, float], field: str, how: str = "") -> Mixture:
    """Normalise weights to the sum 1. If it is 1 already, keep their bits, so that a recipe repeats its image."""
    _check_count(weights, field, how)
    total = sum(weights.values())
    factor = 1.0 if math.isclose(total, 1.0, rel_tol=1e-9) else total
    return tuple((label, weight / factor) for label, weight in weights.items())
