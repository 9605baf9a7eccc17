"""Resizing and unit lengths as people write them become one operator each; others are refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import iqvit
from iqvit.canonical import op_of
from iqvit.errors import OverflowProofError, UnsupportedOp

SHAPE = (1, 3, 8, 6)
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


class Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x)


def canonical_of(body) -> iqvit.CanonicalModel:
    return iqvit.canonicalize(iqvit.capture(Net(body), SHAPE, **HALF))


def resized(size=None, **options):
    return lambda x: functional.interpolate(x, size, **options)


WRITTEN = {
    "normalize": (lambda x: functional.normalize(x, dim=-1), ["l2_normalize"]),
    "normalize with eps": (lambda x: functional.normalize(x, dim=-1, eps=2.0), ["l2_normalize"]),
    "over channels": (functional.normalize, ["permute", "l2_normalize", "permute"]),
    "norm": (lambda x: x / x.norm(dim=-1, keepdim=True), ["l2_normalize"]),
    "norm and unsqueeze": (lambda x: x / x.norm(dim=-1).unsqueeze(-1), ["l2_normalize"]),
    "vector norm, clamped": (
        lambda x: x / torch.linalg.vector_norm(x, dim=3, keepdim=True).clamp(min=1e-3),
        ["l2_normalize"],
    ),
    "nearest by factor": (resized(scale_factor=2), ["upsample_nearest"]),
    "nearest to a size": (resized((5, 13)), ["upsample_nearest"]),
    "bilinear by factor": (resized(scale_factor=(2, 3.0), mode="bilinear"), ["upsample_bilinear"]),
    "bilinear to a size": (resized((7, 31), mode="bilinear"), ["upsample_bilinear"]),
    "smaller": (resized((3, 4), mode="bilinear"), ["upsample_bilinear"]),
    "half the size": (resized(scale_factor=0.5, mode="bilinear"), ["upsample_bilinear"]),
    "module": (nn.Upsample(scale_factor=4, mode="bilinear"), ["upsample_bilinear"]),
    "to the same size": (resized((8, 6)), ["upsample_nearest"]),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_becomes_one_operator_of_the_same_values(name):
    body, expected = WRITTEN[name]
    canonical = canonical_of(body)
    calls = [node for node in canonical.module.graph.nodes if node.op == "call_function"]
    assert [op_of(node).name for node in calls] == expected
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0] = 0.25  # shorter than the eps of one case
    torch.testing.assert_close(canonical(x)["logits"], body(x))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (resized((16, 12), mode="bilinear", align_corners=True), "align_corners=False"),
        (resized(scale_factor=1.3, mode="bilinear"), "an output size or a whole factor"),
        (resized((16, 12), mode="bicubic"), "use mode bilinear or nearest"),
        (lambda x: x / x.norm(p=1, dim=-1, keepdim=True), "F.normalize"),
        (lambda x: x / x.norm(dim=(2, 3), keepdim=True), "F.normalize"),
        (lambda x: x / (x * 2).norm(dim=-1, keepdim=True), "own L2 norm"),
        (lambda x: x / x.norm(dim=-1, keepdim=True).clamp(1e-3, 2.0), "own L2 norm"),
    ],
    ids=["corners", "factor", "bicubic", "order", "axes", "other value", "clamped above"],
)
def test_what_is_not_that_is_refused(body, message):
    with pytest.raises(UnsupportedOp, match=message):
        canonical_of(body)


def test_denominators_that_leave_int32_are_named():
    body = resized((1009, 1013), mode="bilinear")
    canonical = canonical_of(lambda x: body(x * 0.5))
    images = torch.randint(0, 256, (1, 3, 8, 6), dtype=torch.uint8)
    with pytest.raises(OverflowProofError, match=r"from 8x6 to 1009x1013 have the denominator"):
        iqvit.convert(canonical, iqvit.calibrate(canonical, images))


def decoder(x: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(x * 0.5, (16, 12), mode="bilinear").argmax(1)


def test_comparing_class_maps_counts_equal_indices_and_measures_what_they_come_from():
    canonical = canonical_of(decoder)
    images = torch.randint(
        0, 256, (2, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    graph = iqvit.convert(canonical, iqvit.calibrate(canonical, images))
    assert graph.outputs == {"classes": graph.nodes[-1].name}
    assert str(graph.nodes[-1].type) == "uint8[1,16,12] 0..2"
    found = iqvit.compare(canonical, graph, images)
    reals = torch.cat([decoder((image / 255 - 0.5) / 0.5) for image in images.split(1)])
    equal = (iqvit.run(graph, images)["classes"] == reals).double().mean()
    assert found.agreement == {"classes": pytest.approx(100 * float(equal))}
    assert found.agreement["classes"] > 99
    upsampled = next(row for row in found.rows if row.op == "upsample_bilinear")
    assert found.outputs == {"classes": upsampled.sqnr_db}
    assert found.sqnr_db == pytest.approx(upsampled.sqnr_db)
    assert found.sqnr_db > 35
    assert all(row.op != "argmax" for row in found.rows)
