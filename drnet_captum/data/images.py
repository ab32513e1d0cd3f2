"""Photos from files: one, or all of a folder, always as upright 8-bit RGB."""

from __future__ import annotations

import io
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .assets import asset

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def load_image(path: str | Path) -> Image.Image:
    """A photo as 8-bit RGB, turned upright by its EXIF orientation.

    Greyscale of 16 bits is scaled from 0..65535, floats from 0..1; transparency is laid on white; of an
    animation the first frame is taken.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no readable image, by name and with the reason.

    Example:
        >>> from drnet_captum.data import embedded_photos, load_image
        >>> load_image(embedded_photos()["chelsea"]).size
        (451, 300)
    """
    path = Path(path)
    with _named(path):
        return _upright(path.read_bytes())


def decode_image(data: bytes, name: str) -> Image.Image:
    """An encoded photo as `load_image` gives it.

    Args:
        data: an image file's bytes.
        name: names the image in the message.

    Raises:
        ValueError: bytes that are no readable image, by name and with the reason.

    Example:
        >>> from drnet_captum.data import decode_image, embedded_photos
        >>> decode_image(embedded_photos()["chelsea"].read_bytes(), "chelsea").size
        (451, 300)
    """
    with _named(name):
        return _upright(data)


def read_ahead(paths: Iterable[str | Path], ahead: int = 2) -> Iterator[Future[Image.Image]]:
    """The photos in their order as futures, read in a thread while the caller works on those before.

    Args:
        paths: files.
        ahead: how many are read before they are asked for.

    Yields:
        What ``load_image`` returns, or raises, is the future's result.

    Example:
        >>> from drnet_captum.data import embedded_photos, read_ahead
        >>> [photo.result().mode for photo in read_ahead(embedded_photos().values())]
        ['RGB', 'RGB', 'RGB', 'RGB']
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read_ahead") as pool:
        waiting: deque[Future[Image.Image]] = deque()
        for path in paths:
            waiting.append(pool.submit(load_image, path))
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting


def find_images(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Image files from files and folders, each once: arguments in their order, folders deep and sorted.

    A named file is taken whatever its suffix; in folders, known suffixes and no hidden files.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: no paths, or a folder without images.
    """
    named = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not named:
        raise ValueError("expected at least one image file or folder, got none")
    found: dict[Path, None] = {}
    for path in named:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_image(file.relative_to(path), file))
            if not inside:
                raise ValueError(f"no images in the folder {path}: looked for {' '.join(sorted(SUFFIXES))}")
            found |= dict.fromkeys(inside)
        elif path.exists():
            found[path] = None
        else:
            raise FileNotFoundError(f"no such image file or folder: {path}")
    return list(found)


def embedded_photos() -> dict[str, Path]:
    """The photos that come with the package, name -> file; their licences stand in ``assets/README.md``."""
    return {name: asset(f"{name}.jpg") for name in _PHOTOS}


def embedded_photo(name: str) -> Image.Image:
    """One of `embedded_photos`, as `load_image` gives it.

    Raises:
        ValueError: no photo of that name.
    """
    if name not in _PHOTOS:
        raise ValueError(f"no embedded photo {name!r}: there are {', '.join(_PHOTOS)}")
    return load_image(asset(f"{name}.jpg"))


def _is_image(inside: Path, file: Path) -> bool:
    hidden = any(part.startswith(".") for part in inside.parts)
    return not hidden and file.suffix.lower() in SUFFIXES and file.is_file()


@contextmanager
def _named(name: str | Path) -> Iterator[None]:
    """Says of which image an error is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = "not an image that Pillow can read" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"could not read the image {name}: {reason}") from error


def _upright(data: bytes) -> Image.Image:
    if not data:
        raise ValueError("the file is empty")
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE:
        values = np.asarray(image, dtype=np.float64)
        top = 1.0 if image.mode == "F" else 65535.0
        if not (values.min() >= 0 and values.max() <= top):  # also NaN
            raise ValueError(
                f"pixel values from {values.min():g} to {values.max():g}, expected 0 to {top:g} in mode "
                f"{image.mode}: save it as 8-bit RGB"
            )
        image = Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
