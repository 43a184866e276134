"""How products are computed on a device: by which dtype, and whether float32 means float32."""

import torch


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 matrix products. They are about twice as fast; emulated ones are slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def exact_float32() -> None:
    """Convolutions of float32 tensors on CUDA keep all 24 bits; cuDNN's default, TF32, is 1e-3 off.

    For speed there is bfloat16. torch's default for matrix products is exact already.
    """
    torch.backends.cudnn.allow_tf32 = False
