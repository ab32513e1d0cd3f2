"""Every method by name: its class, its paper, what it needs and what it returns."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal

import captum.attr
from captum.attr import Attribution

from drnet_captum.attr.backprop import DeconvNet, GuidedBackprop
from drnet_captum.attr.cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from drnet_captum.attr.drise import DRISE
from drnet_captum.attr.drnet import DRNet
from drnet_captum.attr.drnet_dissection import DRNetDissection
from drnet_captum.attr.exact_cam import CAM
from drnet_captum.attr.gradient import GradXImage, Saliency, SmoothGrad
from drnet_captum.attr.gradient_free import EigenCAM, ScoreCAM
from drnet_captum.attr.guided_grad_cam import GuidedGradCAM
from drnet_captum.attr.rise import RISE

ENTRY_POINTS = "drnet_captum.methods"


@dataclass(frozen=True)
class Method:
    """A row of the registry.

    Attributes:
        name: how ``explain`` and the command line call it.
        cls: a Captum attribution class; constructed as ``cls(model)`` or, where ``needs`` says so, ``cls(model,
            layer)``.
        title: the name that papers use.
        paper: authors, year, arXiv number.
        needs: "gradient", "layer and gradient", "layer", or "forward passes".
        output: "input": maps of the input's shape; "pixels": (N, 1, H, W) of its size; "layer": (N, 1, h, w) at the
            layer's grid.
        signed: whether maps have negative values that mean something.
        default: whether ``explain`` and ``demo`` include it when no methods are named.
    """

    name: str
    cls: type[Attribution]
    title: str
    paper: str
    needs: Literal["gradient", "layer and gradient", "layer", "forward passes"]
    output: Literal["input", "pixels", "layer"]
    signed: bool = True
    default: bool = True

    @property
    def uses_layer(self) -> bool:
        """Whether the class takes a layer."""
        return "layer" in self.needs or self.output == "layer"


BUILT_IN = (
    Method(
        "saliency", Saliency, "Saliency", "Simonyan et al. 2013, arXiv 1312.6034", "gradient", "input", signed=False
    ),
    Method(
        "grad_x_image", GradXImage, "Gradient × Image", "Shrikumar et al. 2016, arXiv 1605.01713", "gradient", "input"
    ),
    Method("smooth_grad", SmoothGrad, "SmoothGrad", "Smilkov et al. 2017, arXiv 1706.03825", "gradient", "input"),
    Method("deconvnet", DeconvNet, "DeconvNet", "Zeiler & Fergus 2013, arXiv 1311.2901", "gradient", "input"),
    Method(
        "guided_backprop",
        GuidedBackprop,
        "Guided Backprop",
        "Springenberg et al. 2014, arXiv 1412.6806",
        "gradient",
        "input",
    ),
    Method("cam", CAM, "CAM", "Zhou et al. 2016, arXiv 1512.04150", "layer and gradient", "layer", default=False),
    Method("grad_cam", GradCAM, "Grad-CAM", "Selvaraju et al. 2017, arXiv 1610.02391", "layer and gradient", "layer"),
    Method(
        "grad_cam_plus_plus",
        GradCAMPlusPlus,
        "Grad-CAM++",
        "Chattopadhay et al. 2018, arXiv 1710.11063",
        "layer and gradient",
        "layer",
    ),
    Method("layer_cam", LayerCAM, "LayerCAM", "Jiang et al. 2021, IEEE TIP 30", "layer and gradient", "layer"),
    Method("hires_cam", HiResCAM, "HiResCAM", "Draelos & Carin 2020, arXiv 2011.08891", "layer and gradient", "layer"),
    Method("xgrad_cam", XGradCAM, "XGrad-CAM", "Fu et al. 2020, arXiv 2008.02312", "layer and gradient", "layer"),
    Method("eigen_cam", EigenCAM, "Eigen-CAM", "Muhammad & Yeasin 2020, arXiv 2008.00299", "layer", "layer"),
    Method(
        "score_cam",
        ScoreCAM,
        "Score-CAM",
        "Wang et al. 2020, arXiv 1910.01279",
        "forward passes",
        "layer",
        default=False,
    ),
    Method(
        "guided_grad_cam",
        GuidedGradCAM,
        "Guided Grad-CAM",
        "Selvaraju et al. 2017, arXiv 1610.02391",
        "layer and gradient",
        "input",
    ),
    Method("rise", RISE, "RISE", "Petsiuk et al. 2018, arXiv 1806.07421", "forward passes", "input", default=False),
    Method("drnet", DRNet, "DRNet", "Hu et al. 2019, arXiv 1911.08691", "gradient", "pixels"),
)


def methods() -> dict[str, Method]:
    """All methods by name: the library's own, then those that other packages add.

    A package adds methods through the entry-point group ``drnet_captum.methods``: each entry point is a
    :class:`Method`, or a function that returns one. A name that is taken raises.

    Example:
        >>> methods()["grad_cam"].title
        'Grad-CAM'
    """
    found = {method.name: method for method in BUILT_IN}
    for entry in entry_points(group=ENTRY_POINTS):
        loaded: Any = entry.load()
        method = loaded if isinstance(loaded, Method) else loaded()
        if not isinstance(method, Method):
            raise TypeError(
                f"expected the entry point {entry.name!r} of {ENTRY_POINTS} to give a Method, "
                f"got {type(method).__name__}"
            )
        if method.name in found:
            raise ValueError(
                f"the entry point {entry.name!r} of {ENTRY_POINTS} gives a method named {method.name!r}, which exists"
            )
        found[method.name] = method
    return found


def find_methods(names: Any) -> list[Method]:
    """Methods by their names; ``None``: the default ones; "all": all of them."""
    known = methods()
    if names is None:
        return [method for method in known.values() if method.default]
    if isinstance(names, str):
        names = known if names == "all" else [names]
    found = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"unknown method {name!r}{hint}: expected some of {', '.join(known)}")
        if known[name] not in found:
            found.append(known[name])
    if not found:
        raise ValueError(f"expected at least one method, of {', '.join(known)}")
    return found


def register_with_captum() -> list[str]:
    """Put the classes that ``captum.attr`` lacks into it, under their own names; returns the names that are there now.

    Nothing that Captum has is replaced, and calling it again changes nothing.

    Example:
        >>> "GradCAM" in register_with_captum()
        True
        >>> import captum.attr
        >>> captum.attr.GradCAM is GradCAM
        True
    """
    added = []
    for cls in (*(method.cls for method in methods().values()), DRNetDissection, DRISE):
        name = cls.__name__
        if not hasattr(captum.attr, name):
            setattr(captum.attr, name, cls)
        if getattr(captum.attr, name) is cls and not cls.__module__.startswith("captum."):
            added.append(name)
    return added
