"""What the answers of all routes that generate have in common."""

from typing import Any

from service.web.generation import Generated
from service.web.resolve import told_seeds
from service.wire.messages import ModelCard, SamplingParams

NO_STORE = {"Cache-Control": "no-store"}


def seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def picture_size(card: ModelCard) -> str:
    """Width x height, as OpenAI writes it."""
    return f"{card.image_shape[2]}x{card.image_shape[1]}"


def seed_headers(params: SamplingParams, simulated: bool) -> dict[str, str]:
    return {"X-Seed": told_seeds(params)} | ({"X-Simulated": "true"} if simulated else {})


def answer_headers(generated: Generated[Any]) -> dict[str, str]:
    timings = generated.timings.model_dump()
    timing = ", ".join(f"{name};dur={1000 * value:.3f}" for name, value in timings.items())
    return seed_headers(generated.params, generated.simulated) | {"Server-Timing": timing}
