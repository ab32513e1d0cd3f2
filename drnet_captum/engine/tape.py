"""Record a forward pass once, replay its backward pass many times. The only place that runs a model for gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from drnet_captum.engine import graph
from drnet_captum.engine.inputs import (
    MemoryFormat,
    arranged,
    as_tuple,
    check_differentiable,
    is_tokens,
)
from drnet_captum.engine.naming import INPUT, Layer, find_module, layer_name
from drnet_captum.engine.recording import Recording
from drnet_captum.engine.rules import RULES, Rule, Switch, is_rule_node
from drnet_captum.engine.running import Precision, Running
from drnet_captum.engine.state import check_parameters, differentiable, kept, without_autocast
from drnet_captum.engine.taps import tapped
from drnet_captum.engine.targets import check_output
from drnet_captum.engine.unwrap import eager, uncompiled
from drnet_captum.engine.waiting import before_norms

CHECKPOINTED = (
    "the model recomputes parts of its forward pass in the backward pass, where they cannot be recorded: "
    "turn gradient checkpointing off (timm: model.set_grad_checkpointing(False))"
)


class Tape:
    """One recorded forward pass of a model, and any number of backward passes through it.

    Args:
        forward_func: the model, or any function of tensors.
        layers: modules, or dotted names of modules, whose outputs are kept and can be differentiated by.
        wrt_input: whether gradients by the inputs will be asked for. If not, no graph is made below the lowest layer.
        at_layer_inputs: keep what goes into the layers, and not what comes out.
        rules: the backward rules that will be asked for. Plain gradients alone are recorded faster.
        memory_format, precision: as for :class:`drnet_captum.engine.running.RunOptions`.
        captured: the calls are being written down, to be replayed on other inputs. No value is looked at, and every
            layer is a lean node: what that costs is paid once.

    Nothing of the caller's is changed: parameters are taken as constants on the way, gradients are never accumulated,
    and hooks, modes, random generators and running statistics are back as they were when ``forward`` returns or raises.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> with Tape(model, layers=("0",)) as tape:
        ...     scores = tape.forward(torch.ones(5, 4))
        ...     plain = tape.gradient(scores[:, 1])
        ...     guided = tape.gradient(scores[:, 1], rule="guided")
        ...     at_layer = tape.gradient(scores[:, 0], wrt="0")
        >>> plain.shape, guided.shape, at_layer.shape
        (torch.Size([5, 4]), torch.Size([5, 4]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layers: Sequence[Layer] = (),
        *,
        wrt_input: bool = True,
        at_layer_inputs: bool = False,
        rules: Iterable[Rule] = RULES,
        memory_format: MemoryFormat = "auto",
        precision: Precision | None = None,
        captured: bool = False,
    ) -> None:
        self.running = Running(memory_format, precision)
        self.model = eager(forward_func)
        self.modules = {name: find_module(self.model, name) for name in layers}
        self.wrt_input = wrt_input
        self.at_layer_inputs = at_layer_inputs
        self.inputs: tuple[Tensor, ...] = ()
        self.output: Tensor | None = None
        self._kept: dict[Layer, tuple[Tensor, ...]] = {}
        self._tuple_input = False
        self.rules = ("plain", *rules)
        self.captured = captured
        self._recording = self._new_recording()
        self._walked: list[str] | None = None
        self._sites = 0

    def __enter__(self) -> Tape:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the recorded graph."""
        self.inputs, self.output, self._kept = (), None, {}
        self._recording = self._new_recording()

    def _new_recording(self) -> Recording:
        ruled = any(rule != "plain" for rule in self.rules)
        return Recording(Switch(), ruled, small=0 if self.captured else None)

    def forward(self, *inputs: Any) -> Tensor:
        """Run the model on the inputs, the first being explained (a tuple of tensors counts as several inputs).

        Returns the model's output, attached to the recorded graph.
        """
        explained, additional = inputs[0], inputs[1:]
        self._tuple_input = isinstance(explained, tuple)
        values = as_tuple(explained, look=not self.captured)
        if self.wrt_input or not is_tokens(values):
            check_differentiable(values)
        if isinstance(self.model, nn.Module) and self.model.training:
            warnings.warn(
                "the model is in train mode: call model.eval() to explain what it answers in use", stacklevel=3
            )
        check_parameters(self.model)
        with differentiable(), kept(self.model, {v.device for v in values}), uncompiled():
            self.inputs = tuple(v.detach() for v in values)
            if self.wrt_input:
                self.inputs = tuple(v.clone().requires_grad_() for v in self.inputs)
            # Copies, so that a model that writes into its input writes into ours, and not into a leaf.
            copies = tuple(arranged(v, self.running.memory_format) for v in self.inputs)
            copies = tuple(c.clone() if c is v else c for c, v in zip(copies, self.inputs, strict=True))
            try:
                casting = self.running.casting(values[0].device)
                with tapped(self.modules, self.at_layer_inputs) as self._kept, casting:
                    if not self.captured:  # graphs that are written down are gone over as a whole
                        self._recording.before_norms = before_norms(self.model)
                    with self._recording:
                        output = self.model(*copies, *additional)
                output = self._widened(check_output(output))
            finally:
                self._recording.forget()
        self.output = output
        for name in self.modules:
            if name not in self._kept:
                raise ValueError(
                    f"layer {layer_name(name)} was not run in the forward pass, so there is nothing to explain there"
                )
        return self.output

    def activation(self, layer: Layer) -> tuple[Tensor, ...]:
        """What the layer put out (or took in), detached: one tensor, or as many as it has."""
        return tuple(self._widened(t.detach()) for t in self._kept[layer])

    def _widened(self, value: Tensor) -> Tensor:
        """What the precision narrowed, in the inputs' own dtype: maps are worked out in that."""
        narrowed = self.running.precision == "bfloat16" and value.dtype == torch.bfloat16
        return value.to(self.inputs[0].dtype) if narrowed and self.inputs[0].is_floating_point() else value

    def kept_tensors(self, layer: Layer) -> tuple[Tensor, ...]:
        """The layer's tensors, attached to the recorded graph."""
        return self._kept[layer]

    def gradient(
        self, y: Tensor, wrt: Layer = INPUT, rule: Rule = "plain", *, keep: bool = True
    ) -> Tensor | tuple[Tensor, ...]:
        """Gradient of the sum of ``y`` by the input ("input") or by a layer.

        Args:
            y: scores of the examples, (N,), computed from the output or from a layer's tensors.
            wrt: "input", or a layer as it was named to the tape.
            rule: the backward rule of activations: "plain", "guided" or "deconv".
            keep: keep the graph for further replays.

        Raises:
            ValueError: y does not depend on what it is to be differentiated by; or, for the rules "guided" and
                "deconv", the forward pass met no activation, or some that the tape could not reach (scripted).
        """
        found = self.gradients([y], [wrt], rule, keep=keep)[wrt]
        several = len(found) > 1 or (wrt == INPUT and self._tuple_input)
        return tuple(g[0] for g in found) if several else found[0][0]

    def gradients(
        self,
        ys: Sequence[Tensor],
        wrt: Iterable[Layer],
        rule: Rule = "plain",
        *,
        keep: bool = True,
        grad_kwargs: Mapping[str, Any] | None = None,
    ) -> dict[Layer, tuple[Tensor, ...]]:
        """Gradients of K scores by several places at once: ``{place: tensors of shape (K, *place's shape)}``."""
        if rule not in RULES:
            raise ValueError(f"expected rule to be one of {', '.join(RULES)}, got {rule!r}")
        if rule not in self.rules:
            raise ValueError(f"the tape was made for other rules: Tape(…, rules=({rule!r}, …)) to ask for {rule!r}")
        places = list(wrt)
        if INPUT in places and not self.wrt_input:
            raise ValueError("the tape was made with wrt_input=False: it has no graph below its layers")
        sources = [self.inputs if place == INPUT else self._kept[place] for place in places]
        flat = [t for source in sources for t in source]
        self._walk()
        if rule != "plain":
            self._check_rule(rule)
        unreached = f"the target does not depend on {' or '.join(map(layer_name, places))}: no gradient reaches it"
        if not torch.is_grad_enabled():
            unreached += " (a score taken from the output while gradients are off has no graph)"
        if not all(y.requires_grad for y in ys):
            raise ValueError(unreached)
        switch = self._recording.switch
        switch.rule, switch.batched = rule, len(ys) > 1 and INPUT not in places
        try:
            with differentiable(), without_autocast(flat[0].device):
                rows = self._replay(ys, flat, keep, dict(grad_kwargs or {}), switch.batched)
        except CheckpointError as error:
            raise ValueError(CHECKPOINTED) from error
        finally:
            switch.rule, switch.batched = "plain", False
        grads = [self._stacked([row[i] for row in rows], t) for i, t in enumerate(flat)] if rows else []
        if all(g is None for g in grads):
            raise ValueError(unreached)
        whole = [t.new_zeros((len(ys), *t.shape)) if g is None else g for g, t in zip(grads, flat, strict=True)]
        filled = map(self._widened, whole)
        return {place: tuple(next(filled) for _ in source) for place, source in zip(places, sources, strict=True)}

    def _replay(
        self, ys: Sequence[Tensor], flat: list[Tensor], keep: bool, options: dict[str, Any], batched: bool
    ) -> list[Sequence[Tensor | None]]:
        options = {"allow_unused": True, "retain_graph": True, **options}
        if batched:
            stacked = torch.stack([y.sum() for y in ys])
            seeds = torch.eye(len(ys), dtype=stacked.dtype, device=stacked.device)
            found = torch.autograd.grad(
                stacked, flat, seeds, is_grads_batched=True, **{**options, "retain_graph": keep}
            )
            return [[None if g is None else g[k] for g in found] for k in range(len(ys))]
        rows: list[Sequence[Tensor | None]] = []
        for k, y in enumerate(ys):
            last = k == len(ys) - 1 and not keep
            rows.append(torch.autograd.grad(y.sum(), flat, **{**options, "retain_graph": not last}))
        return rows

    @staticmethod
    def _stacked(grads: list[Tensor | None], like: Tensor) -> Tensor | None:
        if all(g is None for g in grads):
            return None
        return torch.stack([torch.zeros_like(like) if g is None else g.contiguous() for g in grads])

    def _walk(self) -> None:
        """Look the recorded graph over, once."""
        if self._walked is not None:
            return
        if self.output is None:
            raise RuntimeError("nothing is recorded: call tape.forward(inputs) first")
        found = list(graph.nodes([self.output, *(t for tensors in self._kept.values() for t in tensors)]))
        if any("CheckpointFunction" in node.name() for node in found):
            raise ValueError(CHECKPOINTED)
        self._sites = sum(map(is_rule_node, found))
        self._walked = graph.escaped_activations(found, self._recording.gates)
        graph.fold_batch_norms(found, always=self.captured)
        if any("BackwardHookFunction" in node.name() for node in found):
            self._recording.switch.in_place = False  # the caller's hooks may keep gradients

    def _check_rule(self, rule: Rule) -> None:
        if self._walked:
            raise ValueError(
                f"the rule {rule!r} cannot reach {', '.join(self._walked)}: they are inside scripted or threaded "
                "code, or in a custom autograd function; pass the eager model"
            )
        if not self._sites:
            raise ValueError(
                f"the rule {rule!r} met no activation in the forward pass, so it would be a plain gradient: "
                "use the plain gradient, or write the model with torch's activation functions"
            )
