"""The operations on the hot path. Each file: plain torch reference first, then what makes it fast."""

from kernels.attention import attention
from kernels.embedding import label_silu, sinusoidal_embedding
from kernels.group_norm import group_norm, residual_group_norm
from kernels.join import Sum, join
from kernels.layer_norm import gated_residual_layer_norm, layer_norm
from kernels.sampler_step import sampler_step

__all__ = ["Sum", "attention", "gated_residual_layer_norm", "group_norm", "join", "label_silu", "layer_norm"]
__all__ += ["residual_group_norm", "sampler_step", "sinusoidal_embedding"]
