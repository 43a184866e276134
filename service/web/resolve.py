"""From the fields of a request to SamplingParams."""

import secrets
from typing import Any

from models.names import class_key
from models.seeds import SEED_BITS, image_seed
from service.errors import FieldError, InvalidRequest, echo
from service.web.schemas import GenerateFields, Limits, allowed
from service.web.uploads import read_known
from service.wire.messages import ModelCard, SamplingParams

STANDS_FOR = ("steps", "sampler", "spacing", "guidance", "guidance_low", "guidance_high")  # fields, of a quality
STRENGTH = 0.6  # of a variation: a digit keeps its place and slant, and may change its class
MAX_PREVIEWS_SHOWN = 256  # of one request, on all its images


def resolve(
    card: ModelCard,
    spacings: list[str],
    fields: GenerateFields,
    limits: Limits,
    labels: tuple[int, ...],
    seeds: tuple[int, ...],
    transparent: bool = False,
) -> SamplingParams:
    """Check the fields against their limits and the model, and fill in its defaults.

    Args:
        spacings: the names that there are.
        labels: class index of each image, instead of fields.class_ for all.
        seeds: of each image, instead of those that follow from fields.seed.
        transparent: image and mask say by transparency what may change.

    Raises:
        InvalidRequest: what is wrong, and what is allowed.
    """
    _check_limits(fields, limits)
    _check_quality(fields)
    own = card.sampling[fields.quality or "default"]
    label, guidance = _condition(card, fields, labels, own["guidance"])
    seed = secrets.randbits(SEED_BITS) if fields.seed is None else fields.seed
    return SamplingParams(
        model=fields.model or "",
        class_label=label,
        class_labels=_check_labels(card, labels),
        num_steps=fields.steps or own["steps"],
        sampler=_find_name("sampler", own["sampler"] if fields.sampler is None else fields.sampler, card.samplers),
        spacing=_find_name("spacing", own["spacing"] if fields.spacing is None else fields.spacing, spacings),
        guidance_scale=guidance,
        guidance_interval=_interval(own, fields),
        seeds=seeds or tuple(image_seed(seed, index) for index in range(fields.n or 1)),
        deterministic=bool(fields.deterministic),
        **_known(card, fields, transparent),
    )


def _condition(
    card: ModelCard, fields: GenerateFields, labels: tuple[int, ...], guidance: float
) -> tuple[int, float]:
    """Class index and guidance scale. An image without a class is denoised as the model sees fit."""
    scale = guidance if fields.guidance is None else fields.guidance
    if labels:
        return 0, scale
    if fields.class_ is not None or fields.image is None:
        return find_class(card, fields.class_), scale
    if fields.guidance not in (None, 1.0):
        raise InvalidRequest.field("guidance", "leads to a class: name one in class")
    return card.null_label, 1.0


def _known(card: ModelCard, fields: GenerateFields, transparent: bool) -> dict[str, Any]:
    """What SamplingParams says about an image."""
    if fields.image is None:
        for name in ("mask", "strength"):
            if getattr(fields, name) is not None:
                raise InvalidRequest.field(name, "needs an image")
        return {}
    image, free = read_known(card, fields.image, fields.mask, transparent)
    usual = 1.0 if free else STRENGTH
    strength = usual if fields.strength is None else fields.strength
    return {"image": image, "free": free, "strength": strength}


def _check_limits(fields: GenerateFields, limits: Limits) -> None:
    wrong = []
    for name, (low, high) in limits.items():
        value = getattr(fields, name)
        if value is not None and not low <= value <= high:  # so nan is outside, too
            wrong.append(FieldError(field=name, message=f"must be {allowed((low, high))}, not {echo(value)}"))
    if wrong:
        raise InvalidRequest.of(wrong)


def find_class(card: ModelCard, value: str | int | None) -> int:
    """A number is an index. Text is a name, which may consist of digits, and an index where it is no name."""
    names = [class_key(name) for name in card.class_names]
    wanted = f"one of {', '.join(card.class_names[:20])}" + (", ..." if len(names) > 20 else "")
    wanted += f", or an index from 0 to {len(names) - 1}"
    if value is None:
        raise InvalidRequest.field("class", f"required: {wanted}")
    text = class_key(value) if isinstance(value, str) else ""
    if text in names:
        return names.index(text)
    if text.isascii() and text.isdigit() and len(text) < 10:
        value = int(text)
    if isinstance(value, int) and 0 <= value < len(names):
        return value
    raise InvalidRequest.field("class", f"must be {wanted}, not {echo(value)}")


def _check_quality(fields: GenerateFields) -> None:
    given = [name for name in STANDS_FOR if getattr(fields, name) is not None]
    if fields.quality is not None and given:
        beside = [FieldError(field=name, message="is part of what quality stands for") for name in given]
        raise InvalidRequest.of([FieldError(field="quality", message="send it or what it stands for"), *beside])


def _find_name(field: str, name: str, names: list[str]) -> str:
    if name not in names:
        raise InvalidRequest.field(field, f"must be one of {', '.join(names)}, not {echo(name)}")
    return name


def _check_labels(card: ModelCard, labels: tuple[int, ...]) -> tuple[int, ...]:
    for label in labels:
        if not 0 <= label < len(card.class_names):
            message = f"must be indices from 0 to {len(card.class_names) - 1}, not {echo(label)}"
            raise InvalidRequest.field("class", message)
    return labels


def _interval(own: dict[str, Any], fields: GenerateFields) -> tuple[float, float]:
    low, high = own["guidance_interval"]
    low = low if fields.guidance_low is None else fields.guidance_low
    high = high if fields.guidance_high is None else fields.guidance_high
    if low > high:
        raise InvalidRequest.field("guidance_low", f"must be at most guidance_high, {high:g}, not {low:g}")
    return float(low), float(high)


def check_previews(images: int, previews: int, field: str) -> int:
    """Each is a picture to encode and to keep until its reader takes it; the device pays for none.

    Raises:
        InvalidRequest: there would be more of them than MAX_PREVIEWS_SHOWN.
    """
    if previews * images > MAX_PREVIEWS_SHOWN:
        message = f"{previews} of each of {images} images are more than {MAX_PREVIEWS_SHOWN} in all"
        raise InvalidRequest.field(field, message)
    return previews
