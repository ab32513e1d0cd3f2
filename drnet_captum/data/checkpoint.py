"""Weights from a file: read without running anything that is in it, compared before anything is loaded."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

StateDict = dict[str, Tensor]

# Averaged weights first: where a training script kept them, they are the ones it measured.
_HOLDERS = ("state_dict_ema", "state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel, of torch.compile
_SHOWN = 4


def read_checkpoint(path: str | Path) -> StateDict:
    """The state dict in a safetensors file or a torch file (read with ``weights_only=True``), on the CPU.

    A torch file may hold the state dict itself or a dict with one under "state_dict_ema", "state_dict" or
    "model" (the first of these that is there); prefixes left by DataParallel and torch.compile are taken off.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or one that holds something other than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    try:
        if path.suffix == ".safetensors":
            held: object = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is not a file of weights alone (a whole pickled model is refused, since reading one can "
            "run code): save model.state_dict() with torch.save or safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"could not read the checkpoint {path}: {error}") from error
    if isinstance(held, dict):
        held = next((held[key] for key in _HOLDERS if isinstance(held.get(key), dict)), held)
    if not isinstance(held, dict) or not held or not all(isinstance(v, Tensor) for v in held.values()):
        raise ValueError(
            f"expected a state dict (name -> tensor) in {path}, plain or under one of {', '.join(_HOLDERS)}, "
            f"got {_describe(held)}"
        )
    state = {str(key): value for key, value in held.items()}
    for prefix in _WRAPPERS:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def other_class_count(model: nn.Module, state: StateDict, classes: int) -> int | None:
    """The checkpoint's number of classes, if that is all that gives it other shapes; otherwise None.

    It is so where every tensor of another shape has ``classes`` rows in the model and one and the same
    other number of rows in the checkpoint, and is alike beyond that.
    """
    own = model.state_dict()
    pairs = [(own[key].shape, state[key].shape) for key in own if key in state]
    reshaped = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
    if not all(ours[:1] == (classes,) and ours[1:] == theirs[1:] for ours, theirs in reshaped):
        return None
    counts = {theirs[0] for _, theirs in reshaped}
    return counts.pop() if len(counts) == 1 else None


def load_checkpoint(model: nn.Module, state: StateDict, *, source: str = "the checkpoint") -> None:
    """Put ``state`` into ``model``, all of it or nothing; dtypes become the model's.

    Args:
        source: what to call the checkpoint in an error.

    Raises:
        ValueError: missing or unexpected keys, or other shapes; the model is then as it was.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from drnet_captum.data import load_checkpoint
        >>> model = nn.Linear(2, 1)
        >>> load_checkpoint(model, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
        >>> model.weight.tolist()
        [[1.0, 1.0]]
    """
    own = model.state_dict()
    # BatchNorm's counter is absent from old files, and evaluation does not read it.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    reshaped = [
        f"{key}: model {tuple(own[key].shape)}, checkpoint {tuple(state[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    faults = [
        _list(missing, "missing key"),
        _list(unexpected, "unexpected key"),
        _list(reshaped, "key of another shape", "keys of another shape"),
    ]
    if any(faults):
        raise ValueError(
            f"{source} does not fit {type(model).__name__}: {'; '.join(filter(None, faults))}. "
            "Name the architecture that it was trained with, or save the state dict of this one"
        )
    model.load_state_dict(state, strict=False)


def _list(items: list[str], one: str, many: str | None = None) -> str:
    if not items:
        return ""
    more = f", … {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    noun = one if len(items) == 1 else many or one + "s"
    return f"{len(items)} {noun} ({', '.join(items[:_SHOWN])}{more})"


def _describe(held: object) -> str:
    if isinstance(held, dict):
        return f"a dict with the keys {', '.join(map(str, list(held)[:_SHOWN])) or '(none)'}"
    return f"a {type(held).__name__}"
