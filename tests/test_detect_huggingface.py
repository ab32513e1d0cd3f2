"""The adapter of Hugging Face models: by hand on stand-ins, and against transformers where it is installed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drnet_captum.detect.huggingface import HuggingFaceDetector

IMAGES = torch.rand(2, 3, 50, 70, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1.0], [0.9, 0.9, 0.4, 0.4]]])


class Queries(nn.Module):
    """Stands in for a model: it answers the same for every image."""

    def __init__(self, logits: Tensor, labels: Any = None) -> None:
        super().__init__()
        self.logits = logits
        self.config = SimpleNamespace(id2label={0: "a", 1: "b", 2: "c"} if labels is None else labels)
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, pixel_values: Tensor) -> Any:
        self.seen.append({"pixel_values": pixel_values})
        count = len(pixel_values)
        return SimpleNamespace(
            logits=self.logits.expand(count, -1, -1), pred_boxes=BOXES[:, : self.logits.shape[1]].expand(count, -1, -1)
        )


class MaskedQueries(Queries):
    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> Any:  # type: ignore[override]
        answer = super().forward(pixel_values)
        self.seen[-1]["pixel_mask"] = pixel_mask
        return answer


def processor(**options: Any) -> Any:
    return SimpleNamespace(**{"do_resize": False, "do_normalize": False, "do_rescale": True, **options})


SOFTMAX = torch.tensor([[[0.1, 0.6, 0.1, 0.2], [0.05, 0.05, 0.2, 0.7], [0.9, 0.04, 0.01, 0.05]]]).log()
SIGMOID = torch.tensor([[[0.8, 0.7, 0.1], [0.3, 0.02, 0.02], [0.2, 0.6, 0.1]]]).logit()


def test_softmax_drops_no_object() -> None:
    detector = HuggingFaceDetector(Queries(SOFTMAX).eval())
    found = detector(IMAGES)
    assert len(found) == 2
    torch.testing.assert_close(found[1].boxes, torch.tensor([[49.0, 35, 77, 55], [28.0, 15, 42, 35]]))
    torch.testing.assert_close(found[1].scores, torch.tensor([0.9, 0.6]))
    torch.testing.assert_close(found[1].class_probs, torch.tensor([[0.9, 0.04, 0.01], [0.1, 0.6, 0.1]]))
    assert found[1].labels.tolist() == [0, 1]
    assert detector.categories == ("a", "b", "c")
    assert (detector.name, detector.image_range) == ("Queries", (0, 1))


def test_proposals_are_all_queries() -> None:
    model = Queries(SOFTMAX).eval()
    torch.testing.assert_close(HuggingFaceDetector(model).propose(IMAGES)[0].scores, torch.tensor([0.9, 0.6, 0.2]))
    assert len(HuggingFaceDetector(model, min_score=0.3).propose(IMAGES)[0]) == 2
    assert HuggingFaceDetector(model, proposals=1).propose(IMAGES)[0].labels.tolist() == [0]
    assert len(HuggingFaceDetector(model, threshold=0.7)(IMAGES)[0]) == 1


def test_sigmoid_answers_with_several_classes_but_proposes_one() -> None:
    detector = HuggingFaceDetector(Queries(SIGMOID).eval())
    (found, _) = detector(IMAGES)
    assert found.labels.tolist() == [0, 1, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.8, 0.7, 0.6]))
    torch.testing.assert_close(found.class_probs, torch.tensor([[0.8, 0.7, 0.1], [0.8, 0.7, 0.1], [0.2, 0.6, 0.1]]))
    assert torch.equal(found.boxes[0], found.boxes[1])
    (proposed, _) = detector.propose(IMAGES)
    assert proposed.labels.tolist() == [0, 1, 0]
    assert len(HuggingFaceDetector(Queries(SIGMOID).eval(), max_detections=2)(IMAGES)[0]) == 2


def test_scores_as_the_caller_says() -> None:
    (found, _) = HuggingFaceDetector(Queries(SIGMOID).eval(), scores="softmax").propose(IMAGES)
    assert found.class_probs is not None and found.class_probs.shape == (3, 2)
    other = Queries(SIGMOID, labels=dict(enumerate("abcde"))).eval()
    with pytest.raises(ValueError, match=r'each of 5 labels.*got 3: pass scores="softmax"'):
        HuggingFaceDetector(other)(IMAGES)
    assert len(HuggingFaceDetector(other, scores="sigmoid")(IMAGES)[0]) == 3
    with pytest.raises(ValueError, match='"softmax", "sigmoid" or None'):
        HuggingFaceDetector(other, scores="relu")  # type: ignore[arg-type]


@pytest.mark.parametrize("logits", [SOFTMAX, SIGMOID])
def test_nan_is_dropped(logits: Tensor) -> None:
    broken = logits.clone()
    broken[0, 0, 1] = float("nan")
    detector = HuggingFaceDetector(Queries(broken).eval(), min_score=0.0)
    assert len(detector.propose(IMAGES)[0]) == 2
    assert len(detector(IMAGES)[0]) == 1


def test_categories_fill_gaps() -> None:
    assert HuggingFaceDetector(Queries(SOFTMAX, {"0": "cat", "2": "dog"})).categories == ("cat", "class 1", "dog")
    assert HuggingFaceDetector(Queries(SOFTMAX, {}), scores="softmax").categories is None
    assert HuggingFaceDetector(Queries(SOFTMAX), categories=["x"]).label(0) == "x"


# Preparation


def test_without_a_processor_only_imagenet_s_normalisation() -> None:
    model = Queries(SOFTMAX).eval()
    HuggingFaceDetector(model)(IMAGES)
    seen = model.seen[0]["pixel_values"]
    torch.testing.assert_close(seen[0, 1], (IMAGES[0, 1] - 0.456) / 0.224)
    assert seen.shape == IMAGES.shape


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"height": 64, "width": 32}, (64, 32)),
        (SimpleNamespace(height=None, width=None, shortest_edge=100, longest_edge=1000), (100, 140)),
        ({"shortest_edge": 100, "longest_edge": 100}, (71, 100)),  # 100 · 50 / 70 = 71.4; 71.4 · 7 / 5 = 100
        ({"shortest_edge": 50, "longest_edge": None}, (50, 70)),
        ({"shortest_edge": 49, "longest_edge": 1000}, (49, 68)),  # 68.6: cut off, as transformers does
        ({"max_height": 25, "max_width": 100}, (25, 35)),
    ],
)
def test_sizes(size: Any, expected: tuple[int, int]) -> None:
    model = Queries(SOFTMAX).eval()
    (found, _) = HuggingFaceDetector(model, processor(do_resize=True, size=size, resample=2))(IMAGES)
    assert model.seen[0]["pixel_values"].shape[2:] == expected
    torch.testing.assert_close(found.boxes[1], torch.tensor([28.0, 15, 42, 35]))  # in pixels of the images given


def test_sizes_of_an_upright_image() -> None:
    model = Queries(SOFTMAX).eval()
    HuggingFaceDetector(model, processor(do_resize=True, size={"shortest_edge": 100, "longest_edge": 100}))(
        IMAGES.transpose(2, 3)
    )
    assert model.seen[0]["pixel_values"].shape[2:] == (100, 71)


def test_reducing_is_low_pass() -> None:
    model = Queries(SOFTMAX).eval()
    stripes = torch.tensor([1.0, 0, 0, 0]).repeat(16).expand(1, 3, 64, 64).contiguous()
    HuggingFaceDetector(model, processor(do_resize=True, size={"height": 16, "width": 16}))(stripes)
    assert (model.seen[0]["pixel_values"] - 0.25).abs().mean() < 0.1


def test_scaling_normalising_padding() -> None:
    model = MaskedQueries(SOFTMAX).eval()
    wanted = processor(
        do_rescale=False,
        do_normalize=True,
        image_mean=[1.0, 2.0, 3.0],
        image_std=[2.0, 2.0, 4.0],
        do_pad=True,
        pad_size={"height": 60, "width": 71},
    )
    HuggingFaceDetector(model, wanted)(IMAGES)
    pixels, mask = model.seen[0]["pixel_values"], model.seen[0]["pixel_mask"]
    assert (pixels.shape, mask.shape, mask.dtype) == ((2, 3, 60, 71), (2, 60, 71), torch.int64)
    torch.testing.assert_close(pixels[:, 2, :50, :70], (IMAGES[:, 2] * 255 - 3) / 4)
    assert (mask[:, :50, :70] == 1).all() and mask.sum() == 2 * 50 * 70
    assert (pixels[:, :, 50:] == 0).all() and (pixels[..., 70:] == 0).all()
    HuggingFaceDetector(model, processor(rescale_factor=1 / 127.5))(IMAGES)
    torch.testing.assert_close(model.seen[1]["pixel_values"], IMAGES * 2)


def test_processors_that_are_not_known() -> None:
    with pytest.raises(ValueError, match="height and width"):
        HuggingFaceDetector(Queries(SOFTMAX), processor(do_resize=True, size={"longest_edge": 8}))
    with pytest.raises(ValueError, match=r"resampling.*got 1"):
        HuggingFaceDetector(Queries(SOFTMAX), processor(do_resize=True, size={"shortest_edge": 8}, resample=1))


class WithText(Queries):
    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Any:  # type: ignore[override]
        return super().forward(pixel_values)


def test_errors() -> None:
    with pytest.raises(TypeError, match="transformers model for object detection, got Identity"):
        HuggingFaceDetector(nn.Identity())
    with pytest.raises(ValueError, match="takes text too"):
        HuggingFaceDetector(WithText(SOFTMAX))
    with pytest.raises(ValueError, match="train mode"):
        HuggingFaceDetector(Queries(SOFTMAX))(IMAGES)
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        HuggingFaceDetector(Queries(SOFTMAX).eval())(IMAGES * 255)
    model = Queries(SOFTMAX).eval()
    model.forward = lambda pixel_values: (SOFTMAX, BOXES)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="got tuple: is it a model for object detection"):
        HuggingFaceDetector(model)(IMAGES)


# Against transformers


def families(name: str) -> tuple[Any, Any, int]:
    """A small model with random weights, its image processor, and the most answers that it gives."""
    t: Any = pytest.importorskip("transformers")
    labels: dict[str, Any] = {"id2label": dict(enumerate("abcde")), "label2id": {c: i for i, c in enumerate("abcde")}}
    net = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    scales = {**net, "out_features": ["stage2", "stage3", "stage4"]}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    plain = {**heads, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 12, "d_model": 32, **labels}
    small = {"shortest_edge": 64, "longest_edge": 80}
    torch.manual_seed(0)
    if name == "detr":
        config = t.DetrConfig(backbone_config=t.ResNetConfig(**net, out_features=["stage4"]), **plain)
        return t.DetrForObjectDetection(config), t.DetrImageProcessor(size=small), 100
    if name == "deformable":
        config = t.DeformableDetrConfig(backbone_config=t.ResNetConfig(**scales), **plain)
        pad = {"height": 96, "width": 96}
        return t.DeformableDetrForObjectDetection(config), t.DeformableDetrImageProcessor(size=small, pad_size=pad), 100
    if name == "yolos":
        config = t.YolosConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=[64, 64],
            **labels,
        )
        return t.YolosForObjectDetection(config), t.YolosImageProcessor(size={**small, "longest_edge": 90}), 100
    config = t.RTDetrConfig(
        backbone_config=t.RTDetrResNetConfig(**scales),
        encoder_in_channels=[8, 8, 16],
        encoder_hidden_dim=16,
        decoder_in_channels=[16, 16, 16],
        **{**plain, "d_model": 16},
    )
    return t.RTDetrForObjectDetection(config), t.RTDetrImageProcessor(size={"height": 64, "width": 96}), 12


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["detr", "deformable", "yolos", "rt_detr"])
def test_answers_are_those_of_transformers(name: str) -> None:
    model, its, limit = families(name)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # queries that differ
    before = [dict(vars(module)) for module in model.modules()]
    detector = HuggingFaceDetector(model, its, threshold=0.02, max_detections=limit)
    images = (IMAGES * 255).round() / 255
    found = detector(images)
    assert all(vars(m)[k] is v for m, kept in zip(model.modules(), before, strict=True) for k, v in kept.items())

    pixels, mask = detector._preparation(images)
    theirs = its(images=[(image * 255).round().byte() for image in images], return_tensors="pt")
    torch.testing.assert_close(pixels, theirs["pixel_values"], atol=0.02, rtol=0)  # they round to bytes in between
    takes = {"pixel_mask": mask} if detector._mask else {}
    assert "pixel_mask" not in theirs or torch.equal(mask, theirs["pixel_mask"])
    with torch.no_grad():
        raw = model(pixel_values=pixels, **takes)
    expected = its.post_process_object_detection(raw, threshold=0.02, target_sizes=[(50, 70)] * 2)
    for ours, other in zip(found, expected, strict=True):
        order = other["scores"].argsort(descending=True, stable=True)
        assert len(ours) == len(order) > 3
        torch.testing.assert_close(ours.scores, other["scores"][order])
        torch.testing.assert_close(ours.boxes, other["boxes"][order])
        assert torch.equal(ours.labels, other["labels"][order])
    assert detector.categories == tuple("abcde")
