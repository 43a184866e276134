"""Turn the fields of a request into SamplingParams."""

from collections.abc import Collection
from typing import Any

from service.errors import FieldError, InvalidRequest, echo
from service.web.between import describe_images, find_negative
from service.web.schemas import GenerateFields, Limits, allowed
from service.web.uploads import read_known
from service.wire.messages import ModelCard, SamplingParams

STANDS_FOR = ("steps", "sampler", "spacing", "guidance", "guidance_low", "guidance_high")  # set by quality
STRENGTH = 0.6  # default without a mask: a digit keeps its place and slant, and may change its class
MAX_PREVIEWS_SHOWN = 256  # of one request, over all its images


def resolve(
    card: ModelCard,
    spacings: list[str],
    fields: GenerateFields,
    limits: Limits,
    seeds: tuple[int, ...] = (),
    transparent: bool = False,
    known: tuple[bytes, bytes] | None = None,
) -> SamplingParams:
    """Check the fields against their limits and the model, and fill in its defaults.

    Args:
        spacings: the names that are allowed.
        seeds: of each image, instead of those that follow from fields.seed.
        transparent: what may change is marked by transparency in the image or mask, not by white in the mask.
        known: the result of read_known, if image and mask have been read.

    Raises:
        InvalidRequest: names the field and what is allowed.
    """
    _check_limits(fields, limits)
    _check_quality(fields)
    own = card.sampling[fields.quality or "default"]
    images = describe_images(card, fields, limits)
    scale = _guidance(card, fields, images["class_label"], own["guidance"])
    sampler = _find_name("sampler", own["sampler"] if fields.sampler is None else fields.sampler, card.samplers)
    return SamplingParams(
        model=fields.model or "",
        num_steps=fields.steps or (own["steps"] if fields.sampler is None else card.samplers[sampler]),
        sampler=sampler,
        spacing=_find_name("spacing", own["spacing"] if fields.spacing is None else fields.spacing, spacings),
        guidance_scale=scale,
        guidance_interval=_interval(own, fields),
        negative_label=find_negative(card, fields, images["class_label"], scale),
        deterministic=bool(fields.deterministic),
        **images | ({"seeds": seeds} if seeds else {}),
        **_known(card, fields, transparent, known),
    )


def _guidance(card: ModelCard, fields: GenerateFields, label: int, own: float) -> float:
    """The guidance scale; always 1 (off) without a class."""
    if label != card.null_label:
        return own if fields.guidance is None else fields.guidance
    if fields.guidance not in (None, 1.0):
        raise InvalidRequest.field("guidance", "leads to a class, and none is named")
    return 1.0


def _known(
    card: ModelCard, fields: GenerateFields, transparent: bool, known: tuple[bytes, bytes] | None
) -> dict[str, Any]:
    """The arguments of SamplingParams for the input image and its mask."""
    if fields.image is None:
        for name in ("mask", "strength"):
            if getattr(fields, name) is not None:
                raise InvalidRequest.field(name, "needs an image")
        return {}
    image, free = known or read_known(card, fields.image, fields.mask, transparent)
    usual = 1.0 if free else STRENGTH
    strength = usual if fields.strength is None else fields.strength
    return {"image": image, "mask": free, "strength": strength}


def _check_limits(fields: GenerateFields, limits: Limits) -> None:
    wrong = []
    for name, (low, high) in limits.items():
        value = getattr(fields, name)
        if value is not None and not low <= value <= high:  # so nan is outside, too
            wrong.append(FieldError(field=name, message=f"must be {allowed((low, high))}, not {echo(value)}"))
    if wrong:
        raise InvalidRequest.of(wrong)


def _check_quality(fields: GenerateFields) -> None:
    given = [name for name in STANDS_FOR if getattr(fields, name) is not None]
    if fields.quality is not None and given:
        beside = [FieldError(field=name, message="must not come with quality, which sets it") for name in given]
        text = f"must not come with {', '.join(given)}: it sets them itself"
        raise InvalidRequest.of([FieldError(field="quality", message=text), *beside])


def _find_name(field: str, name: str, names: Collection[str]) -> str:
    if name not in names:
        raise InvalidRequest.field(field, f"must be one of {', '.join(names)}, not {echo(name)}")
    return name


def _interval(own: dict[str, Any], fields: GenerateFields) -> tuple[float, float]:
    low, high = own["guidance_interval"]
    low = low if fields.guidance_low is None else fields.guidance_low
    high = high if fields.guidance_high is None else fields.guidance_high
    if low > high:
        raise InvalidRequest.field("guidance_low", f"must be at most guidance_high, {high:g}, not {low:g}")
    return float(low), float(high)


def check_previews(images: int, previews: int, field: str) -> int:
    """Return `previews` of each image. They are limited because a worker encodes and keeps each until it is sent.

    Raises:
        InvalidRequest: all images together would have more than MAX_PREVIEWS_SHOWN.
    """
    if previews * images > MAX_PREVIEWS_SHOWN:
        message = f"{previews} of each of {images} images are more than {MAX_PREVIEWS_SHOWN} in all"
        raise InvalidRequest.field(field, message)
    return previews
