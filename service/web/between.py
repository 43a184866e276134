"""The classes and seeds of each image of a request, with interpolation by class_to, seed_to and between."""

import secrets
from typing import Any, NamedTuple

from models.seeds import SEED_BITS, image_seed
from service.errors import InvalidRequest
from service.web.classes import blend, find_class, find_mixture, find_mixtures
from service.web.schemas import GenerateFields, Limits
from service.wire.messages import Mixture, ModelCard


class Interpolation(NamedTuple):
    """The interpolation from the first image of a request to the last."""

    interpolated: tuple[str, ...]  # what is interpolated: "class", "seed"
    positions: list[float]  # position of each image, from 0 to 1; 0 without interpolation


def describe_images(card: ModelCard, fields: GenerateFields, limits: Limits) -> dict[str, Any]:
    """The arguments of SamplingParams for classes and seeds.

    Raises:
        InvalidRequest: names the field and what is allowed.
    """
    mixtures, listed = _classes(card, fields, limits)
    if listed and fields.n not in (None, len(mixtures)):
        raise InvalidRequest.field("n", f"must be {len(mixtures)}, as many as there are classes, or left out")
    path = _read_interpolation(fields, len(mixtures) if listed else fields.n or 1)
    if fields.class_to is not None:
        if listed or fields.class_ is None:
            raise InvalidRequest.field("class_to", "needs one class or mixture to lead from")
        last = find_mixture(card, fields.class_to, "class_to")
        mixtures = [blend(mixtures[0], last, part) for part in path.positions]
    elif not listed:
        mixtures *= len(path.positions)
    found = _describe_classes(mixtures) | _seeds(fields, path)
    # one image has its own mixture and position
    return found | {"interpolated": path.interpolated if len(path.positions) > 1 else ()}


def _classes(card: ModelCard, fields: GenerateFields, limits: Limits) -> tuple[list[Mixture], bool]:
    """Mixtures: one for all images, or one for each image; the bool is true for the latter."""
    if fields.class_ is not None:
        return find_mixtures(card, fields.class_, limits["n"][1])
    label = find_class(card, None) if fields.image is None else card.null_label
    return [((label, 1.0),)], False


def _describe_classes(mixtures: list[Mixture]) -> dict[str, Any]:
    """mixtures: one for each image. Fields that hold no extra information are left out."""
    labels = tuple(mixture[0][0] for mixture in mixtures)
    found: dict[str, Any] = {"class_label": labels[0]}
    if len(set(labels)) > 1:
        found["class_labels"] = labels
    if any(len(mixture) > 1 for mixture in mixtures):
        found["mixtures"] = tuple(mixture if len(mixture) > 1 else () for mixture in mixtures)
    return found


def _read_interpolation(fields: GenerateFields, n: int) -> Interpolation:
    ends = {"class": fields.class_to, "seed": fields.seed_to}
    interpolated = tuple(name for name, end in ends.items() if end is not None)
    if not interpolated:
        if fields.between is not None:
            raise InvalidRequest.field("between", "needs class_to or seed_to")
        return Interpolation((), [0.0] * n)
    if fields.between is not None:
        if n > 1:
            raise InvalidRequest.field("between", f"is the place of one image on its way, and there are {n}")
        return Interpolation(interpolated, [fields.between])
    if n < 2:
        names = " and ".join(f"{name}_to" for name in interpolated)
        raise InvalidRequest.field("n", f"must be at least 2 with {names}, or send between for one image")
    return Interpolation(interpolated, [image / (n - 1) for image in range(n)])


def _seeds(fields: GenerateFields, path: Interpolation) -> dict[str, Any]:
    """All images of an interpolation start from one seed's noise; later noise comes from the image's own seed."""
    seed = secrets.randbits(SEED_BITS) if fields.seed is None else fields.seed
    if not path.interpolated:
        return {"seeds": tuple(image_seed(seed, index) for index in range(len(path.positions)))}
    end = fields.seed_to
    if end is None:
        return {"seeds": (seed,) * len(path.positions)}
    slerps = tuple((end, part) if 0 < part < 1 else (0, 0.0) for part in path.positions)
    found = {"seeds": tuple(end if part == 1 else seed for part in path.positions)}
    return found | ({"slerps": slerps} if any(part for _, part in slerps) else {})


def find_negative(card: ModelCard, fields: GenerateFields, label: int, scale: float) -> int | None:
    """Index of the class that guidance leads away from, or None.

    Args:
        label: class index of the first image.
        scale: guidance scale.

    Raises:
        InvalidRequest: the image has no class, guidance is off, or there is no such class.
    """
    if fields.negative_class is None:
        return None
    if label == card.null_label:
        raise InvalidRequest.field("negative_class", "needs a class to lead to")
    if scale == 1:
        raise InvalidRequest.field("negative_class", "needs a guidance other than 1")
    return find_class(card, fields.negative_class, "negative_class")
