"""Captured graphs made cheaper: the same numbers from fewer calls."""

import operator

import pytest
import torch
from models import images
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from drnet_captum.engine.prepared import NORMS, clean, fold_constants, is_random, prepare, written
from drnet_captum.engine.waiting import with_norm

aten = torch.ops.aten


def traced(function, *inputs):
    with torch.no_grad():
        return make_fx(function)(*inputs)


def targets(module):
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


def norm(features, seed=0, affine=True, dtype=torch.float64, kind=nn.BatchNorm2d):
    generator = torch.Generator().manual_seed(seed)
    made = kind(features, affine=affine).to(dtype).eval()
    made.running_mean.normal_(generator=generator)
    made.running_var.uniform_(0.5, 2.0, generator=generator)
    if affine:
        made.weight.data.normal_(generator=generator)
        made.bias.data.normal_(generator=generator)
    return made


def test_a_norm_in_a_convolution_by_hand():
    weight, bias = with_norm(
        torch.tensor([[[[2.0]]], [[[4.0]]]]),
        torch.tensor([1.0, 0.0]),
        mean=torch.tensor([3.0, 1.0]),
        var=torch.tensor([0.25, 4.0]),
        gamma=torch.tensor([3.0, -1.0]),
        beta=torch.tensor([0.5, 0.0]),
        eps=0.0,
    )
    torch.testing.assert_close(weight.flatten(), torch.tensor([2 * 3 / 0.5, 4 * -1 / 2.0]))
    torch.testing.assert_close(bias, torch.tensor([(1 - 3) * 6 + 0.5, (0 - 1) * -0.5]))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(3, 6, 3, groups=3, bias=False),
        nn.Conv1d(3, 4, 3),
        nn.Conv3d(3, 4, 2, dilation=2),
    ],
)
def test_norms_join_the_convolutions_before_them(convolution, affine):
    n = convolution.weight.dim() - 2
    convolution = convolution.double()
    after = norm(len(convolution.weight), affine=affine, kind=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[n - 1])
    model = nn.Sequential(convolution, after, nn.ReLU(inplace=True)).eval()
    x = torch.randn(2, 3, *[7] * n, dtype=torch.float64)
    module = prepare(traced(model, x))
    assert targets(module) == [aten.convolution.default, aten.relu_.default]
    torch.testing.assert_close(module(x), model(x).detach())
    assert convolution.weight.equal(model[0].weight)


def test_the_layout_of_weights_and_an_outputs_change_of_layout_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4)).double().eval().to(memory_format=torch.channels_last)
    module = prepare(
        traced(lambda x: model[1](model[0](x).clone(memory_format=torch.channels_last)), x := images(2).double())
    )
    assert targets(module) == [aten.convolution.default, aten.clone.default]
    torch.testing.assert_close(module(x), model(x).detach())
    weight = next(b for b in module.buffers() if b.dim() == 4)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_norms_are_worked_out_wide_in_weights_of_half_the_size():
    after = norm(4, dtype=torch.float32)
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    given = (after.running_mean, after.running_var, after.weight.detach(), after.bias.detach(), after.eps)
    narrow = with_norm(weight, None, *given)
    wide = with_norm(weight.float(), None, *given)
    assert all(n.dtype == torch.bfloat16 and n.equal(w.bfloat16()) for n, w in zip(narrow, wide, strict=True))


def test_norms_that_stay():
    """Of a convolution that two read, by the batch's own statistics, after a transposed one, where more is read."""
    x = images(2).double()
    conv, after, turned = nn.Conv2d(3, 4, 3).double(), norm(4), nn.ConvTranspose2d(3, 4, 3).double()
    own = nn.BatchNorm2d(4, track_running_stats=False).double().eval()
    for function in (
        lambda x: after(z := conv(x)) + z,
        lambda x: own(conv(x)),
        lambda x: F.batch_norm(conv(x), after.running_mean.clone(), after.running_var.clone(), training=True),
        lambda x: after(turned(x)),
        lambda x: after(F.relu(conv(x))),
        lambda x: F.batch_norm(conv(x), x.mean((0, 2, 3)).new_zeros(4) + x.mean(), after.running_var),
        lambda x: sum(
            t.sum()
            for t in aten.native_batch_norm(
                conv(x), after.weight, after.bias, after.running_mean, after.running_var, False, 0.1, 1e-5
            )
        ),
    ):
        module = prepare(traced(function, x))
        assert len([t for t in targets(module) if t in NORMS]) == 1
        torch.testing.assert_close(module(x), function(x).detach())


def test_what_depends_on_weights_alone_is_computed_once():
    weight, narrow = torch.randn(3, 2), torch.ones(2, 3)
    module = traced(lambda x: x @ (weight.exp().t() * narrow) + weight.split([1, 2])[0].sum(), torch.ones(4, 2))
    module = prepare(module)
    assert targets(module) == [aten.mm.default, aten.add.Tensor]
    torch.testing.assert_close(module(x := torch.randn(4, 2)), x @ weight.exp().t() + weight[0].sum())
    assert len(list(module.buffers())) == 2
    assert not any(node.meta for node in module.graph.nodes)  # where tensors of the trace would be kept


def test_views_of_weights_take_no_memory():
    linear = nn.Linear(2, 3)
    module = prepare(traced(linear, torch.ones(1, 2)))
    assert targets(module) == [aten.addmm.default]
    storages = {t.untyped_storage().data_ptr() for t in (*module.buffers(), *module.parameters())}
    assert storages == {t.untyped_storage().data_ptr() for t in linear.parameters()}


def test_what_is_drawn_made_anew_or_written_into_is_not_folded():
    weight = torch.ones(3)

    def function(x):
        copy = weight.clone()
        view = copy.view(3, 1).squeeze(1)
        view.mul_(x)
        return copy + torch.rand_like(weight) + torch.zeros(3)

    module = traced(function, torch.ones(3))
    fold_constants(module)
    clean(module)
    module.recompile()
    kept = {aten.clone.default, aten.mul_.Tensor, aten.rand_like.default, aten.zeros.default}
    assert kept <= set(targets(module))
    assert is_random(module.graph)
    assert not is_random(traced(lambda x: x + 1, torch.ones(1)).graph)
    torch.manual_seed(0)
    first = module(torch.full((3,), 2.0))
    second = module(torch.full((3,), 2.0))
    assert first.ne(second).all()
    assert first.floor().equal(torch.full((3,), 2.0))
    assert weight.equal(torch.ones(3))


def test_calls_in_place_stay_and_what_nothing_reads_goes():
    def function(x):
        y = x.clone()
        y.add_(1.0)
        x.exp()
        return y

    module = prepare(traced(function, torch.ones(2)))
    assert targets(module) == [aten.clone.default, aten.add_.Tensor]
    assert module(torch.ones(2)).equal(torch.full((2,), 2.0))


def test_written_by_way_of_items_of_a_split():
    def function(x):
        y = x + 1
        for part in y.split(2):
            part.mul_(2.0)
        return y

    module = traced(function, torch.ones(4))
    names = {node.target for node in written(module.graph)}
    assert names == {aten.split.Tensor, operator.getitem, aten.add.Tensor}


def test_models_that_write_into_their_own_buffers():
    count = torch.zeros(1)
    with pytest.raises(ValueError, match="writes into its own buffers"):
        prepare(traced(lambda x: x + count.view(1).add_(1), torch.ones(1)))


def test_shapes_that_depend_on_values():
    for function in (lambda x: x[x > 0], lambda x: torch.nonzero(x), lambda x: x.masked_select(x > 0)):
        with pytest.raises(ValueError, match="shapes depend on values"):
            prepare(traced(function, torch.ones(3)))
    mask, places = torch.tensor([True, False, True]), torch.tensor([2, 0])
    for function in (lambda x: x[mask], lambda x: x[places]):
        assert prepare(traced(function, torch.ones(3)))(torch.arange(3.0)).sum() == 2
