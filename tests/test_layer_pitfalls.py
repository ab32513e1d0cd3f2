"""What was once read wrongly: class tokens in CAM, pooled channels taken for tokens, broadcasts and mixing steps."""

import warnings

import pytest
import torch
from models import images, seeded
from test_positions import read_and_true
from test_token_maps import Tokens, timm_model
from torch import nn
from torch.nn import functional as F

import drnet_captum as dc

POSITIONS = {
    "broadcast along a new first axis": lambda x: (x + torch.ones(5, 1, 4))[0],
    "pairs of tokens": lambda x: (x[:, None] - x[:, :, None]).mean(2)[:, 0],
    "expanded along an axis as long": lambda x: x[:, None].expand(1, 5, 5, 4)[:, 0].mean(1),
    "instance norm": lambda x: F.instance_norm(x.mT)[:, :, 0],
    "batch norm in train mode": lambda x: F.batch_norm(x.mT, None, None, training=True)[:, :, 0],
    "scaled by the strongest": lambda x: (x * x.amax(1, keepdim=True))[:, 0],
}


@pytest.mark.parametrize("forward", POSITIONS.values(), ids=POSITIONS)
def test_no_position_with_gradient_is_left_out(forward):
    found, true = read_and_true(forward)
    assert true <= found


def test_cam_raises_on_a_class_token_head():
    with pytest.raises(ValueError, match="use GradCAM"):
        dc.CAM(timm_model("test_vit")).attribute(images(1, size=(160, 160)), target=1)


class OfAll(Tokens):
    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        return self.head(self.block(torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)).mean(1))


def test_cam_of_a_mean_of_patches_and_class_token_raises():
    with pytest.raises(ValueError, match="use GradCAM"):
        dc.CAM(seeded(OfAll, True)).attribute(images(1, size=(16, 24)), target=1)


def test_pooled_channels_are_no_tokens():
    class Pooled(nn.Sequential):
        def forward(self, x):
            x = self[1](self[0](x).flatten(2).mT)
            return self[3](self[2](x.mT).flatten(1))

    model = Pooled(nn.Conv2d(3, 16, 8, stride=8), nn.LayerNorm(16), nn.AdaptiveAvgPool1d(1), nn.Linear(16, 4)).eval()
    assert dc.find_target_layer(model, (3, 32, 32)).name == "1"


def test_swin_base_of_hugging_face():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hub = pytest.importorskip("transformers")
        config = hub.SwinConfig(embed_dim=128, depths=[1, 1, 1, 1], num_heads=[4, 8, 16, 32])
        with torch.device("meta"):
            model = dc.LogitsOf(hub.SwinForImageClassification(config).eval())
    found = dc.find_target_layer(model)
    assert (found.name, found.grid) == ("model.swin.layernorm", (7, 7))
