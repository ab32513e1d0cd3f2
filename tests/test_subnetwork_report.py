"""What a sub-network's report says is what its networks cost and answer."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from models import CLASSES, ConvNet, images, seeded
from PIL import Image
from snapshot import of_everything, same
from torch import Tensor, nn

from drnet_captum.dissect.run import dissect
from drnet_captum.reconstruct import subnetwork_report
from drnet_captum.reconstruct.baselines import at_the_widths_of, random_importance, weight_norms
from drnet_captum.reconstruct.groups import KeepSet
from drnet_captum.reconstruct.keep import group_importance
from drnet_captum.reconstruct.masks import MaskedModel
from drnet_captum.reconstruct.slicing import sliced
from drnet_captum.reconstruct.subnetwork import SubNetwork, subnetwork
from drnet_captum.reconstruct.subnetwork_report import SubNetworkReport, Variant, accuracies

ALL, LARGEST, RANDOM = (
    "channels important to all classes",
    "channels of the largest weights",
    "random channels, mean of",
)
SCORES = torch.tensor([[3.0, 1, 2], [1, 2, 5], [0, 0, 1], [1, 2, 5], [5, 2, 0], [9, 1, 1]])
LABELS = torch.tensor([0, 0, 2, 1, 1, 2])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subnetwork_report, "_SECONDS", 1e-3)


def pictures(scores: Tensor) -> Tensor:
    """(N, 3, 4, 4), of one colour each."""
    return scores[:, :, None, None].expand(-1, -1, 4, 4).clone()


@pytest.fixture(scope="module")
def mirror() -> SubNetwork:
    """Of a network whose scores are the image's colours; a channel for each. Classes 0 and 1, of two channels."""
    layers = [nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3, False)]
    model = nn.Sequential(*layers).eval()
    model[0].weight.data = torch.diag(torch.tensor([1.0, 2, 4]))[:, :, None, None]
    model[4].weight.data = torch.diag(torch.tensor([1.0, 0.5, 0.25]))
    dissection = dissect(model, [(torch.rand(6, 3, 4, 4) + 0.1, torch.arange(6) % 3)], stimuli=False, exemplars=1)
    dissection = replace(dissection, class_names=("red", "green", "blue"))
    return subnetwork(model, dissection, [1, 0], 2 / 3, budget_of="channels", inputs=torch.rand(1, 3, 4, 4))


def right(keep: KeepSet) -> tuple[float, float]:
    """By hand: among the first two classes, over all three."""
    among, over = [], []
    for scores, label in zip(SCORES.tolist(), LABELS.tolist(), strict=True):
        if label < 2:
            left = [score if c in keep.get("0", (0, 1, 2)) else 0.0 for c, score in enumerate(scores)]
            among.append(int(left[1] > left[0]) == label)
            over.append(left.index(max(left)) == label)
    return float(np.mean(among)), float(np.mean(over))


def answers(variant: Variant) -> tuple[float | None, float | None]:
    return variant.among, variant.over_all


def test_answers_by_hand(mirror: SubNetwork) -> None:
    assert mirror.keep == {"0": (0, 1)}
    report = mirror.report([(pictures(SCORES), LABELS)], seeds=7)
    assert report.images == 4 and list(report.widths) == [("0", 2, 3)]
    assert [v.name for v in report.variants] == ["whole network", "sub-network", ALL, LARGEST, f"{RANDOM} 7"]
    assert answers(report["whole network"]) == right({}) == (0.5, 0.25)
    assert answers(report["sub-network"]) == right(mirror.keep) == (0.5, 0.5)
    assert answers(report[ALL]) == (0.5, 0.5)  # every channel is all of one class: the first two of equals
    assert answers(report[LARGEST]) == right({"0": (1, 2)}) == (0.5, 0.25)
    drawn = [random_importance(mirror.anatomy.groups, seed) for seed in range(7)]
    keeps = [{"0": tuple(sorted(np.argsort(-values)[:2].tolist()))} for values in drawn]
    assert len({keep["0"] for keep in keeps}) == 3
    expected = np.mean([right(keep) for keep in keeps], axis=0)
    np.testing.assert_allclose(answers(report[f"{RANDOM} 7"]), expected)  # type: ignore[arg-type]


def test_batches_and_other_classes_change_nothing(mirror: SubNetwork) -> None:
    x = pictures(SCORES)
    of_classes = LABELS < 2
    reports = [
        mirror.report([(x, LABELS)], seeds=2),
        mirror.report(((x[i : i + 1].double(), LABELS[i : i + 1].tolist()) for i in range(6)), seeds=2),
        mirror.report([(x[of_classes], LABELS[of_classes].int())], seeds=2),
    ]
    for report in reports:
        assert report.images == 4
        assert [answers(v) for v in report.variants] == [answers(v) for v in reports[0].variants]
    narrow = mirror.of([1, 0], 1 / 3).report([(x, LABELS)], seeds=2)
    assert answers(narrow["whole network"]) == answers(reports[0]["whole network"])
    alone = mirror.of([1], 2 / 3).report([(x, LABELS)], seeds=2)
    assert alone.images == 2 and answers(alone["whole network"]) == (1.0, 0.0)


def test_accuracies() -> None:
    logits = torch.tensor([[1.0, 5, 2, 4], [1, 5, 2, 4], [7, 1, 0, 3], [0, 0, 3, 2]])
    assert accuracies(logits, torch.tensor([3, 2, 3, 2]), [3, 2]) == (0.75, 0.25)
    assert accuracies(logits, torch.tensor([3, 2, 3, 2]), [2, 3]) == (0.75, 0.25)


@pytest.fixture(scope="module")
def trained() -> SubNetwork:
    """With coupled channels of two layers."""
    model = seeded(timm.create_model, "test_efficientnet", num_classes=CLASSES)
    x = images(10, size=(48, 48))
    return subnetwork(model, dissect(model, [(x, torch.arange(10) % CLASSES)], stimuli=False), [2, 4], 0.3)


def test_costs_are_those_of_networks_as_wide_everywhere(trained: SubNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = images(20, size=(48, 48), seed=5), torch.arange(20) % CLASSES
    met: list[KeepSet] = []
    network = subnetwork_report._network
    monkeypatch.setattr(subnetwork_report, "_network", lambda part, keep: (met.append(keep), network(part, keep))[1])
    report, part = trained.report([(x, y)], seeds=2), trained
    model, groups = part.model, part.anatomy.groups
    assert met[0] == {} and met[1] == part.keep and len(met) == 6
    by = [group_importance(part.dissection, groups, range(CLASSES)), weight_norms(model, groups)]
    by += [random_importance(groups, seed) for seed in range(2)]
    assert met[2:] == [at_the_widths_of(part.keep, groups, importance) for importance in by]
    for keep in met[2:]:
        assert {name: len(of) for name, of in keep.items()} == {name: len(of) for name, of in part.keep.items()}
        assert keep != part.keep
        small = sliced(model, keep, part.anatomy.example)
        assert sum(p.numel() for p in small.parameters()) == report["sub-network"].parameters == part.choice.cost
    for variant, keep in zip(report.variants, met, strict=False):
        with torch.no_grad():
            logits = (MaskedModel(model, keep, part.anatomy.example) if keep else model)(x)
        chosen = torch.isin(y, torch.tensor(part.classes))
        assert answers(variant) == accuracies(logits[chosen], y[chosen], part.classes) or variant.name.startswith("ran")
    assert report["whole network"].parameters == part.choice.total
    assert all(v.macs == report["sub-network"].macs < report["whole network"].macs for v in report.variants[1:])
    timed = [v.milliseconds is not None for v in report.variants]
    assert timed == [True, True, False, False, False]
    assert f"it has {sum(p.numel() for p in part.sliced().parameters()):,} parameters" in report.notes[0]
    order = [name for name, _ in model.named_modules() if name in part.keep]
    assert [name for name, _, _ in report.widths] == order
    assert all(name in str(part.report()) for name in part.choice.unscored) and len(part.choice.unscored) == 2


def test_without_images(trained: SubNetwork) -> None:
    report = trained.report()
    assert report.images == 0 and [v.name for v in report.variants] == ["whole network", "sub-network"]
    assert all(answers(v) == (None, None) for v in report.variants)
    assert "right" not in str(report).casefold() and "Other channels" not in str(report)
    assert [sorted(row) for row in report.to_records()] == [
        ["among", "macs", "milliseconds", "name", "over_all", "parameters"]
    ] * 2
    with pytest.raises(ValueError, match="no variant 'random'; there are: whole network, sub-network"):
        report["random"]


def test_a_folder_of_photos(trained: SubNetwork, tmp_path: Path) -> None:
    for c, colour in ((0, "red"), (2, "green"), (4, "blue")):
        (tmp_path / str(c)).mkdir()
        for i in range(c + 1):
            Image.new("RGB", (40, 40 + i), colour).save(tmp_path / str(c) / f"{i}.png")
    assert trained.report(tmp_path, seeds=1).images == 3 + 5
    (flat := tmp_path / "flat").mkdir()
    Image.new("RGB", (40, 40)).save(flat / "0.png")
    with pytest.raises(ValueError, match=r"expected labelled images: .* a subfolder a class"):
        trained.report(str(flat), seeds=1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([(pictures(SCORES)[:2], [2, 2])], "expected images of green, red, got none: are the labels the model's class"),
        ([], "expected images of green, red, got none"),
        ([pictures(SCORES)], "expected labelled images"),
        ([(pictures(SCORES)[:2], [-1, -1])], "expected labelled images"),
        ([(pictures(SCORES), LABELS.float())], r"an integer label for each of 6 images, got torch.float32"),
        (
            [(pictures(SCORES), LABELS[:, None])],
            r"an integer label for each of 6 images, got torch.int64 of .*\(6, 1\)",
        ),
    ],
)
def test_bad_images_leave_the_model_alone(mirror: SubNetwork, data: list[object], message: str) -> None:
    before = of_everything(mirror.model, SCORES)
    with pytest.raises(ValueError, match=message):
        mirror.report(data)
    same(before, of_everything(mirror.model, SCORES))


def test_seeds(mirror: SubNetwork) -> None:
    with pytest.raises(ValueError, match="seeds to be at least 1, got 0"):
        mirror.report([(pictures(SCORES), LABELS)], seeds=0)


def test_text(mirror: SubNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subnetwork_report, "_milliseconds", lambda model, example: 1.234)
    report = mirror.report([(pictures(SCORES), LABELS)], seeds=1)
    assert str(replace(report, variants=report.variants[:3])) == (
        """Sequential for green, red: 66.7% of the channels

                                    parameters          MACs    ms  right among the classes  right over all
whole network                      18 (100.0%)  153 (100.0%)  1.23                    50.0%           25.0%
sub-network                         12 (66.7%)   102 (66.7%)  1.23                    50.0%           50.0%
channels important to all classes   12 (66.7%)   102 (66.7%)                          50.0%           50.0%

Right: of 4 images of these classes. Other channels are as many in each layer.
Sliced, with 2 outputs of its own, it has 10 parameters; that is what was timed.
Channels that stay: 0 2/3; all of the other layers."""
    )
    one = [(pictures(SCORES)[3:4], LABELS[3:4])]
    whole = str(mirror.of([0, 1, 2], 1.0).report(one, seeds=1))
    assert whole.startswith("Sequential for red, green, blue: 100.0% of the channels\n")
    assert "Right: of 1 image of these" in whole and whole.endswith("Channels that stay: all.")
    assert "with 1 output of its own" in str(mirror.of([1], 1.0).report(one, seeds=1))


def test_text_of_many_layers_and_classes() -> None:
    widths = tuple((f"features.{i}.conv", 7, 128) for i in range(40))
    text = str(SubNetworkReport("a net", widths, ("word " * 60,), (Variant("whole network", 5, 7),), 0))
    assert all(len(line) <= 110 for line in text.splitlines())
    assert len(re.findall(r"features.\d+.conv 7/128", text)) == 40  # none of them broken off
    model = seeded(ConvNet, outputs=9)
    part = subnetwork(model, dissect(model, [(images(9), torch.arange(9))], stimuli=False), range(9), 1.0)
    assert part.title == "ConvNet for class 0, class 1, class 2, class 3, class 4, class 5 and 3 more"
