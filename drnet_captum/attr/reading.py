"""What methods read of a recorded pass, or of a captured one: activations, and every gradient once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from drnet_captum.attr.score import Score, check_score
from drnet_captum.engine.capture import Found, Plan, passes
from drnet_captum.engine.inputs import as_tuple
from drnet_captum.engine.naming import INPUT, Layer
from drnet_captum.engine.rules import Rule
from drnet_captum.engine.running import Running
from drnet_captum.engine.tape import Tape
from drnet_captum.engine.targets import Target

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
    def output(self) -> Tensor:
        """What the model returned, (N, C), detached."""
        if self.tape.output is None:
            raise RuntimeError("the tape is closed: ask for the output while it is open")
        return self.tape.output.detach()

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
