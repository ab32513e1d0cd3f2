"""The passes of an explanation as one graph of kernel calls: captured for a shape of inputs, replayed for the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from drnet_captum.engine.fingerprint import Fingerprint
from drnet_captum.engine.inputs import as_tuple, check_differentiable, is_tokens
from drnet_captum.engine.naming import INPUT, Layer
from drnet_captum.engine.rules import Rule
from drnet_captum.engine.running import Running
from drnet_captum.engine.state import attributes_kept, is_autocast, kept, without_autocast
from drnet_captum.engine.tape import Tape
from drnet_captum.engine.targets import Target, select
from drnet_captum.engine.unwrap import eager

MOST = 8  # graphs kept of one model: each has its own copies of the weights that were folded
BY_VALUES = "trying to get value out of a tracing tensor"  # in what the tracer says
Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Plan:
    """What is read from the passes.

    Args:
        gradients: by which places gradients are taken, under each rule.
        layers: whose activations are kept.
        at_layer_inputs: keep what goes into the layers, and not what comes out.
        log_prob: y is the target's log-probability and not its logit.
    """

    gradients: Mapping[Rule, Sequence[Layer]]
    layers: tuple[Layer, ...] = ()
    at_layer_inputs: bool = False
    log_prob: bool = False

    def key(self) -> tuple[Any, ...]:
        """The plan as something hashable that keeps no module alive."""
        gradients = tuple((rule, tuple(map(weak, places))) for rule, places in self.gradients.items())
        return gradients, tuple(map(weak, self.layers)), self.at_layer_inputs, self.log_prob


@dataclass(frozen=True)
class Found:
    """What the passes gave: output (N, C), K scores of shape (N,), activations, gradients (K, *place's shape)."""

    output: Tensor
    ys: Tensors
    activations: dict[Layer, Tensors]
    gradients: dict[tuple[Rule, Layer], Tensors]
    errors: Mapping[Rule, str] = field(default_factory=dict)  # of rules that have no gradients

    def gradient(self, rule: Rule, place: Layer) -> Tensors:
        """The gradients under a rule; the error of the plain passes, where they have none."""
        if rule in self.errors:
            raise ValueError(self.errors[rule])
        return self.gradients[rule, place]


@dataclass
class Captured:
    """A graph of kernel calls, from the tensors of a call and the (K, N) chosen classes to a list of tensors."""

    call: Callable[..., Sequence[Tensor]]
    counts: list[int]  # of tensors at each place: layers' activations, then gradients
    classes: int
    errors: dict[Rule, str]  # of rules under which there are no gradients
    is_random: bool

    def sorted(self, results: Sequence[Tensor], plan: Plan) -> Found:
        """The list of tensors by what they are."""
        output, ys, *rest = results
        tensors, counts = iter(rest), iter(self.counts)
        activations = {layer: tuple(islice(tensors, next(counts))) for layer in plan.layers}
        gradients = {
            (rule, place): tuple(islice(tensors, next(counts)))
            for rule, places in plan.gradients.items()
            if rule not in self.errors
            for place in places
        }
        return Found(output, ys.unbind(), activations, gradients, self.errors)


@dataclass
class Graphs:
    """What is captured of one model, as long as the model is what it was then."""

    fingerprint: Fingerprint
    captured: dict[Any, Captured] = field(default_factory=dict)


_graphs: WeakKeyDictionary[nn.Module, Graphs] = WeakKeyDictionary()


def passes(
    forward_func: Callable[..., Any],
    inputs: Any,
    extra: tuple[Any, ...],
    plan: Plan,
    targets: Sequence[Target] | None,
    running: Running,
    copies: int = 1,
) -> Found:
    """The passes of a plan, captured at the first call for their shapes and replayed from then on.

    On a CPU the graph's calls run in a row, without autograd, modes or Python code of the model. On CUDA the graph goes
    through ``torch.compile(mode="reduce-overhead")``, which has not been tried on a GPU yet. Graphs are dropped when
    the model is collected, and when something in it has changed (see :class:`Fingerprint` for what is noticed).

    Args:
        forward_func: the model.
        inputs: a tensor, or a tuple of them, examples first.
        extra: further arguments of the model. Those that are no tensors are part of what is captured.
        plan: what is read.
        targets: K targets of every example (Captum's forms). None: the class of the highest score of each example.
        running: layout and precision.
        copies: the inputs are so many copies of the examples, one set after the other.

    Raises:
        ValueError: a model that cannot be captured (a function, one in train mode or with hooks, one whose code looks
            at values, one that does not return scores (N, C)), an argument that cannot be hashed, and whatever the
            plain passes raise: a target outside the output, NaN inputs, a rule that met no activation.
    """
    model = eager(forward_func)
    if not isinstance(model, nn.Module):
        raise ValueError("compile=True needs the model as a torch.nn.Module, got a function: leave it out")
    values = as_tuple(inputs)
    if is_tokens(values):
        raise ValueError("compile=True does not serve integer tokens: leave it out")
    check_differentiable(values)
    whole = _Passes(model, plan, running, inputs, extra)
    tensors = whole.tensors
    k = None if targets is None else len(targets)
    captured = graphs_of(model).captured
    key = whole.key(k)
    found = captured.pop(key, None) or capture(whole, k)
    while len(captured) >= MOST:
        del captured[next(iter(captured))]
    captured[key] = found  # the last one used comes last
    if targets is not None:
        every = torch.arange(found.classes).expand(len(values[0]) // copies, -1)
        index = torch.stack([select(every, target) for target in targets]).repeat(1, copies)  # (K, N)
        tensors = [*tensors, index.to(values[0].device)]
    return found.sorted(replay(found, model, tensors), plan)


def graphs_of(model: nn.Module) -> Graphs:
    """What is captured of a model; nothing, if it has changed since."""
    graphs = _graphs.get(model)
    if graphs is None or not graphs.fingerprint.holds(model):
        graphs = _graphs[model] = Graphs(Fingerprint(model))
    return graphs


class _Passes:
    """The passes as a function of tensors alone, run once to be captured."""

    def __init__(self, model: nn.Module, plan: Plan, running: Running, inputs: Any, extra: tuple[Any, ...]) -> None:
        self.model, self.plan, self.running = model, plan, running
        self.leaves, self.form = pytree.tree_flatten((inputs, extra))
        self.tensors = [leaf.detach() for leaf in self.leaves if isinstance(leaf, Tensor)]
        self.counts: list[int] = []
        self.classes = 0
        self.errors: dict[Rule, str] = {}

    def key(self, k: int | None) -> tuple[Any, ...]:
        """Everything that the graph depends on, but for the model, as something hashable that keeps no module alive."""
        device = self.tensors[0].device
        casting = torch.get_autocast_dtype(device.type) if is_autocast(device) else None
        fixed = tuple(map(described, self.leaves))
        return self.plan.key(), self.running, k, fixed, str(self.form), casting

    def __call__(self, index: Tensor | None, *tensors: Tensor) -> list[Tensor]:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        inputs, extra = pytree.tree_unflatten(leaves, self.form)
        plan = self.plan
        tape = Tape(
            self.model,
            plan.layers,
            wrt_input=any(INPUT in places for places in plan.gradients.values()),
            at_layer_inputs=plan.at_layer_inputs,
            rules=tuple(plan.gradients),
            memory_format=self.running.memory_format,
            precision=self.running.precision,
            captured=True,
        )
        with tape:
            output = tape.forward(inputs, *extra)
            if output.dim() != 2 or len(output) != len(tape.inputs[0]):
                raise ValueError(
                    f"compile=True needs a model that returns scores (N, C), got {tuple(output.shape)}: leave it out"
                )
            self.classes = output.shape[1]
            chosen = output.detach().argmax(1)[None] if index is None else index
            ys = chosen_scores(output, chosen, plan.log_prob)
            results = [tape.activation(layer) for layer in plan.layers]
            for i, (rule, places) in enumerate(plan.gradients.items()):
                try:
                    found = tape.gradients(ys, places, rule, keep=i + 1 < len(plan.gradients))
                except ValueError as error:  # of those who will ask for this rule
                    self.errors[rule] = str(error)
                else:
                    results += [found[place] for place in places]
        self.counts = [len(tensors) for tensors in results]
        return [output.detach(), torch.stack(ys).detach(), *(t for tensors in results for t in tensors)]


def chosen_scores(output: Tensor, index: Tensor, log_prob: bool) -> Tensors:
    """K scores (N,) of an output (N, C), at the classes (K, N)."""
    with torch.enable_grad():
        whole = torch.log_softmax(output, 1) if log_prob else output
        return whole.gather(1, index.T).unbind(1)


def capture(whole: _Passes, k: int | None) -> Captured:
    """Run the passes once, write down every kernel that they call, and prepare that graph."""
    from torch.fx.experimental.proxy_tensor import make_fx  # here, because it takes the compiler with it

    from drnet_captum.engine.prepared import is_random, prepare

    first = whole.tensors[0]
    run: Callable[..., list[Tensor]] = (lambda *t: whole(None, *t)) if k is None else (lambda *t: whole(t[-1], *t[:-1]))
    try:
        with attributes_kept(whole.model), torch.inference_mode(False):
            index = [] if k is None else [torch.zeros(k, len(first), dtype=torch.int64, device=first.device)]
            module = make_fx(run)(*whole.tensors, *index)
            with torch.no_grad(), without_autocast(first.device):
                prepare(module)
    except RuntimeError as error:
        if BY_VALUES not in str(error):
            raise
        raise ValueError("compile=True cannot capture a model that decides by values: leave it out") from error
    call = compiled(module) if first.device.type == "cuda" else module
    return Captured(call, whole.counts, whole.classes, whole.errors, is_random(module.graph))


def compiled(module: Any) -> Callable[..., list[Tensor]]:
    """The graph as a CUDA graph. The next replay overwrites the memory of its results: they are copied."""
    call: Callable[..., Any] = torch.compile(module, mode="reduce-overhead", fullgraph=True)
    return lambda *tensors: [t.clone() for t in call(*tensors)]


def replay(found: Captured, model: nn.Module, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    device = tensors[0].device
    with torch.inference_mode(False), torch.no_grad(), without_autocast(device):
        if not found.is_random:
            return found.call(*tensors)
        with kept(model, {device}):
            return found.call(*tensors)


def described(leaf: Any) -> Any:
    """An argument of the model as part of a key: a tensor by its form, anything else by its value."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    try:
        hash(leaf)
    except TypeError as error:
        raise ValueError(
            f"compile=True needs additional arguments that are tensors or hashable, got {type(leaf).__name__}: "
            "leave it out"
        ) from error
    return type(leaf), leaf


def weak(layer: Layer) -> Any:
    return layer if isinstance(layer, str) else ref(layer)
