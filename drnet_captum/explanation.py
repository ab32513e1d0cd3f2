"""One call, many methods, one recorded forward pass."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Unpack

import torch
from captum.attr import LayerAttribution
from torch import Tensor

from drnet_captum.attr.base import TapeAttribution, additional_args
from drnet_captum.attr.drnet import DRNet
from drnet_captum.attr.exact_cam import CAM
from drnet_captum.attr.gradient import InputGradient, Saliency, SmoothGrad
from drnet_captum.attr.gradient_free import ScoreCAM
from drnet_captum.attr.guided_grad_cam import GuidedGradCAM
from drnet_captum.attr.reading import Needs, Reading, captured_reading, layers_of
from drnet_captum.attr.rise import RISE
from drnet_captum.attr.score import scores
from drnet_captum.engine.inputs import as_tuple, check_differentiable, is_tokens
from drnet_captum.engine.naming import INPUT, Layer, find_module
from drnet_captum.engine.running import Running, RunOptions
from drnet_captum.engine.tape import Tape
from drnet_captum.engine.targets import Target
from drnet_captum.engine.unwrap import eager
from drnet_captum.layers.discovery import LayerDiscoveryError, target_layer_for
from drnet_captum.registry import Method, find_methods

LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
AS_THEY_ARE = "none"  # layer-size maps stay of the layer's size


class Explanations(dict[str, Any]):
    """Maps by the names of their methods, and the answer that they explain.

    Attributes:
        scores: what the model returned, (N, C), of the same forward pass.
        targets: the K targets explained; the predicted classes where none were given.
    """

    scores: Tensor
    targets: list[Target]


class _AbsoluteGradient(InputGradient):
    """Captum's Saliency, read from a tape."""

    def read_gradient(self, inputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(g.abs() for g in gradients)


def explain(
    model: Callable[..., Any],
    inputs: Any,
    target: Any = None,
    methods: str | Iterable[str] | None = None,
    *,
    classes: Sequence[Any] | None = None,
    layer: Layer | None = None,
    additional_forward_args: Any = None,
    interpolate_mode: str | None = None,
    progress: Callable[[str], None] | None = None,
    **running: Unpack[RunOptions],
) -> Explanations:
    """Explain a model's answers by many methods on one forward pass.

    All gradient methods read one tape: one forward pass, and one backward pass for each backward rule and target.

    Args:
        model: any model or function that takes the inputs and returns scores (N, C).
        inputs: a tensor, examples first, or a tuple of them.
        target: one class, or one for each example (Captum's forms). None: the class with the highest score of each
            example. On (N, C) outputs a tuple means the same as ``classes``.
        methods: names of the registry (see :func:`drnet_captum.methods`), or "all". None: the classical ones. With None
            and "all", methods that are not defined for this model (CAM on most heads) are left out with a warning;
            a method that is named raises.
        classes: K targets, each of them for every example; the maps then have a first dimension of K.
        layer: where the CAM family looks: a module or dotted name. None: found automatically. For integer tokens: the
            embedding, to which everything is attributed.
        additional_forward_args: as in Captum.
        interpolate_mode: how layer-size maps are brought to the input's size. None: linear, bilinear or trilinear.
            "none": they stay as large as the layer, which Captum calls its layer attribution.
        progress: called with each method's title before it is computed.
        memory_format: "auto" runs images channels last on a CPU; "preserve" leaves them as they are; "channels_last".
        precision: "bfloat16" runs the model under autocast and works the maps out in the inputs' dtype; "float32"
            switches the caller's autocast off.
        compile: capture the passes of the first call for a shape of inputs, and replay them at the next ones.

    Returns:
        name → maps at input size: (N, C, H, W) for input-size methods, (N, 1, H, W) for DRNet and the CAM family;
        (N, t) for tokens; (K, N, …) with ``classes``. Raw, signed. A tuple of them where the inputs are a tuple.
        The dict's ``scores`` are the model's answer, (N, C).

    Raises:
        ValueError: unknown method or layer, target outside the output, NaN inputs, an empty batch.
        TypeError: inputs or outputs that are no tensors (says how to wrap the model).

    Example:
        >>> import torch, timm
        >>> model = timm.create_model("resnet18", num_classes=10).eval()
        >>> maps = explain(model, torch.rand(2, 3, 64, 64), methods=("grad_cam", "guided_backprop"))
        >>> {name: tuple(m.shape) for name, m in maps.items()}
        {'grad_cam': (2, 1, 64, 64), 'guided_backprop': (2, 3, 64, 64)}
        >>> explain(model, torch.rand(2, 3, 64, 64), classes=[0, 3, 7], methods="grad_cam")["grad_cam"].shape
        torch.Size([3, 2, 1, 64, 64])
    """
    run = Running(**running)
    chosen = find_methods(methods)
    lenient = methods is None or methods == "all"
    values = as_tuple(inputs)
    extra = additional_args(additional_forward_args)
    tokens = is_tokens(values)
    if not tokens:
        check_differentiable(values)
    elif layer is None:
        raise TypeError("expected layer= with the model's embedding, as integer tokens have no gradient")
    if lenient:
        chosen = [m for m in chosen if not (tokens and m.cls in (SmoothGrad, ScoreCAM, GuidedGradCAM, RISE, DRNet))]
    given = None if layer is None else find_module(eager(model), layer)
    found_layer = given
    if given is None and any(m.uses_layer for m in chosen):
        try:
            found_layer = target_layer_for(model, values, extra).module
        except LayerDiscoveryError as error:
            if not lenient:
                raise
            left_out = [m.title for m in chosen if m.uses_layer]
            warnings.warn(f"{', '.join(left_out)} are left out: {error}", stacklevel=2)
            chosen = [m for m in chosen if not m.uses_layer]
    # CAM may need a layer inside the classifier, and looks for it itself.
    makers = {m.name: _maker(m, model, given if m.cls is CAM else found_layer, tokens, running) for m in chosen}
    readers = {name: maker for name, maker in makers.items() if _reads_tape(maker)}
    needs = Needs()
    for reader in readers.values():
        needs |= reader.needs()
    source: Layer = given if tokens and given is not None else INPUT
    maps = Explanations()
    read_layer = found_layer if needs.layer else None
    one_pass = _one_pass(model, inputs, extra, (target, classes), needs, run, read_layer, source)
    with one_pass as (reading, targets, several):
        maps.scores, maps.targets = reading.output, targets
        for method in chosen:
            if progress is not None:
                progress(method.title)
            maker = makers[method.name]
            try:
                if method.name in readers:
                    found = _read(maker, reading, interpolate_mode)
                else:
                    found = _compute(method, maker, inputs, targets, additional_forward_args)
                sized = _at_input_size(method, found, values, interpolate_mode)
            except ValueError as error:
                if not lenient:
                    raise
                warnings.warn(f"{method.title} is left out: {error}", stacklevel=2)
                continue
            rows = tuple(m if several else m[0] for m in sized)
            maps[method.name] = rows if isinstance(inputs, tuple) and len(rows) == len(values) else rows[0]
    return maps


def _maker(method: Method, model: Any, layer: Layer | None, tokens: bool, running: RunOptions) -> Any:
    """The method's attribution object for this call; one that captures nothing runs beside those that do."""
    if not getattr(method.cls, "_is_captured", False):
        running = {key: value for key, value in running.items() if key != "compile"}  # type: ignore[assignment]
    if method.cls is Saliency:
        return _AbsoluteGradient(model, layer if tokens else None, **running)
    if method.cls is RISE:
        return RISE(model, **running)
    if not issubclass(method.cls, TapeAttribution):
        return method.cls(model, layer) if method.uses_layer else method.cls(model)
    if method.uses_layer or (tokens and issubclass(method.cls, InputGradient)):
        return method.cls(model, layer, **running)
    return method.cls(model, **running)


def _reads_tape(maker: Any) -> bool:
    """Whether the common tape serves this method. CAM may want a layer of its own; others run passes of their own."""
    return isinstance(maker, TapeAttribution) and not isinstance(maker, (SmoothGrad, ScoreCAM, CAM, DRNet))


@contextlib.contextmanager
def _one_pass(
    model: Any,
    inputs: Any,
    extra: tuple[Any, ...],
    asked: tuple[Any, Sequence[Any] | None],
    needs: Needs,
    run: Running,
    layer: Layer | None,
    source: Layer,
) -> Iterator[tuple[Reading, list[Target], bool]]:
    """What all methods read, recorded or replayed, the K targets, and whether the maps keep their dimension."""
    if run.compile:
        chosen, several = _targets(*asked, is_flat=True)
        reading = captured_reading(model, inputs, extra, chosen, needs, run, layer, source)
        yield reading, chosen or [_predicted(reading.output)], several
        return
    with Tape(
        model,
        layers_of(layer, source),
        wrt_input=source == INPUT and bool(needs.input_rules),
        rules=needs.input_rules,
        memory_format=run.memory_format,
        precision=run.precision,
    ) as tape:
        output = tape.forward(inputs, *extra)
        chosen, several = _targets(*asked, is_flat=output.dim() == 2)
        targets = chosen or [_predicted(output)]
        yield Reading(tape, [scores(output, t) for t in targets], needs, layer, source), targets, several


def _predicted(output: Tensor) -> Target:
    """The class with the highest score of each example; None where there is one score."""
    return output.argmax(1).tolist() if output.dim() == 2 and output.shape[1] > 1 else None


def _targets(target: Any, classes: Sequence[Any] | None, is_flat: bool) -> tuple[list[Target] | None, bool]:
    """The K targets, or None for the predicted one, and whether the maps keep their dimension."""
    if classes is not None and target is not None:
        raise ValueError("expected target or classes, got both: classes are the targets of every example")
    if classes is None and isinstance(target, tuple) and is_flat:
        classes = target
    if classes is not None:
        if isinstance(classes, (str, Tensor)) or len(classes) == 0:
            raise ValueError(f"expected classes to be a list of at least one target, got {classes!r}")
        return list(classes), True
    return None if target is None else [target], False


def _read(maker: TapeAttribution, reading: Reading, interpolate_mode: str | None) -> tuple[Tensor, ...]:
    if isinstance(maker, GuidedGradCAM):
        spatial = reading.inputs[0].dim() - 2
        chosen = None if interpolate_mode == AS_THEY_ARE else interpolate_mode
        return maker.read(reading, chosen or LINEAR_MODES.get(spatial, "nearest"))
    return maker.read(reading)


def _compute(
    method: Method, maker: Any, inputs: Any, targets: list[Target], additional_forward_args: Any
) -> tuple[Tensor, ...]:
    """Methods that run the model themselves, on all targets at once where they can."""
    if hasattr(maker, "attribute_classes"):
        return maker.attribute_classes(inputs, targets, additional_forward_args)  # type: ignore[no-any-return]
    rows = [maker.attribute(inputs, target=t, additional_forward_args=additional_forward_args) for t in targets]
    if isinstance(rows[0], tuple):
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))
    return (torch.stack(rows),)


def _at_input_size(
    method: Method, maps: tuple[Tensor, ...], values: tuple[Tensor, ...], mode: str | None
) -> tuple[Tensor, ...]:
    """Layer-size maps (K, N, 1, h, w) brought to the first input's size; others as they are."""
    if method.output != "layer" or mode == AS_THEY_ARE:
        return maps
    sized = []
    for m in maps:
        spatial = values[0].shape[2:]
        if m.dim() != len(spatial) + 3 or not spatial or m.shape[3:] == spatial:
            sized.append(m)
            continue
        flat = LayerAttribution.interpolate(m.flatten(0, 1), tuple(spatial), mode or LINEAR_MODES[len(spatial)])
        sized.append(flat.unflatten(0, m.shape[:2]))
    return tuple(sized)
