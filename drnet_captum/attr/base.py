"""What every class that reads a tape shares: how a call records, or replays, and reads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Unpack

from captum.attr import GradientAttribution
from torch import Tensor

from drnet_captum._captum import format_additional_forward_args
from drnet_captum.attr.reading import Needs, Reading, Tensors, captured_reading, layers_of
from drnet_captum.attr.score import Score, scores
from drnet_captum.engine.naming import INPUT, Layer, find_module
from drnet_captum.engine.running import Running, RunOptions
from drnet_captum.engine.tape import Tape
from drnet_captum.engine.targets import Target
from drnet_captum.engine.unwrap import eager


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


def first_of(maps: Tensors, as_tuple: bool) -> Tensor | Tensors:
    """The single target's maps, in the form in which the inputs came."""
    single = tuple(m[0] for m in maps)
    return single if as_tuple else single[0]
