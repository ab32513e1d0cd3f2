"""Cut layers of graphs that were drawn by hand, and cut nodes against a search that takes every node away in turn."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from drnet_captum import LayerDiscoveryError, find_cut_layers, find_target_layer
from drnet_captum.layers.cuts import flow


class Graph(nn.Module):
    """Named steps, so that every way through them can be written down."""

    def __init__(self, forward):
        super().__init__()
        for name in "abcde":
            setattr(self, name, nn.Conv2d(2, 2, 3, padding=1))
        self.pool, self.flat, self.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def residual(m, x):
    x = m.a(x)
    x = x + m.b(F.relu(x))
    return m.head(m.flat(m.pool(m.c(x))))


def around_everything(m, x):
    y = m.c(m.b(m.a(x)))
    return m.head(m.flat(m.pool(y + x)))


def branches(m, x):
    x = m.a(x)
    return m.head(m.flat(m.pool(m.d(m.b(x) * torch.sigmoid(m.c(x))))))


def two_heads(m, x):
    x = m.a(x)
    return m.head(m.flat(m.pool(m.b(x)))) + m.head(m.flat(m.pool(m.c(x))))


def twice(m, x):
    return m.head(m.flat(m.pool(m.b(m.a(m.a(x))))))


def twice_in_parallel(m, x):
    x = m.a(x)
    return m.head(m.flat(m.pool(m.b(x) + m.b(F.relu(x)))))


def unused_branch(m, x):
    y = m.a(x)
    m.b(y)
    return m.head(m.flat(m.pool(m.c(y))))


@pytest.mark.parametrize(
    ("forward", "cuts"),
    [
        (residual, "ac"),
        (around_everything, ""),
        (branches, "ad"),
        (two_heads, "a"),
        (twice, "ab"),
        (twice_in_parallel, "a"),
        (unused_branch, "ac"),
    ],
)
def test_graphs_with_known_cuts(forward, cuts):
    model = Graph(forward).eval()
    found = [layer.name for layer in find_cut_layers(model, (2, 8, 8))]
    assert [name for name in found if len(name) == 1] == list(cuts)


def test_a_module_called_several_times_is_a_cut_where_its_last_call_is():
    """What the tape keeps of a reused layer is its last output; a layer whose last output is no cut is not offered."""

    def last_is_a_branch(m, x):
        x = m.b(m.a(x))
        return m.head(m.flat(m.pool(m.c(x + m.a(F.relu(x))))))

    found = [layer.name for layer in find_cut_layers(Graph(last_is_a_branch).eval(), (2, 8, 8))]
    assert found == ["b", "c"]


class Ends(nn.Module):
    """A trunk, then two heads: of the trunk's mean, and of the mean of coarser maps made from it."""

    def __init__(self, depth):
        super().__init__()
        self.trunk = nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(depth)))
        self.down, self.head, self.other = nn.Conv2d(2, 2, 2, stride=2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        x = self.trunk(x)
        return self.head(x.mean((2, 3))) + self.other(self.down(x).mean((2, 3)))


def test_a_network_ends_in_branches_where_much_of_it_comes_after_the_last_cut():
    assert find_target_layer(Ends(12).eval(), (2, 8, 8)).name == "trunk"
    with pytest.raises(LayerDiscoveryError, match=r"several branches.* of them, down \(4, 4\), or another"):
        find_target_layer(Ends(2).eval(), (2, 8, 8))


def test_only_the_last_layer_of_a_branch_is_named():
    """A way around everything leaves no cut. Of the other branch, no layer is named that a later one reads."""

    def around(m, x):
        y = m.b(F.avg_pool2d(m.a(F.avg_pool2d(x, 2)), 2))
        return m.head(m.flat(m.pool(y))) + m.head(m.flat(m.pool(x)))

    with pytest.raises(LayerDiscoveryError, match=r"of them, b \(2, 2\), or another"):
        find_target_layer(Graph(around).eval(), (2, 8, 8))


def test_an_average_is_no_layer_to_look_at():
    layers = (nn.Conv2d(2, 2, 3, padding=1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    assert [layer.name for layer in find_cut_layers(nn.Sequential(*layers).eval(), (2, 8, 8))] == ["0"]


def brute_force(root, source):
    """The nodes without which the source cannot be reached from the root."""

    def reaches(without):
        stack, seen = [root], set()
        while stack:
            node = stack.pop()
            if node is without or node in seen or node is None:
                continue
            if node is source:
                return True
            seen.add(node)
            stack.extend(child for child, _ in node.next_functions)
        return False

    nodes, stack = set(), [root]
    while stack:
        node = stack.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            stack.extend(child for child, _ in node.next_functions)
    return {node for node in nodes if not reaches(node)}


@pytest.mark.parametrize("seed", range(20))
def test_cut_nodes_are_the_dominators(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.ones(2, requires_grad=True)
    known = [x.clone()]
    source = known[0].grad_fn
    for _ in range(14):
        i, j = (int(torch.randint(max(0, len(known) - 4), len(known), (), generator=generator)) for _ in range(2))
        other = torch.ones(2, requires_grad=True) if seed % 3 == 0 and i == j else known[j]  # a parameter
        known.append(known[i].sin() if i == j and seed % 3 else known[i] * other)
    root = known[-1].grad_fn
    found = flow(root, [source]).cuts
    assert len(found) == len(set(found))
    assert set(found) == brute_force(root, source)


@pytest.mark.parametrize("swap", [False, True])
def test_cuts_of_several_inputs_lie_where_they_have_met(swap):
    x, y = torch.ones(2, requires_grad=True).clone(), torch.ones(2, requires_grad=True).clone()
    met = x.sin().cos() * y.exp().tanh() if swap else y.exp().tanh() * x.sin().cos()
    root = (met + 1).log()
    assert flow(root.grad_fn, [x.grad_fn, y.grad_fn]).cuts == [
        root.grad_fn,
        root.grad_fn.next_functions[0][0],
        met.grad_fn,
    ]
