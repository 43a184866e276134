"""What the answers of all routes that generate have in common."""

from typing import Any

from service.web.generation import Generated
from service.web.job import Job


def seed_headers(job: Job) -> dict[str, str]:
    return {"X-Seed": job.seeds} | ({"X-Simulated": "true"} if job.card.simulated else {})


def answer_headers(generated: Generated[Any]) -> dict[str, str]:
    timings = generated.timings.model_dump()
    timing = ", ".join(f"{name};dur={1000 * value:.3f}" for name, value in timings.items())
    return seed_headers(generated.job) | {"Server-Timing": timing}
