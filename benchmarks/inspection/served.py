"""The launches that a service makes: the rows of the table of benchmarks.inspection, whose limits the tests check.

Every case calls the public function with tensors on meta, which have shapes and no memory, and the recorder takes
the launch. tests/models/test_served.py compares the list with what the networks launch.

Letters: B batch size, N tokens, D width, C channels, H x W pixels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from benchmarks.inspection.recorder import Launch, recorded_launches
from kernels.attention import attention
from kernels.deferred_sum import DeferredSum, concat_skip, materialize, upsample2x
from kernels.embedding import label_silu, sinusoidal_embedding
from kernels.gather_rows import NUM_ROW_INDICES, gather_rows
from kernels.group_norm import group_norm, residual_group_norm
from kernels.layer_norm import gated_residual_layer_norm
from kernels.sampler_step import NUM_COEFFICIENTS, NUM_INDICES, Mixtures, Pictures, sampler_step
from models.unet import UNet

BATCH = 64
NORM_SHAPES = [(64, 32), (192, 32), (128, 16), (384, 16), (256, 8), (768, 8), (512, 4), (1024, 4)]  # C, H = W
NORM_PARTS = [(16, 4), (8, 2), (8, 4), (8, 9), (4, 2), (4, 4), (4, 9)]  # H = W, parts of the convolution before
GROUP = 16  # channels a group


@dataclass(frozen=True)
class Case:
    """A launch and its memory traffic. The minimum is every input read once and every output written once."""

    name: str
    launch: Launch
    dtype: torch.dtype
    minimum_bytes: int
    moved_bytes: int  # requested by all programs together; caches can serve what exceeds the minimum


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype, device="meta")
    return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor


def record(
    name: str, dtype: torch.dtype, run: Callable[[], object], minimum: int, again: int = 0
) -> Iterator[Case]:
    """The launches of run() as cases; `again`: bytes that programs read which another program has read before."""
    with torch.no_grad(), recorded_launches() as launches:
        run()
    for launch in launches:
        # the statistics of a group norm read its input and write next to nothing
        needed = minimum // 2 if launch.name == "statistics_kernel" else minimum
        yield Case(name, launch, dtype, needed, needed + again)


def served(dtype: torch.dtype) -> Iterator[Case]:
    """All cases in one dtype of the weights."""
    yield from attention_cases(dtype)
    yield from layer_norm_cases(dtype)
    yield from group_norm_cases(dtype)
    yield from deferred_sum_cases(dtype)
    yield from convolution_cases(dtype)
    yield from step_cases(dtype)


def attention_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Both sizes of DIT with 64 images and with 1 (smaller tiles), and the 1,024 tokens of a 128 x 128 image."""
    H, K, size = 8, 2, dtype.itemsize
    for B, N, D in [(BATCH, 64, 96), (1, 64, 96), (BATCH, 64, 48), (1, 64, 48), (4, 1024, 96)]:
        qkv = meta(B, N, (H + 2 * K) * D, dtype=dtype)
        name = f"{N} tokens x {D}, {B} image{'s' * (B > 1)}"
        minimum = (qkv.numel() + B * N * H * D) * size
        (case,) = record(name, dtype, lambda qkv=qkv: attention(qkv, H, K), minimum)
        programs = case.launch.grid[0] * H * B
        yield Case(name, case.launch, dtype, minimum, minimum + (programs - K * B) * 2 * N * D * size)


def layer_norm_cases(dtype: torch.dtype) -> Iterator[Case]:
    for D in (768, 384):
        tokens, positions = meta(BATCH, 64, D, dtype=dtype), meta(1, 64, D, dtype=dtype)
        gate, scale, shift = meta(BATCH, 6, D, dtype=dtype).unbind(1)[:3]
        image, row = tokens.numel() * dtype.itemsize, BATCH * D * dtype.itemsize
        for name, y, rows in ((f"gated residual {D}", tokens, 3), (f"positions {D}", positions, 2)):
            arguments = (tokens, y, gate if rows == 3 else None, scale, shift)
            minimum = 3 * image + y.numel() * dtype.itemsize + rows * row
            # every token reads the vectors of its image, and every image the positions
            again = rows * (image - row) + (image - y.numel() * dtype.itemsize)
            yield from record(name, dtype, lambda a=arguments: gated_residual_layer_norm(*a), minimum, again)


def group_norm_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Shapes of the UNet with 64 base channels, 64 x 64 pixels (a group exceeds a program), and parts."""
    whole = [(C, H, 1) for C, H in [*NORM_SHAPES, (64, 64)]]
    for C, H, P in [*whole, *((256, H, P) for H, P in NORM_PARTS)]:
        B = BATCH if P == 1 else 1
        x, row, film = meta(B, C, H, H, dtype=dtype), meta(C, dtype=dtype), meta(B, 2 * C, dtype=dtype)
        parts = meta(P * B, C, H, H, dtype=torch.float32).view(P, B, C, H, H)
        read, image = (x if P == 1 else parts), x.numel() * dtype.itemsize
        name = f"{C} x {H} x {H}" + (f" of {P} parts" if P > 1 else "")
        norm, vectors = (C // GROUP, row, row), 4 * C * dtype.itemsize
        residual = DeferredSum(read, x), *norm
        after_conv = DeferredSum(read), *norm, film[:, :C], film[:, C:]
        moved = read.nbytes + image + vectors
        yield from record(f"residual {name}", dtype, lambda a=residual: residual_group_norm(*a), moved + 2 * image)
        yield from record(f"FiLM {name}", dtype, lambda a=after_conv: group_norm(*a), moved + film.nbytes)


def convolution_cases(dtype: torch.dtype) -> Iterator[Case]:
    """One case of each tile, from both sizes of the UNet, with 64 images and with 1."""
    seen = set()
    for base, batch in product((64, 32), (BATCH, 1)):
        with torch.device("meta"), torch.no_grad(), recorded_launches() as launches:
            model = UNet(base_channels=base).to(dtype).requires_grad_(False)
            x, t, y = torch.empty(batch, 3, 32, 32), torch.empty(batch), torch.empty(batch, dtype=torch.int64)
            model(x, t, y)
        for launch in (launch for launch in launches if launch.name == "convolution_kernel"):
            given = launch.arguments
            step, tall, wide = given["STEP"], given["PIXELS"], given["COLUMNS"]
            if (key := (tall, wide, step, given["C"] % step == 0)) in seen:
                continue
            seen.add(key)
            K = given["SIDE"] ** 2 * given["C"]
            programs = launch.grid[0] * launch.grid[1]  # the parts share the steps
            out = given["out"].numel() * given["out"].dtype.itemsize
            minimum = (given["x"].numel() + given["weight"].numel()) * dtype.itemsize + out
            moved = programs * K * (tall + wide) * dtype.itemsize + out
            name = f"{given['C']} x {given['H']} x {given['W']} to {given['N']}, {batch} image{'s' * (batch > 1)}"
            yield Case(name, launch, dtype, minimum, moved)


def deferred_sum_cases(dtype: torch.dtype) -> Iterator[Case]:
    for C, P in ((128, 1), (32, 1), (128, 2), (128, 4), (128, 9)):
        x = meta(BATCH, C, 16, 16, dtype=dtype)
        parts = meta(P * BATCH, C, 16, 16, dtype=torch.float32).view(P, BATCH, C, 16, 16)
        read, image, name = (x if P == 1 else parts), x.nbytes, f" of {P} parts" if P > 1 else ""
        total, moved = DeferredSum(read, x), read.nbytes + x.nbytes
        yield from record(f"sum of {C}{name}", dtype, lambda s=total: materialize(s), moved + image)
        yield from record(f"upsampled {C}{name}", dtype, lambda s=total: upsample2x(s), moved + 4 * image)
        both = total, x
        yield from record(f"{C} and a skip{name}", dtype, lambda b=both: concat_skip(*b), moved + 3 * image)


def step_cases(dtype: torch.dtype) -> Iterator[Case]:
    """The kernels before and after the forward; half of the images are guided."""
    images = 2 * BATCH // 3
    rows, block = meta(BATCH, NUM_ROW_INDICES, dtype=torch.int64), meta(images, NUM_INDICES, dtype=torch.int64)
    coefficients = meta(images, NUM_COEFFICIENTS, dtype=torch.float32)
    for shape in ((3, 32, 32), (1, 32, 32)):
        x, output = meta(BATCH + 1, *shape, dtype=torch.float32), meta(BATCH, *shape, dtype=dtype)
        E, name = shape[0] * shape[1] * shape[2], " x ".join(map(str, shape))
        yield from record(
            f"{name}", dtype, lambda a=(x, rows): gather_rows(*a, dtype), BATCH * E * (4 + dtype.itemsize)
        )
        pixels = meta(images, *shape[1:], shape[0], dtype=torch.uint8)
        places, preview = meta(images, dtype=torch.int64), meta(images, 2, dtype=torch.float32)
        pictures = Pictures(pixels, places, preview)
        mixtures = Mixtures(meta(images, 2, dtype=torch.int64), meta(BATCH, dtype=torch.float32))
        arguments = (x, x, output, block, coefficients, None, pictures, mixtures)
        minimum = images * E * 17 + BATCH * E * dtype.itemsize  # if every image leaves
        yield from record(f"{name}", dtype, lambda a=arguments: sampler_step(*a), minimum)
    times, labels = meta(BATCH, dtype=torch.float32), meta(BATCH, dtype=torch.int64)
    yield from record(
        "256 waves", dtype, lambda: sinusoidal_embedding(times, 256, dtype), BATCH * 256 * dtype.itemsize
    )
    for D in (768, 384, 256, 128):
        arguments = (meta(BATCH, D, dtype=dtype), meta(11, D, dtype=dtype), labels)
        yield from record(
            f"condition {D}", dtype, lambda a=arguments: label_silu(*a), 2 * BATCH * D * dtype.itemsize
        )
