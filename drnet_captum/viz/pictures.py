"""The pictures of a page: small files as data URIs, each distinct one once."""

from __future__ import annotations

import base64
import hashlib
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

Image8 = npt.NDArray[np.uint8]

_EXACT = 32  # pixels; up to here every pixel is shown as a square, and kept exactly
_QUALITY = 75


class Pictures:
    """Data URIs in ``uris``; equal pictures share a place.

    Example:
        >>> import numpy as np
        >>> pictures = Pictures()
        >>> red, blue = np.full((8, 8, 3), (255, 0, 0), np.uint8), np.full((8, 8, 3), (0, 0, 255), np.uint8)
        >>> [pictures.add(image, 112, "a patch") for image in (red, blue, red.copy())], len(pictures.uris)
        ([0, 1, 0], 2)
    """

    def __init__(self) -> None:
        self.uris: list[str] = []
        self._places: dict[bytes, int] = {}

    def add(self, picture: Image8, edge: int, what: str) -> int:
        """The place of a picture (h, w, 3) in ``uris``, its longer side brought down to ``edge`` pixels.

        A picture that is there already stays as it came first.

        Raises:
            ValueError: another shape or type; ``what`` names the picture in the message.
        """
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
            got = getattr(picture, "dtype", type(picture).__name__)
            raise ValueError(f"expected {what} as a uint8 array, got {got}: (image * 255).round().astype(np.uint8)")
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
            raise ValueError(f"expected {what} of shape (h, w, 3), got {picture.shape}")
        key = hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).digest()
        if key not in self._places:
            self._places[key] = len(self.uris)
            self.uris.append(_data_uri(Image.fromarray(picture), edge))
        return self._places[key]


def _data_uri(image: Image.Image, edge: int) -> str:
    """PNG up to 32 pixels, WebP beyond."""
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    exact = max(image.size) <= _EXACT
    if exact:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "WEBP", quality=_QUALITY)
    return f"data:image/{'png' if exact else 'webp'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
