"""What the bounds of the kernels' tests are made of."""

import pytest
import torch

ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # of one number, relative
DTYPES = pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
