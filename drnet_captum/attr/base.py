"""What every class that reads a tape shares: what it needs recorded, and how a call records and reads it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import torch
from captum.attr import GradientAttribution
from torch import Tensor

from drnet_captum._captum import format_additional_forward_args
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
        self._plan: dict[Rule, list[Layer]] = {rule: [source] for rule in needs.input_rules}
        if needs.layer_gradient and layer is not None:
            places = self._plan.setdefault("plain", [])
            if layer not in places:
                places.append(layer)
        self._taken: dict[tuple[Rule, Layer], Tensors] = {}

    @property
    def inputs(self) -> Tensors:
        """What the input-size maps are about, detached: the inputs, or their embedding."""
        return (
            tuple(t.detach() for t in self.tape.inputs) if self.source == INPUT else self.tape.activation(self.source)
        )

    @property
    def activation(self) -> Tensors:
        """The layer's tensors, (N, C, …)."""
        return self.tape.activation(self._layer())

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

    def _take(self, rule: Rule, place: Layer) -> Tensors:
        if (rule, place) not in self._taken:
            places = self._plan.pop(rule)
            found = self.tape.gradients(self.ys, places, rule, keep=bool(self._plan), grad_kwargs=self._grad_kwargs)
            self._taken |= {(rule, p): grads for p, grads in found.items()}
        return self._taken[rule, place]


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


def scores(output: Tensor, target: Target, score: Score = "logit") -> Tensor:
    """y of every example: the target's logit, or its log-probability over dimension 1."""
    if score not in ("logit", "log_prob"):
        raise ValueError(f"expected score to be 'logit' or 'log_prob', got {score!r}")
    if score == "log_prob" and output.dim() < 2:
        raise ValueError(f"expected scores of several classes, (N, C), for score='log_prob', got {tuple(output.shape)}")
    with differentiable():
        return select(torch.log_softmax(output, dim=1) if score == "log_prob" else output, target)


def score_for(output: Tensor, score: Score | None) -> Score:
    """The score that was asked for; the log-probability where the output is one score for each of several classes."""
    return score or ("log_prob" if output.dim() == 2 and output.shape[1] > 1 else "logit")


def first_of(maps: Tensors, as_tuple: bool) -> Tensor | Tensors:
    """The single target's maps, in the form in which the inputs came."""
    single = tuple(m[0] for m in maps)
    return single if as_tuple else single[0]
