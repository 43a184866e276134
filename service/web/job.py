"""A request that was checked: what the routes and the generator hand each other."""

from dataclasses import dataclass, replace
from hashlib import sha256

from service.wire.messages import ModelCard, SamplingParams

MAX_SEEDS_TOLD = 16  # in a header and in a PNG: 272 characters, which every proxy and client takes


@dataclass(frozen=True, slots=True)
class Job:
    """What to draw, the model as it was known then, and when the client gives up.

    Args:
        software: name and version of this service, for the recipe in a PNG.
        deadline_seconds: after the arrival, None for never.
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
        """Those of the first images; with n, the first one gives all of them again."""
        return ",".join(str(seed) for seed in self.params.seeds[:MAX_SEEDS_TOLD])

    @property
    def recipe(self) -> dict[str, str]:
        """What a PNG says about itself: fields of /generate that make it again, and the weights that made it.

        Of an image and a mask it has the hashes of their pixels.
        """
        card, params = self.card, self.params
        low, high = params.guidance_interval
        fields = {
            "Software": self.software,
            "model": params.model,
            "class": card.class_name(params.class_label) or "",
            "seed": str(params.seeds[0]),
            "n": str(len(params.seeds)),
            "steps": str(params.num_steps),
            "sampler": params.sampler,
            "spacing": params.spacing,
            "guidance": str(params.guidance_scale),
            "guidance_low": str(low),
            "guidance_high": str(high),
        }
        if params.class_label == card.null_label:
            del fields["class"]
        if params.image:
            fields |= {"strength": str(params.strength), "image_sha256": sha256(params.image).hexdigest()}
        if params.free:
            fields["mask_sha256"] = sha256(params.free).hexdigest()
        if params.deterministic:
            fields["deterministic"] = "true"
        if len(params.seeds) > 1:
            fields["seeds"] = self.seeds
        return fields | {"weights_sha256": card.sha256} | ({"simulated": "true"} if card.simulated else {})

    @property
    def recipes(self) -> list[dict[str, str]]:
        """The same for each image by itself."""
        alone = (replace(self.params, seeds=(seed,)) for seed in self.params.seeds)
        return [replace(self, params=params).recipe for params in alone]
