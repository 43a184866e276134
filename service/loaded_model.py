"""A checkpoint in this process, as Python programs see it. See stepwise.py."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from pydantic import ValidationError
from torch import Tensor, nn

from models.checkpoint import ModelConfig, parameter_count
from models.samplers import S, SamplerTable, T
from models.sampling import Further, Known, sample, to_uint8
from models.schedule import NUM_TIMESTEPS
from models.spacings import SPACINGS
from service.engine.canvas import brought, keep_known
from service.engine.cards import samplers_of
from service.engine.plan import guidance_of
from service.engine.request import preview_steps
from service.errors import InvalidRequest
from service.python_api import Preview, Sampler, picture
from service.web.dialects import invalid
from service.web.job import Job
from service.web.recording import recorded_bytes
from service.web.recording import recorder as make_recorder
from service.web.resolve import resolve
from service.web.schemas import FIELD_NAMES, Fields, GenerateBody, limits
from service.wire import messages
from service.wire.messages import Mixture, ModelCard, SamplingParams, TrajectoryPoint

BOUNDS = limits(max_steps=1000, max_images=1024)


class Model(Sampler):
    """A network and its configuration; see stepwise.load."""

    _refused = frozenset({"deterministic", "deadline_ms"})  # which a running service takes

    def __init__(self, name: str, network: nn.Module, config: ModelConfig, device: torch.device, version: str):
        self.name, self.network, self.config, self.device = name, network, config, device
        self.class_names, self.image_shape = config.class_names, config.image_shape
        samplers, self.qualities = samplers_of(config), config.named_sampling
        self.samplers = list(samplers)
        self._software = f"Stepwise {version}"
        self._card = ModelCard(
            name=name, architecture=config.architecture, parameters=parameter_count(network),
            image_shape=config.image_shape, class_names=config.class_names, samplers=samplers,
            sampling=self.qualities, sha256=config.sha256, device=str(device), dtype="", hardware="",
            simulated=False, build="", guidance_range=config.guidance_range,
        )  # fmt: skip

    def _sample(self, fields: dict[str, Any], on_preview: Callable[[Preview], None] | None) -> list[Image]:
        job = self._check(fields)
        params, shown = job.params, preview_steps(fields.get("preview", 0), job.params.num_steps)
        table = self.config.table(params.sampler, params.num_steps, params.spacing, params.strength)

        def watch(step: int, x: Tensor, d: Tensor) -> None:
            if on_preview is not None and step in shown:
                of_x, of_d = table.preview[step].tolist()
                for index, image in enumerate(pixels(of_x * x + of_d * d, params)):
                    on_preview(Preview(picture(image), index, step + 1))

        images = [picture(image) for image in pixels(self._run(params, table, watch), params)]
        for image, recipe in zip(images, job.recipes, strict=True):
            image.info.update(recipe)
        return images

    def _record(self, fields: dict[str, Any], form: str) -> bytes:
        job = self._check(fields)
        recorded_bytes(job, form)  # the bound is that of the service
        params, recorder = job.params, make_recorder(job, form)
        table = self.config.table(params.sampler, params.num_steps, params.spacing, params.strength)

        def watch(step: int, x: Tensor, d: Tensor) -> None:
            of_x, of_d = table.preview[step].tolist()
            denoised = of_x * x + of_d * d
            if form == "npz":
                numbers = table.rows[step, T] / NUM_TIMESTEPS, tuple(table.levels[step]), table.rows[step, S]
                for index, state in enumerate(zip(x.cpu().numpy(), denoised.cpu().numpy(), strict=True)):
                    x_bytes, denoised_bytes = (array.tobytes() for array in state)
                    recorder.add(TrajectoryPoint(index, step, x_bytes, denoised_bytes, *numbers))
            elif step < params.num_steps - 1:
                for index, image in enumerate(pixels(denoised, params)):
                    recorder.add(messages.Preview(image.tobytes(), image.shape, index, step + 1))

        return recorder.encode(pixels(self._run(params, table, watch), params))

    def _check(self, fields: dict[str, Any]) -> Job:
        """Raises InvalidRequest as the service does."""
        for name in self._refused & fields.keys():
            raise InvalidRequest.field(name, "is for a running service: see stepwise.connect")
        try:
            given = GenerateBody.model_validate(fields)
        except ValidationError as error:
            raise invalid(error.errors(), Fields(FIELD_NAMES, BOUNDS)) from error
        return Job(resolve(self._card, list(SPACINGS), given, BOUNDS), self._card, self._software)

    @torch.inference_mode()
    def _run(self, params: SamplingParams, table: SamplerTable, watch: Callable[..., None]) -> Tensor:
        """[n, C, H, W] float32."""
        config, dtype = self.config, next(self.network.parameters()).dtype
        seeds = torch.tensor(params.seeds, device=self.device)
        mixtures = [params.mixture(index) for index in range(len(seeds))]
        labels = torch.tensor([mixture[0][0] for mixture in mixtures], device=self.device)

        def network(x: Tensor, *inputs: Tensor) -> Tensor:
            return self.network(x.to(dtype), *inputs)

        more = {
            "guidance": guidance_of(config, params),
            "null_label": config.num_classes if params.negative_label is None else params.negative_label,
            "known": self._known(params),
            "further": self._further(mixtures),
            "slerps": params.slerps,
            "watch": watch,
        }
        return sample(network, table, labels, seeds, config.image_shape, **more)

    def _further(self, mixtures: list[Mixture]) -> Further | None:
        rows = [(image, *part) for image, mixture in enumerate(mixtures) for part in mixture[1:]]
        if not rows:
            return None
        owners, labels, weights = (torch.tensor(column, device=self.device) for column in zip(*rows, strict=True))
        return Further(owners, labels, weights.float())

    def _known(self, params: SamplingParams) -> Known | None:
        if not params.image:
            return None
        C, H, W = self.image_shape
        image, free = (torch.tensor(array, device=self.device) for array in brought(params, (H, W, C)))
        return Known(image.permute(2, 0, 1).float() / 127.5 - 1, free)


def pixels(x: Tensor, params: SamplingParams) -> list[np.ndarray]:
    """x: [n, C, H, W]; returns n images [H, W, C] uint8."""
    images = to_uint8(x).permute(0, 2, 3, 1).cpu().numpy()
    return [keep_known(image, params) for image in images]
