"""Detectors by name: what is built, and what is said where nothing can be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from drnet_captum.detect import CallableDetector, Detector
from drnet_captum.detect.load import _label_count, load_detector

SMALL = "ssdlite320_mobilenet_v3_large"
FASTER = "fasterrcnn_mobilenet_v3_large_320_fpn"

OWN = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn
from beside import HALF
from drnet_captum.detect import CallableDetector

CLASSES = ["cat", "dog"]

@dataclass
class Settings:
    share: float = HALF

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return [{"boxes": torch.zeros(1, 4), "scores": self.scale * HALF, "labels": torch.tensor([1])} for _ in images]

class Named(Net):
    categories = ("owl", "elk")

class Wanting(Net):
    def __init__(self, size):
        super().__init__()

def function(images):
    return [{} for _ in images]

ready = CallableDetector(function, categories=["fox"])
number = 7
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A file with detectors, and one beside it that it imports."""
    (tmp_path / "beside.py").write_text("HALF = 0.5")
    (tmp_path / "mine.py").write_text(OWN)
    return f"python:{tmp_path / 'mine.py'}"


# torchvision


@pytest.mark.parametrize("name", [SMALL, FASTER])
def test_random_weights_with_the_published_names(name: str) -> None:
    detector = load_detector(f"torchvision:{name}", pretrained=False)
    assert detector.name == name
    assert not detector.model.training
    assert detector.categories is not None and len(detector.categories) == 90
    assert (detector.label(0), detector.label(16)) == ("person", "cat")


def test_the_person_of_keypoint_rcnn() -> None:
    assert load_detector("torchvision:keypointrcnn_resnet50_fpn", pretrained=False).categories == ("person",)


@pytest.mark.parametrize(("name", "count"), [(FASTER, 4), (SMALL, 4), (SMALL, 91)])
def test_a_checkpoint_decides_the_number_of_classes(name: str, count: int, tmp_path: Path) -> None:
    trained = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=count)
    torch.save(trained.state_dict(), tmp_path / "trained.pt")
    detector = load_detector(f"torchvision:{name}", checkpoint=tmp_path / "trained.pt")
    for key, value in detector.model.state_dict().items():
        assert torch.equal(value, trained.state_dict()[key]), key
    assert (detector.categories is None) == (count == 4)
    assert not detector.model.training


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models.detection))
def test_heads_of_all_kinds_tell_their_number_of_classes(name: str) -> None:
    with torch.device("meta"):
        published = len(torchvision.models.get_model_weights(name).DEFAULT.meta["categories"])
        own, other = (
            torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=count)
            for count in (published, 7)
        )
    assert _label_count(own, other.state_dict(), published) == 7
    assert _label_count(own, own.state_dict(), published) == published
    halves = {key: value[: len(value) // 2] if value.dim() else value for key, value in own.state_dict().items()}
    assert _label_count(own, halves, published) == published
    assert _label_count(own, {key: value[None] for key, value in own.state_dict().items()}, published) == published


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"the checkpoint .*other\.pt does not fit SSD"):
        load_detector(f"torchvision:{SMALL}", checkpoint=tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        load_detector(f"torchvision:{SMALL}", checkpoint=tmp_path / "absent.pt")


def test_published_weights_are_the_default_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    build = torchvision.models.get_model

    def get_model(name: str, **options: Any) -> nn.Module:
        asked.append(options)
        return build(name, weights=None, weights_backbone=None, num_classes=91)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    detector = load_detector(f"torchvision:{SMALL}")
    assert asked == [{"weights": torchvision.models.get_model_weights(SMALL).DEFAULT}]
    assert detector.label(0) == "person" and not detector.model.training


def test_without_a_network_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_model(name: str, **options: Any) -> nn.Module:
        raise URLError("Name or service not known\nand more")

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    with pytest.raises(OSError, match=r"torchvision:ssdlite.* could not be fetched \(URLError.*\): .*checkpoint=FILE$"):
        load_detector(f"torchvision:{SMALL}")


# The caller's own


def test_a_class_in_a_file(own: str) -> None:
    before = list(sys.path)
    detector = load_detector(f"{own}:Net")
    assert detector.name == "mine:Net"
    assert detector.categories == ("cat", "dog")
    assert detector(torch.zeros(2, 3, 8, 8))[1].scores.tolist() == [0.5]
    assert not detector.model.training
    assert sys.path == before and "mine" not in sys.modules


def test_an_object_s_own_names_come_first(own: str) -> None:
    assert load_detector(f"{own}:Named").categories == ("owl", "elk")


def test_functions_and_detectors_in_a_file(own: str) -> None:
    assert isinstance(load_detector(f"{own}:function"), CallableDetector)
    ready = load_detector(f"{own}:ready")
    assert isinstance(ready, Detector) and ready.categories == ("fox",)


def test_a_module_s_detector() -> None:
    detector = load_detector("python:drnet_captum.detect:find_detections")
    assert isinstance(detector, CallableDetector) and detector.categories is None


def test_a_checkpoint_for_an_own_module(own: str, tmp_path: Path) -> None:
    torch.save({"scale": torch.tensor([4.0])}, tmp_path / "scale.pt")
    detector = load_detector(f"{own}:Net", checkpoint=tmp_path / "scale.pt")
    assert detector(torch.zeros(1, 3, 8, 8))[0].scores.tolist() == [2.0]
    with pytest.raises(ValueError, match="no PyTorch module that a checkpoint could be loaded into"):
        load_detector(f"{own}:function", checkpoint=tmp_path / "scale.pt")


def test_what_no_file_gives(own: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine\.py has no 'Nett': did you mean Net"):
        load_detector(f"{own}:Nett")
    with pytest.raises(ValueError, match=r"Wanting could not be made without arguments .*detector = Wanting\("):
        load_detector(f"{own}:Wanting")
    with pytest.raises(TypeError, match="expected a detector"):
        load_detector(f"{own}:number")
    with pytest.raises(FileNotFoundError, match=r"no Python file at absent\.py"):
        load_detector("python:absent.py:Net")
    with pytest.raises(ValueError, match=r"no module 'absent_package\.part' is installed: name a file"):
        load_detector("python:absent_package.part:Net")
    with pytest.raises(ValueError, match=r"expected python:FILE\.py:NAME"):
        load_detector("python:mine.py")
    (tmp_path / "broken.py").write_text("import absent_package")
    with pytest.raises(ModuleNotFoundError, match="absent_package"):
        load_detector(f"python:{tmp_path / 'broken.py'}:Net")
    assert not [name for name in sys.modules if "broken" in name and "drnet" in name]


# Files, and mistakes


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("fasterrcnn_resnet50", r"unknown detector 'fasterrcnn_resnet50'.*torchvision:fasterrcnn_resnet50_fpn"),
        ("torchvision:", "unknown detector 'torchvision:': expected torchvision:NAME"),
        ("timm:resnet50", "unknown detector 'timm:resnet50': expected torchvision:NAME"),
        ("torchvision:fasterrcn_resnet50", "has no detector called .*did you mean torchvision:fasterrcnn_resnet50_fpn"),
        ("torchvision:resnet50", "has no detector called 'resnet50'"),
        ("torchvision:zzz", "it has fasterrcnn_mobilenet_v3_large_320_fpn, "),
    ],
)
def test_unknown_names(spec: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_detector(spec)


@pytest.mark.parametrize("kind", ["ultralytics", "onnx"])
def test_files_have_their_own_weights(kind: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file at absent\.pt"):
        load_detector(f"{kind}:absent.pt")
    with pytest.raises(ValueError, match="a file with its own weights: leave checkpoint out"):
        load_detector(f"{kind}:absent.pt", checkpoint=tmp_path / "weights.pt")
    for pretrained in (True, False):
        with pytest.raises(ValueError, match=f"pretrained={pretrained} is for published models"):
            load_detector(f"{kind}:absent.pt", pretrained=pretrained)


def test_a_checkpoint_excludes_published_weights() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        load_detector(f"torchvision:{SMALL}", checkpoint="x.pt", pretrained=True)


@pytest.mark.parametrize(("package", "spec"), [("transformers", "huggingface:x"), ("ultralytics", "ultralytics:{}")])
def test_a_package_that_is_not_there(package: str, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pt").touch()
    monkeypatch.setitem(sys.modules, package, None)
    extra = spec.partition(":")[0]
    with pytest.raises(ImportError, match=rf'pip install "drnet-captum\[{extra}\]"'):
        load_detector(spec.format(tmp_path / "a.pt"))


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 48],
        patch_size=16, num_detection_tokens=5, id2label={0: "cat", 1: "dog"},
    )  # fmt: skip
    model = transformers.YolosForObjectDetection(config)
    model.save_pretrained(tmp_path / "tiny")
    transformers.YolosImageProcessor(size={"height": 32, "width": 48}).save_pretrained(tmp_path / "tiny")
    spec = f"huggingface:{tmp_path / 'tiny'}"
    detector = load_detector(spec)
    assert detector.name == "tiny" and detector.categories == ("cat", "dog") and not detector.model.training
    torch.testing.assert_close(detector.model.state_dict(), model.state_dict())
    assert len(detector.propose(torch.rand(1, 3, 40, 60))) == 1
    doubled = {key: value * 2 for key, value in model.state_dict().items()}
    torch.save(doubled, tmp_path / "doubled.pt")
    loaded = load_detector(spec, checkpoint=tmp_path / "doubled.pt")
    torch.testing.assert_close(dict(loaded.model.state_dict()), doubled)
    random = load_detector(spec, pretrained=False).model.state_dict()
    assert any(not torch.equal(value, random[key]) for key, value in model.state_dict().items())


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")

    def from_pretrained(name: str) -> Any:
        raise OSError(f"cannot connect for {name}\nand more")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    with pytest.raises(OSError, match=r"huggingface:a/b could not be fetched .* for a/b\): .*config\.json"):
        load_detector("huggingface:a/b", pretrained=False)
