"""The libraries' calls side by side: each method as a function without arguments, made before anything is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import drnet_captum as dc
from benchmarks.agreement import Reach
from benchmarks.subjects import Subject

Call = Callable[[], Any]
BEST: dict[str, Any] = {"precision": "bfloat16", "memory_format": "channels_last", "compile": True}
CAPTURED: dict[str, Any] = {"compile": True}
METHODS = ("grad_cam", "guided_backprop", "deconvnet", "guided_grad_cam", "grad_x_image")
SIX = ("saliency", "grad_x_image", "guided_backprop", "deconvnet", "grad_cam", "guided_grad_cam")


@dataclass(frozen=True)
class Side:
    """One library's way to a method.

    Attributes:
        library: its name.
        prepare: makes the call, for a subject of its own: peers may leave hooks and gradients in the model.
        reach: where its answer is not the method's.
        form: our maps brought to the form of theirs.
        package: what has to be installed.
    """

    library: str
    prepare: Callable[[Subject], Call]
    reach: Reach
    form: Callable[[Tensor, Subject], Tensor] = lambda maps, subject: maps
    package: str | None = None


def ours(subject: Subject, method: str, **options: Any) -> Call:
    """One method's maps of every image's class."""
    found = dc.methods()[method]
    places = (subject.layer,) if found.uses_layer else ()
    made = found.cls(subject.model, *places, **options)
    return lambda: made.attribute(subject.x, subject.targets)


def our_panel(subject: Subject, methods: tuple[str, ...], classes: int, **options: Any) -> Call:
    """Many methods' maps of the first classes, by one call."""
    given: dict[str, Any] = {"layer": subject.layer, "interpolate_mode": "nearest", **options}
    return lambda: dc.explain(subject.model, subject.x, classes=range(classes), methods=methods, **given)


def plain_gradient(subject: Subject) -> Tensor:
    """∂y/∂x of every image's class."""
    x = subject.x.detach().requires_grad_()
    y = subject.model(x)[torch.arange(len(x)), subject.targets].sum()
    return torch.autograd.grad(y, x)[0]


def under_autocast(call: Call, device: str) -> Call:
    """The call in bfloat16, as autocast does it."""

    def run() -> Any:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            return call()

    return run


def bound(subject: Subject, method: str, device: str, options: dict[str, Any]) -> Call:
    """What no method can do without: the bare forward pass, and for gradients a backward pass to the input alone.

    Args:
        subject: its model is copied, and has frozen parameters.
        method: Grad-CAM needs the forward pass only.
        device: as of the options.
        options: of our side: the same precision, memory format and compilation. Without any, the model as it comes,
            its images channels last on a CPU, as our side has them.
    """
    last = options.get("memory_format") == "channels_last"
    copied = subject.copied(channels_last=last, frozen=True)
    model = torch.compile(copied.model) if options.get("compile") else copied.model
    x = copied.x
    if not options and torch.device(device).type == "cpu":
        x = x.contiguous(memory_format=torch.channels_last)
    rows = torch.arange(len(x), device=x.device)

    def forward() -> Any:
        with torch.inference_mode():
            return model(x)

    def both() -> Any:
        inputs = x.detach().requires_grad_()
        return torch.autograd.grad(model(inputs)[rows, subject.targets].sum(), inputs)[0]

    call = forward if method == "grad_cam" else both
    return under_autocast(call, device) if options.get("precision") == "bfloat16" else call
