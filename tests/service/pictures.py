"""What is in an answer's picture."""

import io

import httpx
import numpy as np
from PIL import Image


def pixels(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array(Image.open(io.BytesIO(response.content)))


def difference(a: np.ndarray, b: np.ndarray) -> int:
    """Largest difference in 0..255; 1 between equals, where float32 sums in another order round over."""
    return int(np.abs(a.astype(int) - b).max())
