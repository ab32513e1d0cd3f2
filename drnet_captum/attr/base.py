"""What every class that reads a tape shares: what it needs recorded, and how a call records, or replays, and reads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import torch
from captum.attr import GradientAttribution
from torch import Tensor

from drnet_captum._captum import format_additional_forward_args
from drnet_captum.engine.capture import Found, Plan, passes
from drnet_captum.engine.inputs import as_tuple
from drnet_captum.engine.naming import INPUT, Layer, find_module
from drnet_captum.engine.rules import Rule
from drnet_captum.engine.running import Running, RunOptions
from drnet_captum.engine.state import differentiable
from drnet_captum.engine.tape import Tape
from drnet_captum.engine.targets import Target, select
from drnet_captum.engine.unwrap import eager

Score = Literal["logit", "log_prob"]
Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Needs:
    """What a method reads: gradients by the input under some rules, a layer's activation, the gradient by the layer."""

    input_rules: tuple[Rule, ...] = ()
    layer: bool = False
    layer_gradient: bool = False

    def __or__(self, other: Needs) -> Needs:
        rules = (*self.input_rules, *(r for r in other.input_rules if r not in self.input_rules))
        return Needs(rules, self.layer or other.layer, self.layer_gradient or other.layer_gradient)


class Reading:
    """K targets of one recorded forward pass. Every gradient is taken once, all its places in one backward pass.

    Args:
        tape: recorded.
        ys: K tensors of shape (N,).
        needs: everything that will be asked for; the graph is let go after the last backward pass of it.
        layer: the layer as it was named to the tape, where ``needs`` has one.
        source: what stands for the input: the input itself, or the embedding layer of a model on tokens.
    """

    def __init__(
        self,
        tape: Tape,
        ys: Sequence[Tensor],
        needs: Needs,
        layer: Layer | None = None,
        source: Layer = INPUT,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.tape, self.ys, self.layer, self.source = tape, ys, layer, source
        self._grad_kwargs = grad_kwargs
        self._plan = plan_of(needs, layer, source)
        self._taken: dict[tuple[Rule, Layer], Tensors] = {}

    @property
    def given(self) -> Tensors:
        """The inputs of the model, detached."""
        return tuple(t.detach() for t in self.tape.inputs)

    @property
    def inputs(self) -> Tensors:
        """What the input-size maps are about, detached: the inputs, or their embedding."""
        return self.given if self.source == INPUT else self._activation(self.source)

    @property
    def activation(self) -> Tensors:
        """The layer's tensors, (N, C, …)."""
        return self._activation(self._layer())

    def input_gradient(self, rule: Rule = "plain") -> Tensors:
        """∂y/∂x of each input under a rule, (K, N, …)."""
        return self._take(rule, self.source)

    def layer_gradient(self) -> Tensors:
        """∂y/∂A of each of the layer's tensors, (K, N, C, …)."""
        return self._take("plain", self._layer())

    def _layer(self) -> Layer:
        if self.layer is None:
            raise RuntimeError("this reading has no layer")
        return self.layer

    def _activation(self, layer: Layer) -> Tensors:
        return self.tape.activation(layer)

    def _take(self, rule: Rule, place: Layer) -> Tensors:
        if (rule, place) not in self._taken:
            places, keep = self._plan[rule], len(self._plan) > 1
            found = self.tape.gradients(self.ys, places, rule, keep=keep, grad_kwargs=self._grad_kwargs)
            del self._plan[rule]  # a rule that raised is still there, to raise again for the next who asks
            self._taken |= {(rule, p): grads for p, grads in found.items()}
        return self._taken[rule, place]


class CapturedReading(Reading):
    """The same of passes that were captured (``compile=True``): they have been replayed before anything is read."""

    def __init__(self, found: Found, given: Tensors, layer: Layer | None, source: Layer) -> None:
        self._found, self._given, self.layer, self.source = found, given, layer, source
        self.ys = found.ys

    @property
    def output(self) -> Tensor:
        """What the model returned, (N, C)."""
        return self._found.output

    @property
    def given(self) -> Tensors:
        return tuple(t.detach() for t in self._given)

    def _activation(self, layer: Layer) -> Tensors:
        return self._found.activations[layer]

    def _take(self, rule: Rule, place: Layer) -> Tensors:
        return self._found.gradient(rule, place)


def captured_reading(
    forward_func: Callable[..., Any],
    inputs: Any,
    extra: tuple[Any, ...],
    targets: Sequence[Target] | None,
    needs: Needs,
    running: Running,
    layer: Layer | None = None,
    source: Layer = INPUT,
    *,
    at_layer_inputs: bool = False,
    score: Score = "logit",
    copies: int = 1,
) -> CapturedReading:
    """A reading of captured passes; arguments and errors as of :func:`drnet_captum.engine.capture.passes`."""
    check_score(score)
    plan = Plan(plan_of(needs, layer, source), layers_of(layer, source), at_layer_inputs, score == "log_prob")
    return CapturedReading(
        passes(forward_func, inputs, extra, plan, targets, running, copies), as_tuple(inputs), layer, source
    )


def plan_of(needs: Needs, layer: Layer | None, source: Layer) -> dict[Rule, list[Layer]]:
    """By which places gradients are taken, under each rule."""
    plan: dict[Rule, list[Layer]] = {rule: [source] for rule in needs.input_rules}
    if needs.layer_gradient and layer is not None:
        places = plan.setdefault("plain", [])
        if layer not in places:
            places.append(layer)
    return plan


def layers_of(layer: Layer | None, source: Layer) -> tuple[Layer, ...]:
    """The layers to be kept, each once."""
    return tuple(dict.fromkeys(place for place in (layer, source) if place is not None and place != INPUT))


class TapeAttribution(GradientAttribution):
    """A Captum attribution that records one forward pass and reads maps from it."""

    def __init__(
        self, forward_func: Callable[..., Any], layer: Layer | None = None, **running: Unpack[RunOptions]
    ) -> None:
        super().__init__(forward_func)
        self.running = Running(**running) if self._is_captured else uncaptured(self, running)
        self.layer = None if layer is None else find_module(eager(forward_func), layer)

    _name: str | None = None
    _is_captured = True  # compile= is of use: everything that is read comes from one tape

    @classmethod
    def get_name(cls) -> str:
        """The class's name as papers write it."""
        return cls._name or cls.__name__

    def needs(self) -> Needs:
        """What this method, as it was constructed, reads from a tape that it shares with others."""
        return Needs()

    def read(self, reading: Reading) -> Tensors:
        """The maps of K targets, (K, N, …), one tensor for each input or for each tensor of the layer."""
        raise NotImplementedError

    @contextlib.contextmanager
    def _reading(
        self,
        inputs: Any,
        targets: Sequence[Target],
        additional_forward_args: Any,
        layer: Layer | None = None,
        source: Layer = INPUT,
        *,
        at_layer_inputs: bool = False,
        score: Score = "logit",
        copies: int = 1,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Iterator[Reading]:
        """K targets of one forward pass, recorded or replayed; the inputs may be ``copies`` sets of the examples."""
        needs = self.needs()
        if self.running.compile:
            if grad_kwargs:
                raise ValueError("compile=True takes no grad_kwargs: leave one of them out")
            yield captured_reading(
                self.forward_func,
                inputs,
                additional_args(additional_forward_args),
                targets,
                needs,
                self.running,
                layer,
                source,
                at_layer_inputs=at_layer_inputs,
                score=score,
                copies=copies,
            )
            return
        wrt_input = source == INPUT and bool(needs.input_rules)
        layers = layers_of(layer, source)
        with self._recorded(inputs, additional_forward_args, layers, wrt_input, at_layer_inputs) as (tape, output):
            ys = [scores(output, target, score, copies) for target in targets]
            yield Reading(tape, ys, needs, layer, source, grad_kwargs)

    @contextlib.contextmanager
    def _recorded(
        self,
        inputs: Any,
        additional_forward_args: Any,
        layers: Sequence[Layer],
        wrt_input: bool,
        at_layer_inputs: bool = False,
    ) -> Iterator[tuple[Tape, Tensor]]:
        """A tape of one forward pass, and the model's output."""
        tape = Tape(
            self.forward_func,
            layers,
            wrt_input=wrt_input,
            at_layer_inputs=at_layer_inputs,
            rules=self.needs().input_rules,
            memory_format=self.running.memory_format,
            precision=self.running.precision,
        )
        with tape:
            yield tape, tape.forward(inputs, *additional_args(additional_forward_args))


def uncaptured(method: Any, running: RunOptions) -> Running:
    """The options of a method that runs the model by itself, and whose passes cannot be captured."""
    if running.get("compile"):
        raise ValueError(f"compile=True has no meaning for {method.get_name()}: leave it out")
    return Running(**running)


def additional_args(value: Any) -> tuple[Any, ...]:
    """Captum's ``additional_forward_args`` as a tuple."""
    return format_additional_forward_args(value) or ()


def check_score(score: str) -> None:
    if score not in ("logit", "log_prob"):
        raise ValueError(f"expected score to be 'logit' or 'log_prob', got {score!r}")


def scores(output: Tensor, target: Target, score: Score = "logit", copies: int = 1) -> Tensor:
    """y of every example: the target's logit, or its log-probability over dimension 1.

    Targets are those of the examples; the output may be of so many ``copies`` of them, one set after the other.
    """
    check_score(score)
    if score == "log_prob" and output.dim() < 2:
        raise ValueError(f"expected scores of several classes, (N, C), for score='log_prob', got {tuple(output.shape)}")
    with differentiable():
        whole = torch.log_softmax(output, dim=1) if score == "log_prob" else output
        if copies == 1:
            return select(whole, target)
        return torch.cat([select(part, target) for part in whole.split(len(whole) // copies)])


def score_for(output: Tensor, score: Score | None) -> Score:
    """The score that was asked for; the log-probability where the output is one score for each of several classes."""
    return score or ("log_prob" if output.dim() == 2 and output.shape[1] > 1 else "logit")


def first_of(maps: Tensors, as_tuple: bool) -> Tensor | Tensors:
    """The single target's maps, in the form in which the inputs came."""
    single = tuple(m[0] for m in maps)
    return single if as_tuple else single[0]
