"""Detectors exported to ONNX, run by ONNX Runtime."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .detections import Detections
from .detector import Detector, check_images, class_names
from .letterbox import GREY, Letterbox, canvas_size, letterbox
from .onnx_outputs import Outputs
from .selection import best

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class OnnxDetector(Detector):
    """An ONNX Runtime session as a detector: its input's layout, size, batch and type are read from the session.

    A fixed height and width: images are letterboxed to it. A fixed batch: as many images at a time. An input (3, H, W)
    without a batch: one at a time. Bytes: ``image_range`` is brought to 0 … 255.

    What the outputs mean is said by ``decode``, or found from their names and shapes:

    ========= ============================================================================================
    "yolo"    (B, 4 + K, A): boxes cxcywh in pixels of the input and class scores, before suppression
    "rows"    (B, R, 6): boxes xyxy in pixels of the input, score, label, as end-to-end YOLO exports give
    "detr"    ``logits`` (B, Q, K or K + 1) and ``pred_boxes`` (B, Q, 4), cxcywh in shares of the input
    "boxes"   ``boxes`` xyxy in pixels of the input, ``scores``, ``labels``; with or without a batch before
    a function  the outputs as a list of tensors -> for each image ``Detections`` or a dict, boxes as in "boxes"
    ========= ============================================================================================

    Args:
        session: an ``InferenceSession``, on any provider; or a path, for CUDA where it is there and else the CPU.
        decode: as above.
        size: (h, w) to letterbox to where the network leaves it open; None: images keep theirs.
        stretch: bring images to the size at the cost of their aspect, as RT-DETR is used.
        image_range: least and largest value of an image, which the network takes as they are.
        mean, std: for networks that want (image − mean) / std; three numbers each.
        min_score, overlap, proposals: least score, greatest IoU of two boxes of one class ("yolo" alone is not
            suppressed yet), and most boxes an image, for ``propose``.
        threshold, final_overlap: the first two for the answers, of which there are at most 300.
        scores: for "detr", "softmax" with the last logit no object, or "sigmoid"; None: by the number of categories.
        background: for "boxes", whether label 0 is background, as in torchvision's exports: it is dropped, and the
            classes count from the next. None: if the first category is "__background__".
        categories: class names; None: those that Ultralytics writes into its exports.

    Raises:
        ImportError: a path, and onnxruntime is not installed.
        TypeError: neither a session nor a path.
        ValueError: inputs that are not one image, outputs whose meaning is not clear, options that do not fit.

    Source:
        https://onnxruntime.ai/docs/api/python/api_summary.html

    Example:
        >>> from types import SimpleNamespace as Value
        >>> class OneAnchor:  # as onnxruntime.InferenceSession("yolo11n.onnx") has 8400
        ...     def get_inputs(self):
        ...         return [Value(name="images", shape=[1, 3, 64, 64], type="tensor(float)")]
        ...     def get_outputs(self):
        ...         return [Value(name="output0", shape=[1, 6, 8400], type="tensor(float)")]
        ...     def run(self, names, inputs):
        ...         return [np.float32([[[32], [32], [32], [16], [0.1], [0.9]]])]
        >>> OnnxDetector(OneAnchor())(torch.rand(1, 3, 32, 64))[0].boxes.tolist()
        [[16.0, 8.0, 48.0, 24.0]]
    """

    def __init__(
        self,
        session: Any,
        *,
        decode: Callable[[list[Tensor]], Sequence[Any]] | Literal["yolo", "rows", "detr", "boxes"] | None = None,
        size: int | Sequence[int] | None = None,
        stretch: bool = False,
        image_range: tuple[float, float] = (0.0, 1.0),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        min_score: float = 0.01,
        overlap: float = 0.7,
        proposals: int = 300,
        threshold: float = 0.25,
        final_overlap: float = 0.7,
        scores: Literal["softmax", "sigmoid"] | None = None,
        background: bool | None = None,
        categories: Sequence[str] | None = None,
    ) -> None:
        self.name = Path(session).stem if isinstance(session, (str, Path)) else "ONNX detector"
        self.model = _session(session)
        self.image_range = image_range
        self._input = _Input(self.model, size, stretch, image_range, mean, std)
        names = _written_names(self.model) if categories is None else tuple(categories)
        self._outputs = Outputs(self.model.get_outputs(), decode, scores, background, names)
        self.categories = self._outputs.categories
        self.min_score, self.overlap, self.proposals = min_score, overlap, proposals
        self.threshold, self.final_overlap = threshold, final_overlap

    def __call__(self, images: Tensor) -> list[Detections]:
        return self._ask(images, self.threshold, self.final_overlap, 300)

    def propose(self, images: Tensor) -> list[Detections]:
        return self._ask(images, self.min_score, self.overlap, self.proposals)

    def _ask(self, images: Tensor, min_score: float, overlap: float, limit: int) -> list[Detections]:
        check_images(images, self.image_range)
        canvas, placed = self._input.canvas(images)
        size = (int(canvas.shape[2]), int(canvas.shape[3]))
        allowed = overlap if self._outputs.kind == "yolo" else None
        found: list[Detections] = []
        for array, count in self._input.arrays(canvas):
            raw = self.model.run(None, {self._input.name: array})
            outputs = [torch.from_numpy(np.array(values)).to(images.device) for values in raw]
            for each in self._outputs.detections(outputs, count, size):
                found.append(placed.place(best(each, min_score, limit, allowed).to(images.device)))
        return found[: len(images)]  # the last run may have been filled up


class _Input:
    """The one input of a session, and images brought to it."""

    def __init__(
        self,
        session: Any,
        size: int | Sequence[int] | None,
        stretch: bool,
        image_range: tuple[float, float],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        described = list(session.get_inputs())
        text = ", ".join(f"{each.name} {each.type} {tuple(each.shape)}" for each in described)
        shape = [side if isinstance(side, int) else None for side in described[0].shape] if described else []
        if len(described) != 1 or len(shape) not in (3, 4):
            raise ValueError(f"expected one input, images (B, 3, H, W), got {text}: wrap the session in a function")
        if described[0].type not in _DTYPES:
            raise ValueError(f"expected an input of type {', '.join(_DTYPES)}, got {text}")
        self.name, self._dtype = described[0].name, _DTYPES[described[0].type]
        self._unbatched = len(shape) == 3
        batch, *image = [1, *shape] if self._unbatched else shape
        self._batch = batch
        self._last = image[2] == 3 and image[0] != 3
        channels, *sides = (image[2], image[0], image[1]) if self._last else image
        if channels not in (3, None):
            raise ValueError(f"expected an input with 3 channels, (B, 3, H, W) or (B, H, W, 3), got {text}")
        if size is not None:
            wanted = canvas_size(size)
            if any(side not in (None, want) for side, want in zip(sides, wanted, strict=True)):
                raise ValueError(f"expected the size that the network has, got {wanted} for {text}")
            sides = list(wanted)
        if sides.count(None) == 1:
            raise ValueError(f"expected size=(h, w), as the network leaves one side open: {text}")
        self._size = None if sides[0] is None or sides[1] is None else (sides[0], sides[1])
        if stretch and self._size is None:
            raise ValueError("stretch needs a size, and the network leaves it open: pass size=(h, w)")
        self._stretch, self._range = stretch, image_range
        if self._dtype == np.uint8 and (mean is not None or std is not None):
            raise ValueError(f"mean and std are for networks of floats, got {text}")
        self._mean, self._std = _three(mean, "mean"), _three(std, "std")

    def canvas(self, images: Tensor) -> tuple[Tensor, Letterbox]:
        """Images at the network's size, (B, 3, h, w), in their own range, and where they lie."""
        low, high = self._range
        size = self._size or (int(images.shape[2]), int(images.shape[3]))
        return letterbox(images, size, fill=low + (high - low) * GREY, stretch=self._stretch)

    def arrays(self, canvas: Tensor) -> Iterator[tuple[npt.NDArray[Any], int]]:
        """What the network is given, run after run, and the number of images in it."""
        low, high = self._range
        x = canvas.detach().float()
        if self._dtype == np.uint8:
            x = ((x - low) / (high - low) * 255).round().clamp(0, 255)
        if self._mean is not None:
            x = x - x.new_tensor(self._mean)[:, None, None]
        if self._std is not None:
            x = x / x.new_tensor(self._std)[:, None, None]
        x = x.permute(0, 2, 3, 1) if self._last else x
        for chunk in x.split(self._batch or len(x)):
            missing = (self._batch or 0) - len(chunk)
            full = torch.cat([chunk, chunk[-1:].expand(missing, *chunk.shape[1:])]) if missing > 0 else chunk
            array = np.ascontiguousarray(full.cpu().numpy().astype(self._dtype))
            yield (array[0] if self._unbatched else array), len(full)


def _session(session: Any) -> Any:
    if all(callable(getattr(session, name, None)) for name in ("get_inputs", "get_outputs", "run")):
        return session
    if not isinstance(session, (str, Path)):
        raise TypeError(f"expected an onnxruntime.InferenceSession or a path, got {type(session).__name__}")
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ImportError('ONNX files need ONNX Runtime: pip install "drnet-captum[onnx]"') from error
    there = onnxruntime.get_available_providers()
    wanted = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]
    return onnxruntime.InferenceSession(str(session), providers=wanted)


def _written_names(session: Any) -> tuple[str, ...] | None:
    """The class names that Ultralytics writes into its exports, a dict as text."""
    if not hasattr(session, "get_modelmeta"):
        return None
    try:
        names = ast.literal_eval(session.get_modelmeta().custom_metadata_map.get("names", ""))
    except (SyntaxError, ValueError):
        return None
    return class_names(names) if isinstance(names, (dict, list)) else None


def _three(values: Sequence[float] | None, name: str) -> tuple[float, ...] | None:
    if values is None:
        return None
    three = tuple(float(value) for value in values)
    if len(three) != 3:
        raise ValueError(f"expected {name} as three numbers, one a channel, got {len(three)}")
    return three
