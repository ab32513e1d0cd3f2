"""Photos read in a thread, ahead of the work on them."""

import threading

import pytest
from PIL import Image

from drnet_captum.data import images, read_ahead


def test_in_order_with_errors_in_their_places(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        Image.new("RGB", (i + 1, 1)).save(path)
    paths[2].write_text("no image")
    found = list(read_ahead(paths))
    with pytest.raises(ValueError, match=r"2\.png: not an image"):
        found.pop(2).result()
    assert [photo.result().width for photo in found] == [1, 2, 4, 5, 6]


def test_no_more_is_read_than_was_said(monkeypatch):
    """Memory does not grow with the folder."""
    read = []
    monkeypatch.setattr(images, "load_image", lambda path: read.append(path) or path)
    photos = read_ahead(range(100), ahead=3)
    assert next(photos).result() == 0
    next(photos).result()
    photos.close()
    assert len(read) <= 5
    assert not any(thread.name.startswith("read_ahead") for thread in threading.enumerate())
