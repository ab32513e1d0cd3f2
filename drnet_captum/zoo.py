"""All of timm: the layer that the CAM family looks at in every model, and what it sees there on photos.

A run writes one row of a CSV per model, at once, so that it may be stopped at any time and continued.
"""

from __future__ import annotations

import csv
import gc
import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import ceil, log
from pathlib import Path
from textwrap import shorten
from time import perf_counter

import matplotlib
import numpy as np
import numpy.typing as npt
import timm
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn.functional import interpolate

from drnet_captum.attr.cam import GradCAM
from drnet_captum.data import ModelCard, load_image, load_model, model_card
from drnet_captum.layers.discovery import LayerDiscoveryError, find_target_layer
from drnet_captum.layers.statements import input_sizes, is_headless
from drnet_captum.viz import overlay
from drnet_captum.viz.overlay import LUMA

Row = dict[str, str]

COLUMNS = (
    *("name", "module", "class", "parameters", "input_size", "classes"),
    *("layer", "layout", "grid", "channels", "prefix_tokens", "seconds", "error"),
)
MAP_COLUMNS = ("images_per_second", "device", "pretrained")
SHEET = 20  # models on one contact sheet

_BATCH = 8

# Pixels.
_TILE = 176
_GAP = 6
_LINE = 20
_MARGIN = 24  # of a sheet, and between its strips
_MOST_ACROSS = 8
_TITLE, _TEXT = 15, 12
_INK, _FAINT = "#222222", "#777777"


@dataclass(frozen=True)
class Maps:
    """What Grad-CAM is computed on.

    Attributes:
        photos: image files.
        device: where the models run.
        pretrained: with timm's weights, or random ones (always the same).
    """

    photos: Sequence[Path]
    device: torch.device
    pretrained: bool = True

    @property
    def settings(self) -> Row:
        """What every row says of the run that made it."""
        return {"device": str(self.device), "pretrained": str(self.pretrained)}


def model_names(pattern: str | None = None) -> list[str]:
    """The names of timm's models that match a pattern with wildcards; all of them by default.

    Raises:
        ValueError: none does; the message has names like it.
    """
    names: list[str] = timm.list_models(pattern or "")
    if names:
        return names
    plain, known = (pattern or "").strip("*?").lower(), timm.list_models()
    near = [*get_close_matches(plain, known, n=5, cutoff=0.5), *(name for name in known if plain in name)]
    hint = f"did you mean {', '.join(list(dict.fromkeys(near))[:5])}?" if near else "see timm.list_models()"
    raise ValueError(f"timm has no model that matches {pattern!r} (wildcards are * and ?): {hint}")


def columns_for(maps: Maps | None = None) -> tuple[str, ...]:
    """The CSV's columns."""
    return COLUMNS if maps is None else (*COLUMNS, *MAP_COLUMNS)


def continue_csv(path: Path, maps: Maps | None = None) -> dict[str, Row]:
    """The rows that a CSV has so far, by name; one that is not there is begun.

    A last line without its end, which a killed run leaves, is cut off the file.

    Raises:
        ValueError: the file is no such CSV, or of a run with other settings.
    """
    columns = columns_for(maps)
    header = ",".join(columns) + "\n"
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if not whole and header.encode().startswith(content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(header.encode())
        return {}
    another = "choose another --out, or remove the file"
    try:
        lines = csv.DictReader(io.StringIO(whole.decode(), newline=""))
        if tuple(lines.fieldnames or ()) != columns:
            raise ValueError(f"{path} has other columns than this run writes ({', '.join(columns)}): {another}")
        rows = list(lines)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV of a zoo run ({error}): {another}") from error
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"line {number} of {path} does not have {len(columns)} fields: {another}")
        for key, value in (maps.settings if maps is not None else {}).items():
            if row[key] != value:
                raise ValueError(f"{path} was made with {key} {row[key]}, and this run has {key} {value}: {another}")
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return {row["name"]: row for row in rows}


def add_model(path: Path, name: str, maps: Maps | None = None) -> Row:
    """Look at one model, and append its row to the CSV; with ``maps``, also write its strip."""
    row, strip = survey(name, maps)
    if strip is not None:
        save_jpeg(strip, strip_path(path, name))
    line = io.StringIO()
    csv.DictWriter(line, columns_for(maps), lineterminator="\n").writerow(row)
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(line.getvalue())
    return row


def survey(name: str, maps: Maps | None = None) -> tuple[Row, Image.Image | None]:
    """One model's row, and its strip of maps. Whatever fails is the row's ``error``."""
    row = dict.fromkeys(columns_for(maps), "")
    row |= {"name": name, **(maps.settings if maps is not None else {})}
    strip = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _describe(name, row)
            if maps is not None:
                strip = _look(name, row, maps)
        except Exception as error:  # whatever it is, the other models go on
            text = str(error) if isinstance(error, LayerDiscoveryError) else f"{type(error).__name__}: {error}"
            row["error"] = shorten(text.removesuffix(": "), 300, placeholder=" …")
    if maps is not None:  # models may hold themselves in cycles
        gc.collect()
        if maps.device.type == "cuda":
            torch.cuda.empty_cache()
    return row, strip


def _describe(name: str, row: Row) -> None:
    """Fill in what a model without weights tells."""
    row["module"] = str(timm.models.model_entrypoint(name).__module__).rpartition(".")[2]
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name).eval()
    row["class"] = type(model).__name__
    row["parameters"] = str(sum(p.numel() for p in model.parameters()))
    row["input_size"] = "x".join(map(str, input_sizes(model)[0]))
    row["classes"] = str(getattr(model, "num_classes", ""))
    start = perf_counter()
    try:
        found = find_target_layer(model)
    finally:
        row["seconds"] = f"{perf_counter() - start:.3f}"
    row |= {"layer": found.name, "layout": found.layout, "grid": "x".join(map(str, found.grid))}
    row |= {"channels": str(found.channels), "prefix_tokens": str(found.prefix_tokens)}


def _look(name: str, row: Row, maps: Maps) -> Image.Image:
    """Grad-CAM of the likeliest class of every photo, drawn; its speed goes into the row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = load_model(f"timm:{name}", pretrained=maps.pretrained).to(maps.device)
    card, grad_cam = model_card(model), GradCAM(model, row["layer"])
    tiles, answers, seconds = [], [], 0.0
    for start in range(0, len(maps.photos), _BATCH):
        x = torch.stack([card.transform(load_image(path)) for path in maps.photos[start : start + _BATCH]])
        x = x.to(maps.device)
        with torch.no_grad():
            output = model(x)
        if output.dim() != 2 or not torch.isfinite(output).all():
            raise ValueError(f"expected finite scores of shape (N, C), got {tuple(output.shape)}")
        classes: list[int] = output.argmax(1).tolist()
        if start == 0:
            grad_cam.attribute(x[:1], target=classes[:1]).cpu()  # the first call is slower, and not measured
        begin = perf_counter()
        heats = grad_cam.attribute(x, target=classes).detach().cpu()  # which waits for the device, as tolist() did
        seconds += perf_counter() - begin
        heats = interpolate(heats, size=x.shape[2:], mode="bilinear")
        tiles += [_laid(card.photo(photo), heat) for photo, heat in zip(x, heats, strict=True)]
        shares = output.double().softmax(1).amax(1).tolist()
        answers += [_answer(card, model, c, p) for c, p in zip(classes, shares, strict=True)]
    row["images_per_second"] = f"{len(maps.photos) / seconds:.4g}"
    about = f"{row['layer']} · {row['layout']} · {row['grid'].replace('x', '×')}"
    return draw_strip(tiles, answers, name, about if maps.pretrained else f"{about} · random weights")


def _laid(photo: npt.NDArray[np.float32], heat: Tensor) -> npt.NDArray[np.float32]:
    """The map's positive part, where it has one, over the photo in grey: nothing in it can be mistaken for heat."""
    grey = np.repeat((photo @ LUMA)[..., None], 3, axis=2)
    return overlay(grey, heat, signed=False, alpha=0.7) if (heat > 0).any() else grey


def _answer(card: ModelCard, model: nn.Module, index: int, share: float) -> tuple[str, str]:
    """A class and its probability; of a headless model the strongest feature."""
    percent = "<1%" if share < 0.01 else f"{share:.0%}"
    return (f"feature {index}", "") if is_headless(model) else (card.label(index), percent)


def strip_path(path: Path, name: str) -> Path:
    """Where a model's strip is, beside the CSV."""
    return path.with_name(f"{path.stem}_maps") / f"{name}.jpg"


def save_jpeg(image: Image.Image, path: Path) -> None:
    """Write a picture, under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        image.save(part, format="JPEG", quality=90)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def draw_strip(
    photos: Sequence[npt.NDArray[np.float32]], answers: Sequence[tuple[str, str]], name: str, about: str
) -> Image.Image:
    """Photos (H, W, 3) side by side, each with its answer below it: a label, which may be cut, and what follows it."""
    tile = max(_TILE, 2 * _TILE // len(photos))
    across = min(len(photos), _MOST_ACROSS)
    down = ceil(len(photos) / across)
    width, step = across * (tile + _GAP) - _GAP, tile + _LINE + _GAP
    picture = Image.new("RGB", (width, down * step + 2 * _LINE + 4), "white")
    draw = ImageDraw.Draw(picture)
    for number, (photo, answer) in enumerate(zip(photos, answers, strict=True)):
        left, top = number % across * (tile + _GAP), number // across * step
        image = Image.fromarray(np.rint(photo * 255).astype(np.uint8))
        scale = tile / max(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        picture.paste(image, (left + (tile - image.width) // 2, top + (tile - image.height) // 2))
        _write(draw, (left, top + tile + 4), answer[0], tile, _TEXT, _INK, f" {answer[1]}".rstrip())
    _write(draw, (0, down * step), name, width, _TITLE, _INK)
    _write(draw, (0, down * step + _LINE), about, width, _TEXT, _FAINT)
    return picture


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int, size: int, fill: str, after: str = ""
) -> None:
    """A line no wider than ``width``: smaller where it is too long, then cut, ``after`` kept."""
    face = "DejaVuSans-Bold.ttf" if size == _TITLE else "DejaVuSans.ttf"
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", face)
    for points in range(size, size - 4, -1):
        font = ImageFont.truetype(str(file), points)
        if font.getlength(text + after) <= width:
            break
    shown = text
    while shown and font.getlength(shown + after) > width:
        text = text[:-1]
        shown = text.rstrip() + "…"
    draw.text(at, shown + after, font=font, fill=fill)


def contact_sheets(path: Path, names: Iterable[str]) -> list[Path]:
    """Set the strips that there are on sheets of 20 models each, ``zoo_sheet_1.jpg`` … beside ``zoo.csv``."""
    strips = [strip for strip in (strip_path(path, name) for name in names) if strip.exists()]
    sheets = []
    for number, start in enumerate(range(0, len(strips), SHEET), start=1):
        sheets.append(path.with_name(f"{path.stem}_sheet_{number}.jpg"))
        save_jpeg(_sheet(strips[start : start + SHEET]), sheets[-1])
    return sheets


def _sheet(strips: Sequence[Path]) -> Image.Image:
    pictures = [load_image(strip) for strip in strips]
    wide, high = (max(side) + _MARGIN for side in zip(*(p.size for p in pictures), strict=True))
    # Of the ways to set 20 evenly, the one closest to a page of 3:4.
    across = min((1, 2, 4, 5), key=lambda count: abs(log(count * wide / (ceil(SHEET / count) * high) / 0.75)))
    across = min(across, len(pictures))
    sheet = Image.new("RGB", (across * wide + _MARGIN, ceil(len(pictures) / across) * high + _MARGIN), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (_MARGIN + number % across * wide, _MARGIN + number // across * high))
    return sheet
