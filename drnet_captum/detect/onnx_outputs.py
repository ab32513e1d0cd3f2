"""What the outputs of an ONNX detector mean, from what it says of them, and the detections in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .detections import Detections
from .detector import answers
from .selection import candidates

KINDS = ("yolo", "rows", "detr", "boxes")
_WORDS = {"boxes": ("box",), "scores": ("score", "conf"), "labels": ("label", "class", "cls")}


class Outputs:
    """The outputs of a session, as `OnnxDetector` describes them; the arguments and their errors are the same there.

    Args:
        described: for each output its ``name``, ``shape`` and ``type``, as a session tells them.
        decode, scores, background, categories: as for `OnnxDetector`.
    """

    def __init__(
        self,
        described: Sequence[Any],
        decode: Callable[[list[Tensor]], Sequence[Any]] | str | None,
        scores: str | None,
        background: bool | None,
        categories: tuple[str, ...] | None,
    ) -> None:
        self._described = list(described)
        self._function = decode if callable(decode) else None
        self.kind = "function" if callable(decode) else decode if decode is not None else self._guess(categories)
        if self.kind not in (*KINDS, "function"):
            raise ValueError(f'expected decode as "yolo", "rows", "detr", "boxes" or a function, got {decode!r}')
        if background is not None and self.kind != "boxes":
            raise ValueError(f'background is for decode="boxes", this network\'s is "{self.kind}"')
        if scores is not None and self.kind != "detr":
            raise ValueError(f'scores is for decode="detr", this network\'s is "{self.kind}"')
        named = categories is not None and categories[:1] == ("__background__",)
        self._background = self.kind == "boxes" and named if background is None else background
        self.categories = categories[1:] if categories is not None and named and self._background else categories
        self._places = self._find() if self.kind in ("boxes", "detr") else {}
        self._softmax = self.kind == "detr" and self._has_no_object(scores)

    def detections(self, outputs: list[Tensor], count: int, size: tuple[int, int]) -> list[Detections]:
        """All that there is in ``count`` images, boxes in pixels of the network's input, whose size is (h, w).

        Raises:
            ValueError: outputs of another shape.
        """
        if self._function is not None:
            return answers(self._function(outputs), count)
        if self.kind == "boxes":
            return self._boxes(outputs, count)
        if self.kind == "detr":
            logits, boxes = (_batched(outputs[self._places[name]]).float() for name in ("logits", "boxes"))
            probs = logits.softmax(-1)[..., :-1] if self._softmax else logits.sigmoid()
            pixels = boxes.new_tensor([size[1], size[0]] * 2)
            return [candidates(box * pixels, p) for box, p in zip(boxes, probs, strict=True)]
        first = _batched(outputs[0]).float()
        if self.kind == "rows":
            self._check(first.dim() == 3 and first.shape[2] == 6, "(B, R, 6)", first)
            return [Detections(rows[:, :4], rows[:, 4], labels=rows[:, 5].long()) for rows in first]
        end = first.shape[1] if self.categories is None else 4 + len(self.categories)
        self._check(first.dim() == 3 and 5 <= end <= first.shape[1], f"(B, {max(end, 5)} or more, A)", first)
        return [candidates(columns[:4].T, columns[4:end].T) for columns in first]

    def _boxes(self, outputs: list[Tensor], count: int) -> list[Detections]:
        boxes, scores, labels = (outputs[self._places[name]] for name in ("boxes", "scores", "labels"))
        if boxes.dim() == 2 and count == 1:
            boxes, scores, labels = boxes[None], scores[None], labels[None]
        self._check(boxes.dim() == 3 and len(boxes) == count, f"({count}, M, 4)", boxes)
        found = []
        for box, score, label in zip(boxes.float(), scores.float(), labels.long(), strict=True):
            keep = label >= 1 if self._background else label >= 0
            found.append(Detections(box[keep], score[keep], labels=label[keep] - int(self._background)))
        return found

    def _check(self, fits: bool, expected: str, got: Tensor) -> None:
        if not fits:
            raise ValueError(
                f'expected an output of shape {expected} for decode="{self.kind}", got {tuple(got.shape)}: pass '
                "another decode, or the network's categories"
            )

    def _guess(self, categories: tuple[str, ...] | None) -> str:
        names = [each.name.lower() for each in self._described]
        shapes = [_shape(each) for each in self._described]
        if any("logit" in name for name in names) and any("box" in name for name in names):
            return "detr"
        if len(self._roles()) == 3:
            return "boxes"
        if shapes and len(shapes[0]) == 3:
            _, columns, anchors = shapes[0]
            known = None if categories is None else 4 + len(categories)
            if anchors == 6 and columns != known:
                return "rows"
            if columns is not None and (4 < columns < (anchors or columns + 1) if known is None else known <= columns):
                if known is not None or not any(len(shape) == 4 for shape in shapes):  # masks
                    return "yolo"
        raise ValueError(
            f"the meaning of these outputs is not clear: {self._text()}. Pass decode= as one of {', '.join(KINDS)}, "
            "with categories= where masks or keypoints follow the class scores, or a function of the list of outputs"
        )

    def _find(self) -> dict[str, int]:
        """Which output is which, for "boxes" and "detr"."""
        if self.kind == "boxes":
            places = self._roles()
            if len(places) != 3:
                raise ValueError(f'expected boxes, scores and labels for decode="boxes", got {self._text()}')
            return places
        boxes = [i for i, each in enumerate(self._described) if "box" in each.name.lower()]
        boxes = boxes or [i for i, each in enumerate(self._described) if _shape(each)[-1:] == (4,)]
        logits = [i for i, each in enumerate(self._described) if "logit" in each.name.lower()]
        if not logits and len(self._described) == 2 and boxes:
            logits = [1 - boxes[0]]
        if not boxes or not logits:
            raise ValueError(f'expected logits and boxes for decode="detr", got {self._text()}')
        return {"logits": logits[0], "boxes": boxes[0]}

    def _roles(self) -> dict[str, int]:
        """Boxes, scores and labels by their names; failing that, by shape and type."""
        by_name = {
            role: [i for i, each in enumerate(self._described) if any(word in each.name.lower() for word in words)]
            for role, words in _WORDS.items()
        }
        if all(len(found) == 1 for found in by_name.values()):
            return {role: found[0] for role, found in by_name.items()}
        if len(self._described) != 3:
            return {}
        boxes = [i for i, each in enumerate(self._described) if len(_shape(each)) > 1 and _shape(each)[-1] == 4]
        labels = [i for i, each in enumerate(self._described) if "int" in each.type]
        if len(boxes) != 1 or len(labels) != 1 or boxes == labels:
            return {}
        return {"boxes": boxes[0], "labels": labels[0], "scores": 3 - boxes[0] - labels[0]}

    def _has_no_object(self, scores: str | None) -> bool:
        if scores is not None:
            if scores not in ("softmax", "sigmoid"):
                raise ValueError(f'expected scores as "softmax", "sigmoid" or None, got {scores!r}')
            return scores == "softmax"
        columns = _shape(self._described[self._places["logits"]])[-1]
        if self.categories is None or columns is None or columns - len(self.categories) not in (0, 1):
            raise ValueError(
                'pass scores="softmax" if the last logit is no object (DETR, YOLOS), or scores="sigmoid" (RT-DETR, '
                f"Deformable DETR): {self._text()} does not say, nor do categories"
            )
        return columns == len(self.categories) + 1

    def _text(self) -> str:
        return ", ".join(f"{each.name} {each.type} {tuple(each.shape)}" for each in self._described)


def _shape(described: Any) -> tuple[int | None, ...]:
    """Sides that are left open, by a name or by nothing, are None."""
    return tuple(side if isinstance(side, int) else None for side in described.shape or ())


def _batched(x: Tensor) -> Tensor:
    return x[None] if x.dim() == 2 else x
