"""A request after validation, as the routes pass it to the handler."""

import json
from dataclasses import dataclass, replace
from hashlib import sha256

from service.web.classes import mixture_text
from service.wire.messages import ModelCard, SamplingParams

MAX_SEEDS_TOLD = 16  # in a header and in a PNG: 272 characters, which every proxy and client takes

MAX_COLUMNS = 16  # of an interpolation's grid: WebP has at most 16,383 pixels a side, so images up to 1,023 fit


@dataclass(frozen=True, slots=True)
class Job:
    """The sampling parameters, the model's card at validation, and the deadline.

    Args:
        software: name and version of this service, for the recipe in a PNG.
        deadline_seconds: from the arrival of the request; None for no deadline.
    """

    params: SamplingParams
    card: ModelCard
    software: str
    deadline_seconds: float | None = None

    @property
    def size(self) -> str:
        """Width x height of an image, as OpenAI writes it."""
        return f"{self.card.image_shape[2]}x{self.card.image_shape[1]}"

    @property
    def seeds(self) -> str:
        """Seeds of the first MAX_SEEDS_TOLD images; the first seed and n are enough to repeat a request."""
        return ",".join(str(seed) for seed in self.params.seeds[:MAX_SEEDS_TOLD])

    @property
    def recipe(self) -> dict[str, str]:
        """Text of a PNG: the fields of /generate that repeat it, the hash of the weights, the version.

        An image and a mask are recorded as the SHA-256 of their pixels.
        """
        card, params = self.card, self.params
        low, high = params.guidance_interval
        fields = {
            "Software": self.software,
            "model": params.model,
            **self.classes_and_seeds,
            "n": str(len(params.seeds)),
            "steps": str(params.num_steps),
            "sampler": params.sampler,
            "spacing": params.spacing,
            "guidance": str(params.guidance_scale),
            "guidance_low": str(low),
            "guidance_high": str(high),
        }
        if params.image:
            fields |= {"strength": str(params.strength), "image_sha256": sha256(params.image).hexdigest()}
        if params.mask:
            fields["mask_sha256"] = sha256(params.mask).hexdigest()
        if params.deterministic:
            fields["deterministic"] = "true"
        if len(params.seeds) > 1:
            fields["seeds"] = self.seeds
        return fields | {"weights_sha256": card.sha256} | ({"simulated": "true"} if card.simulated else {})

    @property
    def recipes(self) -> list[dict[str, str]]:
        """A recipe for each image by itself."""
        return [replace(self, params=self.params.alone(index)).recipe for index in range(len(self.params.seeds))]

    def class_text(self, index: int) -> str:
        """The class of an image, as the field class takes it; "" if it has none."""
        return mixture_text(self.card, self.params.mixture(index))

    @property
    def classes_and_seeds(self) -> dict[str, str]:
        """The fields of /generate for classes and seeds that repeat this request, as text."""
        params, count = self.params, len(self.params.seeds)
        texts = [self.class_text(index) for index in range(count)]
        same = "class" in params.interpolated or len(set(texts)) == 1
        fields = {"class": texts[0] if same else json.dumps(texts, ensure_ascii=False)}
        if "class" in params.interpolated:
            fields["class_to"] = texts[-1]
        if params.negative_label is not None:
            fields["negative_class"] = self.card.class_name(params.negative_label) or ""
        fields["seed"] = str(params.seeds[0])
        if "seed" in params.interpolated:
            fields["seed_to"] = str(params.seeds[-1])
        elif count == 1 and params.slerps:
            fields["seed_to"], fields["between"] = (repr(value) for value in params.slerps[0])
        return {name: text for name, text in fields.items() if text}

    @property
    def columns(self) -> int | None:
        """Columns of the grid of images: interpolations fill rows; None, a near-square grid, for all else."""
        return min(len(self.params.seeds), MAX_COLUMNS) if self.params.interpolated else None
