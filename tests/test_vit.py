import pytest
import torch

from iqvit.errors import ModelError
from iqvit.models.vit import ViT, ViTConfig

SMALL = ViTConfig(image_size=32, patch_size=8, width=48, depth=2, heads=3, classes=7)


def test_parity_with_timm_on_shared_weights():
    timm = pytest.importorskip("timm")
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=7
    ).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # LayerNorms start at one and biases at zero, where a swap of names would not show.
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        x = torch.randn(3, 3, 32, 32)
    ours = ViT(SMALL).eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_attention_is_captured_as_one_node():
    exported = torch.export.export(ViT(SMALL).eval(), (torch.zeros(1, 3, 32, 32),))
    targets = [str(n.target) for n in exported.graph.nodes if n.op == "call_function"]
    for name in ("scaled_dot_product_attention", "gelu"):
        assert targets.count(f"aten.{name}.default") == 2
    assert targets.count("aten.layer_norm.default") == 5


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 33, "patch_size": 8}, "whole number of patches"),
        ({"width": 50, "heads": 3}, "divide into 3 heads"),
        ({"depth": 0}, "below 1"),
    ],
)
def test_impossible_sizes(sizes, message):
    with pytest.raises(ModelError, match=message):
        ViTConfig(**sizes)
