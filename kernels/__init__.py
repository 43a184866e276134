"""The operations on the hot path. Each file: torch reference, Triton kernel, launcher, public function."""

from kernels.attention import attention
from kernels.convolution import convolve
from kernels.deferred_sum import DeferredSum, concat_skip, materialize, upsample2x
from kernels.embedding import label_silu, sinusoidal_embedding
from kernels.group_norm import group_norm, residual_group_norm
from kernels.layer_norm import gated_residual_layer_norm
from kernels.linear_gelu import linear_gelu
from kernels.sampler_step import sampler_step

__all__ = ["DeferredSum", "attention", "concat_skip", "convolve", "gated_residual_layer_norm", "group_norm"]
__all__ += ["label_silu", "linear_gelu", "materialize", "residual_group_norm", "sampler_step"]
__all__ += ["sinusoidal_embedding", "upsample2x"]
