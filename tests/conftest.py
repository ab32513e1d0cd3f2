"""One thread for all tests: they are many and small, and threads on a shared machine only wait for each other."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from drnet_captum.engine import lean, waiting

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of timm's test_efficientnet, for 1,000 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_efficientnet", num_classes=1000)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def every_node_lean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors are recorded as large ones are."""
    monkeypatch.setattr(lean, "SMALL", 0)
    monkeypatch.setattr(waiting, "LARGE", 0)
    monkeypatch.setattr(waiting, "WORTH", 0)


@pytest.fixture(scope="session")
def labelled_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 21 photos in three classes."""
    from data_sets import make_photos

    return make_photos(tmp_path_factory.mktemp("photos"), 21)


@pytest.fixture(scope="session")
def explained_photos(labelled_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run of ``explain_small`` over them."""
    from data_sets import explain_small

    out = tmp_path_factory.mktemp("whole") / "run"
    explain_small(labelled_photos, out)
    return out
