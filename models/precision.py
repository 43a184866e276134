"""Which numbers the hardware multiplies well; service and training ask the same question."""

import torch


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 matrix products: twice as fast there, slower where they are emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))
