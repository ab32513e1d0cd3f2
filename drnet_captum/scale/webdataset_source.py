"""Images in tar files, as WebDataset shards have them."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

from drnet_captum.data.card import ModelCard
from drnet_captum.scale.boxes import as_boxes, boxes_for
from drnet_captum.scale.folder_source import why
from drnet_captum.scale.locate import Place
from drnet_captum.scale.source import Content, Source, class_numbers, fingerprint_of, index_of

IMAGES = ("bmp", "jpeg", "jpg", "png", "webp")

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_FROM_JSON = "json"


@dataclass(frozen=True, eq=False)
class WebdatasetSource(Source):
    """Images in tar files, read by where their bytes begin: the index has the columns shard, offset and size.

    A sample is consecutive members of one name up to its first dot; its image is the first member whose suffix, all
    after that dot, is one of ``IMAGES``. A sample without an image is left out.

    Attributes:
        shards: by their paths in ``root``.
    """

    shards: tuple[str, ...]

    def contents(self, start: int, rows: Sequence[Mapping[str, Any]]) -> Iterator[Content]:
        """The images' bytes, one shard open at a time."""
        for shard, members in groupby(rows, key=lambda row: int(row["shard"])):
            try:
                file = Path(self.root, self.shards[shard]).open("rb")
            except OSError as error:
                yield from ((b"", why(error)) for _ in members)
                continue
            with file:
                for member in members:
                    yield _content(file, member["offset"], member["size"])


@dataclass(frozen=True, slots=True)
class _Sample:
    path: str
    label: int | str | float | None
    boxes: Any
    shard: int
    offset: int
    size: int


def find(place: Place, card: ModelCard, classes: int, boxes: str | Path | None) -> WebdatasetSource:
    """The samples of tar files, in the order of their members."""
    found = [
        sample
        for number, file in enumerate(place.files)
        for sample in _samples(file, place.name(file), number, with_boxes=boxes == _FROM_JSON)
    ]
    if not found:
        raise ValueError(f"no images in the tar files of {place.root}: looked for members .{' .'.join(IMAGES)}")
    paths = [sample.path for sample in found]
    if boxes is None or boxes == _FROM_JSON:
        given = [as_boxes(sample.boxes, sample.path) for sample in found]
    else:
        given = boxes_for(paths, boxes)
    index = index_of(
        paths,
        class_numbers([sample.label for sample in found], card, classes, f"the tar files of {place.root}"),
        [None] * len(found),
        given,
        shard=[sample.shard for sample in found],
        offset=[sample.offset for sample in found],
        size=[sample.size for sample in found],
    )
    shards = tuple(place.name(file) for file in place.files)
    return WebdatasetSource(place.kind, str(place.root), index, fingerprint_of(index), shards)


def _samples(file: Path, name: str, number: int, *, with_boxes: bool) -> Iterator[_Sample]:
    with file.open("rb") as data:
        if data.read(6).startswith(_COMPRESSED):
            raise ValueError(
                f"{file} is a compressed tar, where an image is not to be had without unpacking all before it: "
                "decompress the file once"
            )
        data.seek(0)
        try:
            with tarfile.open(fileobj=data, mode="r:") as tar:
                for _, members in groupby(_members(tar), key=itemgetter(0)):
                    sample = _sample(data, [member[1:] for member in members], name, number, with_boxes)
                    if sample is not None:
                        yield sample
        except tarfile.TarError as error:
            raise ValueError(f"could not read the tar file {file}: {error}") from error


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(key of the sample, suffix, member) of the files."""
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # or all headers stay in memory
        folder, _, name = _plain(member).rpartition("/")
        stem, _, suffix = name.partition(".")
        if member.isfile() and stem:
            yield f"{folder}/{stem}", suffix.lower(), member


def _sample(
    data: IO[bytes], members: Sequence[tuple[str, tarfile.TarInfo]], name: str, number: int, with_boxes: bool
) -> _Sample | None:
    of = dict(reversed(members))  # the first of each suffix
    image = next((member for suffix, member in members if suffix in IMAGES), None)
    if image is None:
        return None
    described = _described(_read(data, of["json"]), f"{name}/{_plain(of['json'])}") if "json" in of else {}
    label = next((described[key] for key in ("label", "cls") if described.get(key) is not None), None)
    return _Sample(
        path=f"{name}/{_plain(image)}",
        label=_class(_read(data, of["cls"]), f"{name}/{_plain(of['cls'])}") if "cls" in of else label,
        boxes=described.get("boxes") if with_boxes else None,
        shard=number,
        offset=image.offset_data,
        size=image.size,
    )


def _plain(member: tarfile.TarInfo) -> str:
    return member.name.removeprefix("./")


def _read(data: IO[bytes], member: tarfile.TarInfo) -> bytes:
    data.seek(member.offset_data)
    return data.read(member.size)


def _class(text: bytes, path: str) -> int | str:
    try:
        found = text.decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"expected an integer or a class name in {path}, got {text!r:.80}") from error
    return int(found) if re.fullmatch(r"-?\d+", found) else found


def _described(text: bytes, path: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"could not read {path}: {error}") from error
    return found if isinstance(found, dict) else {}


def _content(file: IO[bytes], offset: int, size: int) -> Content:
    try:
        file.seek(offset)
        data = file.read(size)
    except OSError as error:
        return b"", why(error)
    return (data, None) if len(data) == size else (b"", f"the tar file ends after {len(data)} of {size} bytes")
