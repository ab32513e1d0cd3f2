"""On real weights and photos: the layer that is found is one whose Grad-CAM lights the object."""

import pytest
from torch.nn.functional import interpolate

import drnet_captum as dc

#: Photo → the object in the 224×224 crop, (left, top, right, bottom), and the class that the embedded model gives it.
OBJECTS = {
    "coffee": ((30, 0, 195, 165), 967),
    "rocket": ((88, 50, 136, 224), 657),
}


@pytest.fixture(scope="module")
def model():
    return dc.load_model("embedded")


def energy_in_box(model, photo, box, target):
    """The share of the positive evidence in the box, over the box's share of the image; whether the peak is in it."""
    x = dc.model_card(model).transform(dc.data.embedded_photo(photo))[None]
    cam = dc.GradCAM(model).attribute(x, target=target, relu_attributions=True)
    heat = interpolate(cam, x.shape[2:], mode="bilinear")[0, 0]
    left, top, right, bottom = box
    share = heat[top:bottom, left:right].sum() / heat.sum()
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    area = (right - left) * (bottom - top) / heat.numel()
    return float(share) / area, top <= row < bottom and left <= column < right


@pytest.mark.parametrize("photo", OBJECTS)
def test_grad_cam_at_the_found_layer_lights_the_object(model, photo):
    box, target = OBJECTS[photo]
    gain, peak_inside = energy_in_box(model, photo, box, target)
    assert gain > 1.2
    assert peak_inside


def test_the_layer_before_the_classifier_is_found(model):
    found = dc.find_target_layer(model)
    assert (found.name, found.grid, found.channels) == ("features", (13, 13), 512)
    assert found.module is model.features
