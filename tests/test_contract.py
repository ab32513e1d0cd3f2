"""What every method of the registry keeps to, whatever it computes."""

from __future__ import annotations

import copy

import pytest
import torch
from captum.attr import Attribution
from methods import CASES, INPUT_SIZE, LAYER_SIZE, NAMES, OURS, attribute, make, shape_of
from models import (
    ConvNet,
    ManyScores,
    NormedConvNet,
    Raising,
    TwoInputs,
    WritesIntoItsInput,
    images,
    seeded,
)
from snapshot import of_everything, same
from torch import Tensor, nn
from torch.testing import assert_close

import drnet_captum as dc


def lived_in(make_model: type[nn.Module] = ConvNet) -> nn.Module:
    """A model in use: a hook of the caller's, a gradient kept, a frozen parameter."""
    model = seeded(make_model)
    model.conv1.register_forward_hook(lambda module, args, out: None)
    model.conv2.weight.grad = torch.ones_like(model.conv2.weight)
    model.fc.weight.requires_grad_(False)
    return model


@pytest.fixture(params=[False, True], ids=["", "input requires grad"])
def x(request) -> Tensor:
    return images(2).requires_grad_(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_a_call_changes_nothing(name, x):
    model = lived_in()
    before = of_everything(model, x)
    attribute(name, model, x, 1)
    same(before, of_everything(model, x))


@pytest.mark.parametrize("name", NAMES)
def test_without_a_layer_a_call_changes_nothing(name, x):
    model = lived_in()
    before = of_everything(model, x)
    options = {"layer": None} if CASES[name].init else {}
    make(name, model, **options).attribute(x, target=1, **CASES[name].fast)
    same(before, of_everything(model, x))


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_target_changes_nothing(name, x):
    model = lived_in()
    if name == "saliency" and not x.requires_grad:
        pytest.skip("Captum's own class leaves requires_grad set on inputs when it raises")
    before = of_everything(model, x)
    with pytest.raises((ValueError, AssertionError, IndexError)):
        attribute(name, model, x, 99)
    same(before, of_everything(model, x))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_raises_changes_nothing(name, x):
    model = lived_in(Raising)
    if name == "saliency" and not x.requires_grad:
        pytest.skip("Captum's own class leaves requires_grad set on inputs when it raises")
    before = of_everything(model, x)
    with pytest.raises(RuntimeError, match="broken model"):
        attribute(name, model, x, 1)
    same(before, of_everything(model, x))


@pytest.mark.parametrize("name", [n for n in OURS if n != "cam"])  # which is exact or raises: a live dropout is neither
def test_a_model_in_train_mode_warns_and_keeps_its_buffers_and_the_generators(name, x):
    model = lived_in(NormedConvNet).train()
    before = of_everything(model, x)
    with pytest.warns(UserWarning, match="train mode"):
        attribute(name, model, x, 1)
    same(before, of_everything(model, x))


@pytest.mark.parametrize("name", OURS)
def test_a_model_that_writes_into_its_input_writes_into_a_copy(name, x):
    model = lived_in(WritesIntoItsInput)
    before = of_everything(model, x)
    found = attribute(name, model, x, 1)
    same(before, of_everything(model, x))
    if name in ("deconvnet", "guided_backprop"):
        assert_close(found, 2 * attribute(name, seeded(ConvNet), 2 * x, 1))


@pytest.mark.parametrize("name", NAMES)
def test_under_no_grad(name, x):
    model = lived_in()
    expected = attribute(name, model, x, 1)
    with torch.no_grad():
        before = of_everything(model, x)
        found = attribute(name, model, x, 1)
        same(before, of_everything(model, x))
    assert_close(found, expected)


@pytest.mark.parametrize("made_inside", [False, True])
@pytest.mark.parametrize("name", OURS)  # Captum's Saliency cannot: it sets requires_grad on what inference mode froze
def test_under_inference_mode(name, made_inside, x):
    model = lived_in()
    expected = attribute(name, model, x, 1)
    with torch.inference_mode():
        values = x.detach().clone() if made_inside else x
        before = of_everything(model, values)
        found = attribute(name, model, values, 1)
        same(before, of_everything(model, values))
    assert_close(found.clone(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_results_are_plain_tensors(name, x):
    found = attribute(name, seeded(ConvNet), x, 1)
    assert not found.requires_grad and found.is_contiguous() and found.dtype == x.dtype
    assert found.shape == shape_of(name, x)
    assert not any(t.data_ptr() == found.data_ptr() for t in [x, *seeded(ConvNet).parameters()])


@pytest.mark.parametrize("name", NAMES)
def test_calls_keep_no_state(name):
    """The same object on another image, and then on the first again."""
    model = seeded(ConvNet)
    explainer, first, other = make(name, model), images(2), images(3, seed=9)
    expected = explainer.attribute(first, target=1, **CASES[name].fast)
    before = {k: v for k, v in vars(explainer).items() if not isinstance(v, Attribution)}
    explainer.attribute(other, target=0, **CASES[name].fast)
    after = {k: v for k, v in vars(explainer).items() if not isinstance(v, Attribution)}
    assert before == after
    assert_close(explainer.attribute(first, target=1, **CASES[name].fast), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "smooth_grad"])
def test_two_images_equal_two_calls(name):
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    together = attribute(name, model, x, [1, 3])
    one, other = attribute(name, model, x[:1], 1), attribute(name, model, x[1:], 3)
    assert_close(together, torch.cat([one, other]))


def test_two_images_equal_two_calls_of_smooth_grad_on_a_model_whose_gradient_is_the_same_everywhere():
    """SmoothGrad's noise is drawn batch by batch, so that two calls draw other noise than one."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 10, 5)).eval()
    x = images(2)
    together = attribute("smooth_grad", model, x, [1, 3])
    one, other = attribute("smooth_grad", model, x[:1], 1), attribute("smooth_grad", model, x[1:], 3)
    assert_close(together, torch.cat([one, other]))


@pytest.mark.parametrize("name", NAMES)
def test_forms_of_one_target(name):
    model, x = seeded(ConvNet), images(2)
    expected = attribute(name, model, x, 3)
    for target in ([3, 3], torch.tensor(3), torch.tensor([3]), torch.tensor([3, 3])):
        assert_close(attribute(name, model, x, target), expected)


@pytest.mark.parametrize("name", NAMES)
def test_forms_of_a_target_for_each_image(name):
    model, x = seeded(ConvNet), images(2)
    assert_close(attribute(name, model, x, torch.tensor([1, 4])), attribute(name, model, x, [1, 4]))


@pytest.mark.parametrize("name", NAMES)
def test_tuples_for_outputs_of_more_dimensions(name):
    """Scores (N, 5, 2), whose entry (c, k) is score 2c + k of the flat network."""
    model, flat = seeded(ManyScores), seeded(ConvNet, outputs=10)
    x, options = images(2), {"score": "logit"} if name == "drnet" else {}
    assert_close(attribute(name, model, x, (3, 1)), attribute(name, flat, x, 7, **options))
    assert_close(attribute(name, model, x, [(3, 1), (0, 0)]), attribute(name, flat, x, [7, 0], **options))


@pytest.mark.parametrize("name", NAMES)
def test_no_target_where_there_is_one_score(name):
    x = images(2)
    assert_close(
        attribute(name, seeded(ConvNet, outputs=1), x), attribute(name, seeded(ConvNet, outputs=1), x, target=0)
    )


@pytest.mark.parametrize("name", [n for n in NAMES if CASES[n].several])
def test_a_tuple_of_inputs(name):
    model, x, other = seeded(TwoInputs), images(2), images(2, seed=5)
    found = attribute(name, model, (x, other), 1, additional_forward_args=2.0)
    if name in INPUT_SIZE:
        assert isinstance(found, tuple) and [m.shape for m in found] == [x.shape, other.shape]
    else:  # as Captum's layer classes: a tuple where the layer has several outputs
        assert_close(found, attribute(name, seeded(ConvNet), x + other, 1))
    if name in ("guided_backprop", "deconvnet", "saliency", "guided_grad_cam"):
        assert_close(found, (attribute(name, seeded(ConvNet), x + other, 1),) * 2)


@pytest.mark.parametrize("name", INPUT_SIZE)
def test_a_tuple_for_a_tuple_of_one(name):
    model, x = seeded(ConvNet), images(2)
    found = attribute(name, model, (x,), 1)
    assert isinstance(found, tuple) and len(found) == 1
    assert_close(found[0], attribute(name, model, x, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_precisions(name, dtype):
    model = seeded(ConvNet).to(dtype)
    found = attribute(name, model, images(2, dtype=dtype), 1)
    assert found.dtype == dtype and found.isfinite().all()
    if dtype == torch.float32:
        exact = attribute(name, copy.deepcopy(model).double(), images(2).double(), 1)
        assert_close(found.double(), exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_channels_last_images(name):
    model, x = seeded(ConvNet), images(2)
    found = attribute(name, model, x.contiguous(memory_format=torch.channels_last), 1)
    assert found.is_contiguous()
    assert_close(found, attribute(name, model, x, 1))
    for memory_format in ("preserve", "channels_last"):
        maps = make(name, model, memory_format=memory_format).attribute(x, target=1, **CASES[name].fast)
        assert maps.is_contiguous()
        assert_close(maps, found)


@pytest.mark.parametrize(("name", "fast"), [("smooth_grad", {"n_samples": 5}), ("score_cam", {})])
def test_the_chunk_size_does_not_change_the_result(name, fast):
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    whole = make(name, model).attribute(x, target=[1, 3], perturbations_per_eval=100, **fast)
    for size in (1, 2, 3):
        assert_close(make(name, model).attribute(x, target=[1, 3], perturbations_per_eval=size, **fast), whole)


def test_smooth_grad_draws_from_its_generator():
    model, x = seeded(ConvNet), images(1)
    maps = [attribute("smooth_grad", model, x, 1, generator=torch.Generator().manual_seed(seed)) for seed in (0, 7, 7)]
    assert_close(maps[0], attribute("smooth_grad", model, x, 1))
    assert_close(maps[1], maps[2], rtol=0, atol=0)
    assert not torch.allclose(maps[0], maps[1])


@pytest.mark.parametrize("name", NAMES)
def test_names_are_readable(name):
    shown = make(name, seeded(ConvNet)).get_name()
    assert not any(len(word) == 1 and word.isalpha() for word in shown.split()), shown
    assert not shown.islower() and "_" not in shown


@pytest.mark.parametrize("name", NAMES)
def test_is_an_attribution_of_captum_s(name):
    cls = dc.methods()[name].cls
    assert issubclass(cls, Attribution)
    assert hasattr(cls.attribute, "__wrapped__")  # NoiseTunnel calls it
    assert (name in LAYER_SIZE) == any(base.__name__ == "LayerAttribution" for base in cls.__mro__)
