"""The adapter of ONNX sessions: on stand-ins that need no package, and in ONNX Runtime where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drnet_captum.detect.detections import Detections
from drnet_captum.detect.onnx import OnnxDetector

IMAGE = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))  # on 64×64: 16 rows above
YOLO = np.float32([[[32, 32, 40], [32, 32, 40], [32, 30, 8], [16, 16, 8], [0.1, 0.2, 0.02], [0.9, 0.8, 0.05]]])


class Session:
    """Stands in for onnxruntime.InferenceSession: it answers the same at every run."""

    def __init__(
        self, shape: Any, outputs: dict[str, Any], dtype: str = "tensor(float)", shapes: Any = None, meta: str = ""
    ) -> None:
        self.inputs = [SimpleNamespace(name="images", shape=shape, type=dtype)]
        self.outputs = outputs
        self.shapes = shapes or {name: list(np.shape(values)) for name, values in outputs.items()}
        self.meta = meta
        self.seen: list[Any] = []

    def get_inputs(self) -> list[Any]:
        return self.inputs

    def get_outputs(self) -> list[Any]:
        return [
            SimpleNamespace(
                name=name,
                shape=self.shapes[name],
                type="tensor(int64)" if np.asarray(values).dtype == np.int64 else "tensor(float)",
            )
            for name, values in self.outputs.items()
        ]

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map={"names": self.meta})

    def run(self, names: Any, inputs: dict[str, Any]) -> list[Any]:
        self.seen.append(inputs["images"])
        return list(self.outputs.values())


def yolo(shape: Any = (1, 3, 64, 64), **options: Any) -> Session:
    return Session(list(shape), {"output0": YOLO}, shapes={"output0": [1, 6, 8400]}, **options)


BOXES = {
    "boxes": np.float32([[[0, 16, 64, 48], [8, 24, 16, 32], [0, 0, 1, 1]]]),
    "scores": np.float32([[0.9, np.nan, 0.1]]),
    "labels": np.int64([[1, 1, 2]]),
}


# Outputs


def test_yolo_by_hand() -> None:
    detector = OnnxDetector(yolo())
    (found,) = detector(IMAGE)
    torch.testing.assert_close(found.boxes, torch.tensor([[16.0, 8, 48, 24]]))
    torch.testing.assert_close(found.class_probs, torch.tensor([[0.1, 0.9]]))
    assert found.labels.tolist() == [1]
    assert len(detector.propose(IMAGE)[0]) == 2
    assert len(OnnxDetector(yolo(), overlap=0.95).propose(IMAGE)[0]) == 3
    assert len(OnnxDetector(yolo(), overlap=0.95, proposals=1).propose(IMAGE)[0]) == 1
    assert len(OnnxDetector(yolo(), threshold=0.85, final_overlap=0.95)(IMAGE)[0]) == 1


def test_rows_of_an_end_to_end_export() -> None:
    rows = np.float32([[[0, 16, 32, 32, 0.9, 3], [0, 16, 32, 32, 0.1, 2]]])
    session = Session(
        [1, 3, 64, 64], {"output0": rows}, shapes={"output0": [1, 300, 6]}, meta=str(dict.fromkeys(range(80), "x"))
    )
    detector = OnnxDetector(session)
    (found,) = detector(IMAGE)
    assert (found.boxes.tolist(), found.labels.tolist(), found.class_probs) == ([[0, 0, 32, 16]], [3], None)
    assert len(detector.propose(IMAGE)[0]) == 2
    six = Session([1, 3, 64, 64], {"output0": YOLO}, shapes={"output0": [1, 6, 6]})  # two classes, six anchors
    assert OnnxDetector(six, categories=["cat", "dog"])(IMAGE)[0].class_probs is not None


LOGITS = np.log(np.float32([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]]))
DETR = {"logits": LOGITS, "pred_boxes": np.float32([[[0.5, 0.5, 0.5, 0.25], [0.1, 0.1, 0.1, 0.1]]])}


def test_detr_by_hand() -> None:
    detector = OnnxDetector(Session([1, 3, 64, 64], DETR), categories=["cat", "dog"])  # one column more: softmax
    (found,) = detector(IMAGE)
    torch.testing.assert_close(found.boxes, torch.tensor([[16.0, 8, 48, 24]]))
    torch.testing.assert_close(found.class_probs, torch.tensor([[0.7, 0.2]]))
    (found,) = OnnxDetector(Session([1, 3, 64, 64], DETR), scores="sigmoid").propose(IMAGE)
    torch.testing.assert_close(found.class_probs, torch.from_numpy(LOGITS)[0][[1, 0]].sigmoid())
    assert len(OnnxDetector(Session([1, 3, 64, 64], DETR), categories="abc").propose(IMAGE)[0].class_probs[0]) == 3
    with pytest.raises(ValueError, match=r'scores="softmax".*logits tensor\(float\) \(1, 2, 3\)'):
        OnnxDetector(Session([1, 3, 64, 64], DETR))


def test_detr_stretched_and_with_other_names() -> None:
    session = Session([1, 3, 64, 128], {"a": LOGITS, "b": DETR["pred_boxes"]})
    (found,) = OnnxDetector(session, decode="detr", scores="softmax", stretch=True)(IMAGE)
    torch.testing.assert_close(found.boxes, torch.tensor([[16.0, 12, 48, 20]]))


def test_boxes_with_and_without_a_batch() -> None:
    (found,) = OnnxDetector(Session([1, 3, 64, 64], BOXES)).propose(IMAGE)
    assert (found.boxes.tolist(), found.labels.tolist()) == ([[0, 0, 64, 32], [0, 0, 1, 0]], [1, 2])
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.1]))
    single = {name: BOXES[name][0] for name in ("boxes", "labels", "scores")}
    renamed = dict(zip(("3012", "3013", "3014"), single.values(), strict=True))
    shapes = {"3012": ["n", 4], "3013": ["n"], "3014": ["n"]}
    session = Session([3, 64, 64], renamed, shapes=shapes)
    found = OnnxDetector(session)(IMAGE.repeat(2, 1, 1, 1))
    assert [seen.shape for seen in session.seen] == [(3, 64, 64)] * 2
    assert [each.labels.tolist() for each in found] == [[1], [1]]


def test_background_is_dropped() -> None:
    session = Session([1, 3, 64, 64], {**BOXES, "labels": np.int64([[1, 1, 0]])})
    detector = OnnxDetector(session, categories=["__background__", "cat", "dog"])
    assert detector.categories == ("cat", "dog")
    assert detector.propose(IMAGE)[0].labels.tolist() == [0]
    assert OnnxDetector(session, background=True).propose(IMAGE)[0].labels.tolist() == [0]
    assert OnnxDetector(session, background=False).propose(IMAGE)[0].labels.tolist() == [1, 0]


def test_a_function_decodes() -> None:
    def decode(outputs: list[Tensor]) -> list[Any]:
        boxes = torch.tensor([[0.0, 16, 64, 48], [0, 16, 64, 48]])
        scores = torch.stack([outputs[0].sum(), outputs[0].sum() / 5])
        return [Detections(boxes, scores, labels=torch.tensor([4, 4]))]

    session = Session([1, 3, 64, 64], {"x": np.float32([0.25, 0.25])})
    detector = OnnxDetector(session, decode=decode)
    assert detector(IMAGE)[0].boxes.tolist() == [[0, 0, 64, 32]]
    assert detector.propose(IMAGE)[0].labels.tolist() == [4, 4]
    with pytest.raises(ValueError, match="expected the detector to return 1 results"):
        OnnxDetector(session, decode=lambda outputs: [])(IMAGE)


def test_names_that_ultralytics_writes() -> None:
    assert OnnxDetector(yolo(meta="{0: 'cat', 1: 'dog'}")).categories == ("cat", "dog")
    assert OnnxDetector(yolo(meta="{0: 'cat', 1: 'dog'}"), categories=["a", "b"]).categories == ("a", "b")
    assert OnnxDetector(yolo(meta="{broken")).categories is None
    masks = Session([1, 3, 64, 64], {"o": np.concatenate([YOLO, np.ones_like(YOLO)], 1), "p": np.ones((1, 32, 8, 8))})
    with pytest.raises(ValueError, match=r"not clear: o tensor.*categories= where masks"):
        OnnxDetector(masks)
    masks.meta = "{0: 'cat', 1: 'dog'}"
    torch.testing.assert_close(OnnxDetector(masks)(IMAGE)[0].class_probs, torch.tensor([[0.1, 0.9]]))


# Inputs


def test_letterboxed_to_the_fixed_size_one_at_a_time() -> None:
    session = yolo()
    assert len(OnnxDetector(session)(IMAGE.repeat(3, 1, 1, 1))) == 3
    assert [seen.shape for seen in session.seen] == [(1, 3, 64, 64)] * 3
    assert session.seen[0].dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(session.seen[0][:, :, 16:48]), IMAGE)
    assert np.allclose(session.seen[0][:, :, :16], 114 / 255)


def test_open_sizes() -> None:
    many = np.repeat(YOLO, 3, 0)
    session = Session(["b", 3, "h", "w"], {"o": many})
    detector = OnnxDetector(session, decode="yolo")
    (first, *_) = detector(IMAGE.repeat(3, 1, 1, 1))
    assert session.seen[0].shape == (3, 3, 32, 64)
    torch.testing.assert_close(first.boxes, torch.tensor([[16.0, 24, 48, 32]]))  # cut off below
    OnnxDetector(session, decode="yolo", size=(96, 64))(IMAGE)
    assert session.seen[1].shape == (1, 3, 96, 64)


def test_a_fixed_batch_is_filled_up() -> None:
    session = Session([2, 3, 64, 64], {"o": np.repeat(YOLO, 2, 0)})
    assert len(OnnxDetector(session, decode="yolo")(IMAGE.repeat(3, 1, 1, 1))) == 3
    assert [seen.shape[0] for seen in session.seen] == [2, 2]


def test_channels_last_bytes_and_halves() -> None:
    session = yolo((1, 64, 64, 3), dtype="tensor(uint8)")
    OnnxDetector(session, image_range=(-1.0, 1.0))(IMAGE)
    assert (session.seen[0].shape, session.seen[0].dtype) == ((1, 64, 64, 3), np.uint8)
    expected = ((IMAGE[0].permute(1, 2, 0) + 1) * 127.5).round()
    np.testing.assert_array_equal(session.seen[0][0, 16:48], expected.numpy().astype(np.uint8))
    session = yolo(dtype="tensor(float16)")
    assert OnnxDetector(session)(IMAGE)[0].boxes.dtype == torch.float32
    assert session.seen[0].dtype == np.float16


def test_normalisation() -> None:
    session = yolo((1, 3, 32, 64))
    OnnxDetector(session, mean=[0.1, 0.2, 0.3], std=[1, 2, 4])(IMAGE)
    np.testing.assert_allclose(session.seen[0][0, 2], (IMAGE[0, 2].numpy() - 0.3) / 4, rtol=1e-5)


# Errors


@pytest.mark.parametrize(
    ("session", "options", "match"),
    [
        (Session([1, 3, 64, 64], {"x": np.ones((1, 7))}), {}, r"not clear: x tensor\(float\) \(1, 7\)"),
        (yolo(), {"decode": "yolov9"}, 'decode as "yolo"'),
        (yolo(), {"background": True}, 'background is for decode="boxes"'),
        (yolo(), {"scores": "sigmoid"}, 'scores is for decode="detr"'),
        (Session([1, 3, 64, 64], DETR), {"scores": "relu"}, '"softmax", "sigmoid" or None'),
        (yolo(), {"decode": "boxes"}, "expected boxes, scores and labels"),
        (yolo(), {"decode": "detr"}, "expected logits and boxes"),
        (yolo(), {"size": 32}, "the size that the network has"),
        (yolo((1, 3, 64, "w")), {}, "leaves one side open"),
        (yolo((1, 3, "h", "w")), {"stretch": True}, "stretch needs a size"),
        (yolo((1, 1, 64, 64)), {}, "3 channels"),
        (yolo((1, 3)), {}, "expected one input"),
        (yolo(dtype="tensor(int64)"), {}, r"type tensor\(float\)"),
        (yolo(dtype="tensor(uint8)"), {"mean": [0, 0, 0]}, "networks of floats"),
        (yolo(), {"std": [1.0]}, "std as three numbers"),
    ],
)
def test_what_does_not_fit(session: Any, options: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        OnnxDetector(session, **options)


def test_errors_of_a_call() -> None:
    with pytest.raises(ValueError, match=r"\(B, 7 or more, A\).*got \(1, 6, 3\)"):
        OnnxDetector(yolo(), decode="yolo", categories=["a", "b", "c"])(IMAGE)
    with pytest.raises(ValueError, match=r"\(B, R, 6\)"):
        OnnxDetector(yolo(), decode="rows")(IMAGE)
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        OnnxDetector(yolo())(IMAGE * 255)
    with pytest.raises(TypeError, match="InferenceSession or a path, got int"):
        OnnxDetector(3)


def test_a_path_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"drnet-captum\[onnx\]"):
        OnnxDetector("model.onnx")


def test_in_onnx_runtime(tmp_path: Path) -> None:
    onnx: Any = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    h, f, i = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    nodes = [
        h.make_node("Cast", ["images"], ["x"], to=f),
        h.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        h.make_node("Reshape", ["top", "one"], ["scores"]),
        h.make_node("Identity", ["box"], ["boxes"]),
        h.make_node("Identity", ["label"], ["labels"]),
    ]
    constants = [
        h.make_tensor("one", i, [2], [1, 1]),
        h.make_tensor("box", f, [1, 1, 4], [0, 16, 64, 48]),
        h.make_tensor("label", i, [1, 1], [5]),
    ]
    outputs = [("labels", i, [1, 1]), ("scores", f, [1, 1]), ("boxes", f, [1, 1, 4])]
    graph = h.make_graph(
        nodes,
        "tiny",
        [h.make_tensor_value_info("images", onnx.TensorProto.UINT8, [1, 64, 64, 3])],
        [h.make_tensor_value_info(*output) for output in outputs],
        constants,
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(tmp_path / "tiny.onnx"))
    detector = OnnxDetector(tmp_path / "tiny.onnx")
    assert detector.name == "tiny"
    images = torch.stack([torch.full((3, 32, 64), 0.2), torch.full((3, 32, 64), 0.6)])
    found = detector(images)
    assert [each.scores.tolist() for each in found] == [[114], [153]]  # the border's grey, and 0.6 · 255
    assert found[0].boxes.tolist() == [[0, 0, 64, 32]]
    assert found[1].labels.tolist() == [5]
