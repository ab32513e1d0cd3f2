"""Detectors whose answers are known, for the tests of masking."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import drnet_captum as dc

Box = tuple[int, int, int, int]


class BrightRectangles:
    """Finds its rectangles, always: each one's score is the mean brightness in it; its class the strongest colour.

    Args:
        boxes: xyxy in whole pixels.
        labels_only: tell label and score, as dicts; else colour means as class scores, brightness as objectness.
    """

    def __init__(self, *boxes: Box, labels_only: bool = True) -> None:
        self.boxes, self.labels_only, self.seen = boxes, labels_only, 0

    def __call__(self, images: Tensor) -> list[object]:
        self.seen += len(images)
        return [self.one(image) for image in images]

    def one(self, image: Tensor) -> object:
        colours = torch.stack([image[:, y1:y2, x1:x2].mean((1, 2)) for x1, y1, x2, y2 in self.boxes])
        boxes, brightness = torch.tensor(self.boxes, dtype=torch.float32), colours.mean(1)
        if self.labels_only:
            return {"boxes": boxes, "scores": brightness, "labels": colours.argmax(1)}
        return dc.Detections(boxes, brightness, colours, objectness=brightness)


class Scripted:
    """Random proposals with full class distributions, other ones for every image, none for some.

    What it answers depends on the image alone, so that a slow transcription can ask it again.
    """

    def __init__(self, proposals: int = 6, classes: int = 4, least: int = 0) -> None:
        self.proposals, self.classes, self.least = proposals, classes, least

    def __call__(self, images: Tensor) -> list[dc.Detections]:
        return [self.one(image) for image in images]

    def one(self, image: Tensor) -> dc.Detections:
        generator = torch.Generator().manual_seed(int(1e4 * float(image.double().mean())))

        def draw(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=torch.float64)

        m = int(draw(1) * (self.proposals + 1 - self.least)) + self.least
        low = draw(m, 2) * 10
        return dc.Detections(
            torch.cat([low, low + 2 + draw(m, 2) * 10], 1), draw(m), draw(m, self.classes), objectness=draw(m)
        )


class Replies:
    """Gives what it was told, result after result, whatever the images."""

    def __init__(self, *results: Sequence[object]) -> None:
        self.results, self.calls = list(results), 0

    def __call__(self, images: Tensor) -> Sequence[object]:
        self.calls += 1
        return self.results[min(self.calls, len(self.results)) - 1]
