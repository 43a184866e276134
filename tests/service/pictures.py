"""What is in a picture file, and how to make one."""

import base64
import io

import httpx
import numpy as np
from PIL import Image

File = bytes | str  # text is in base64


def opened(file: File) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(file) if isinstance(file, str) else file))


def decoded(file: File) -> np.ndarray:
    return np.array(opened(file))


def pixels(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return decoded(response.content)


def recipe(file: File) -> dict[str, str]:
    """What a PNG says about itself."""
    return {str(name): value for name, value in opened(file).info.items()}


def frames(file: bytes) -> list[np.ndarray]:
    """Of an animation, in RGB."""
    found = []
    with opened(file) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            found.append(np.array(image.convert("RGB")))
    return found


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def difference(a: np.ndarray, b: np.ndarray) -> int:
    """Largest difference in 0..255; 1 between equals, where float32 sums in another order round over."""
    return int(np.abs(a.astype(int) - b).max())
