"""Models by name, and checkpoints: what the files hold, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from drnet_captum.data import (
    embedded_photo,
    load_checkpoint,
    load_model,
    model_card,
    read_checkpoint,
)
from drnet_captum.data.checkpoint import other_class_count


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    return load_model("embedded")


def probabilities(model: nn.Module, photo: str) -> Tensor:
    with torch.no_grad():
        return model(model_card(model).transform(embedded_photo(photo))[None]).softmax(1)[0]


def test_the_embedded_model_knows_the_cat_and_the_coffee(squeezenet: nn.Module) -> None:
    assert not squeezenet.training
    assert {p.dtype for p in squeezenet.parameters()} == {torch.float32}
    cat = probabilities(squeezenet, "chelsea").topk(3)
    assert set(cat.indices.tolist()) == {285, 282, 281}
    torch.testing.assert_close(cat.values, torch.tensor([0.42, 0.34, 0.23]), atol=0.02, rtol=0)
    coffee = probabilities(squeezenet, "coffee")
    assert int(coffee.argmax()) == 967
    assert coffee[967] > 0.9


@pytest.mark.parametrize("form", ["safetensors", "plain", "state_dict", "model", "state_dict_ema", "DataParallel"])
@pytest.mark.parametrize("spec", ["timm:test_resnet", "torchvision:shufflenet_v2_x0_5"])
def test_a_checkpoint_comes_back_as_it_went(tmp_path: Path, spec: str, form: str) -> None:
    model = load_model(spec, pretrained=False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    file = tmp_path / "weights.pth"
    if form == "safetensors":
        file = tmp_path / "weights.safetensors"
        save_file(state, file)
    elif form == "plain":
        torch.save(state, file)
    elif form == "DataParallel":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    else:
        torch.save({"epoch": 3, form: state}, file)
    again = load_model(spec, checkpoint=file)
    assert not again.training
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    assert model_card(again).label(967) == "espresso"


@pytest.mark.parametrize("spec", ["timm:test_resnet", "torchvision:squeezenet1_1", "embedded"])
def test_a_checkpoint_with_its_own_number_of_classes(tmp_path: Path, spec: str) -> None:
    name = spec.rpartition(":")[2].replace("embedded", "squeezenet1_1")
    create = timm.create_model if spec.startswith("timm") else torchvision.models.get_model
    save_file(create(name, num_classes=7).state_dict(), tmp_path / "seven.safetensors")
    model = load_model(spec, checkpoint=tmp_path / "seven.safetensors")
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert model_card(model).categories is None


def test_half_precision_checkpoints_become_the_models_dtype(tmp_path: Path) -> None:
    save_file(
        {"weight": torch.full((1, 2), 0.5, dtype=torch.float16), "bias": torch.zeros(1)}, tmp_path / "half.safetensors"
    )
    model = nn.Linear(2, 1)
    load_checkpoint(model, read_checkpoint(tmp_path / "half.safetensors"))
    torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), 0.5))


def test_a_checkpoint_that_does_not_fit_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(1, 1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(3), "1.weight": torch.ones(1, 4), "else": torch.ones(1)}
    message = (
        r"mine does not fit Sequential: 3 missing keys \(1\.bias, 2\.weight, 2\.bias\); 1 unexpected key \(else\); "
        r"1 key of another shape \(1\.weight: model \(1, 3\), checkpoint \(1, 4\)\)\. Name the architecture"
    )
    with pytest.raises(ValueError, match=message):
        load_checkpoint(model, state, source="mine")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.ones(1, 2)}, r"1 missing key \(bias\)"),
        ({"weight": torch.ones(1, 2), "bias": torch.ones(1), "scale": torch.ones(1)}, r"1 unexpected key \(scale\)"),
        ({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, "2 keys of another shape"),
    ],
)
def test_each_misfit_alone_is_an_error(state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_checkpoint(nn.Linear(2, 1), state)


def test_only_the_classes_are_taken_for_classes() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 10))
    fewer = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).state_dict()
    wider = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 10)).state_dict()
    assert other_class_count(model, fewer, 10) == 3
    assert other_class_count(model, wider, 10) is None
    assert other_class_count(model, nn.Sequential(nn.Linear(4, 7)).state_dict(), 10) is None
    assert other_class_count(model, model.state_dict(), 10) is None


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match=r"resnet\.safetensors does not fit .*52 missing keys \(.*, … 48 more\)"):
        load_model("embedded", checkpoint=tmp_path / "resnet.safetensors")


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file at .*none\.pth"):
        load_model("embedded", checkpoint=tmp_path / "none.pth")
    for name in ("junk.pth", "junk.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all" * 9)
        with pytest.raises(ValueError, match=name):
            read_checkpoint(tmp_path / name)
    torch.save(nn.Linear(2, 2), tmp_path / "pickled.pth")
    with pytest.raises(ValueError, match=r"pickled\.pth is not a file of weights alone"):
        read_checkpoint(tmp_path / "pickled.pth")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "log.pth")
    with pytest.raises(ValueError, match=r"expected a state dict .* got a dict with the keys epoch, lr"):
        read_checkpoint(tmp_path / "log.pth")
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="got a Tensor"):
        read_checkpoint(tmp_path / "tensor.pth")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "resnet50",
            r'unknown model .resnet50.: expected "embedded", "timm:NAME" or .*timm:resnet50.*torchvision:resnet50',
        ),
        ("timm:resnet5O", r"timm has no model called 'resnet5O': did you mean .*timm:resnet50"),
        (
            "torchvision:resnt18",
            "torchvision has no image classifier called 'resnt18': did you mean .*torchvision:resnet18",
        ),
        ("torchvision:qqqqqqq", r"see torchvision's list_models\(\)"),
        ("timm:botnet50ts_256", "no published weights for 'botnet50ts_256': pass pretrained=False"),
        ("timm:resnet18.a1_in1", r"no model called 'resnet18.a1_in1': did you mean timm:resnet18\.a1_in1k"),
        ("timm:", "unknown model"),
    ],
)
def test_names_that_do_not_exist(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(spec)


def test_pretrained_and_a_checkpoint_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        load_model("embedded", checkpoint=tmp_path / "any.pth", pretrained=True)


@pytest.mark.parametrize("spec", ["timm:test_resnet", "torchvision:resnet18"])
def test_without_a_network_the_error_says_what_works(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("name or service not known")

    monkeypatch.setattr(timm, "create_model", unreachable)
    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    with pytest.raises(OSError, match=f'weights of {spec} could not be fetched .*not known.*checkpoint=.*"embedded"'):
        load_model(spec)


def test_published_weights_are_asked_for_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    create = timm.create_model

    def record(name: str, *, pretrained: bool, **options: object) -> nn.Module:
        asked.append(pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", record)
    load_model("timm:test_resnet")
    load_model("timm:test_resnet", pretrained=False)
    assert asked == [True, False]
