"""transformers' RT-DETRv2, unmodified, as an integer program; and its sampling, cell by cell."""

import pytest
import torch
from torch import nn

from iqvit.calibration.quantize import quantize, quantize_canonical
from iqvit.canonical import OPS
from iqvit.canonicalize import canonicalize
from iqvit.capture import capture
from iqvit.compare import compare
from iqvit.interpret import run
from iqvit.inttype import QParams
from iqvit.ops import DeformAttention, TopK
from iqvit.sampling import deformable_attention
from iqvit.verify import check_no_float

SIZE = (64, 96)
OUTPUTS = ("logits", "pred_boxes")
LEVELS = [8, 12, 4, 6, 2, 3]


def untrained(method: str) -> nn.Module:
    """A small RT-DETRv2 on a ResNet, as transformers initialises it."""
    transformers = pytest.importorskip("transformers")
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrV2Config(
        backbone_config=backbone,
        encoder_in_channels=[16, 24, 32],
        encoder_hidden_dim=32,
        encoder_ffn_dim=48,
        encoder_attention_heads=4,
        hidden_expansion=0.5,
        d_model=32,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=48,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_method=method,
        num_queries=20,
        num_labels=5,
    )
    torch.manual_seed(0)
    return transformers.RTDetrV2ForObjectDetection(config).eval()


def rtdetr(method: str) -> nn.Module:
    """With the spread of weights of a trained one."""
    model = untrained(method)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if "running_var" in name or (value.ndim == 1 and "norm" in name and "weight" in name):
            nn.init.uniform_(value, 0.7, 1.3)
        elif value.ndim == 4:
            nn.init.normal_(value, std=(1.6 / value[0].numel()) ** 0.5)
        elif value.ndim == 2 and ("bbox" in name or "class" in name):
            nn.init.normal_(value, std=value.shape[1] ** -0.5)
        elif "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            nn.init.normal_(value, std=0.1)
    return model


@pytest.fixture(scope="module", params=["default", "discrete"])
def converted(request):
    """Float model, canonical model, integer program, and images that it was not calibrated on."""
    model = rtdetr(request.param)
    captured = capture(model, (1, 3, *SIZE), mean=(0.0,) * 3, std=(1.0,) * 3, outputs=OUTPUTS)
    canonical = canonicalize(captured)
    coarse = torch.rand(8, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    smooth = nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")
    images = (255 * smooth).to(torch.uint8)
    return model, canonical, quantize_canonical(canonical, images[:6]), images[6:]


def test_the_canonical_model_computes_the_same(converted):
    model, canonical, _, images = converted
    x = images[:1] / 255
    with torch.no_grad():
        wanted, found = model(x), canonical(x)
    for name in ("logits", "pred_boxes"):
        torch.testing.assert_close(found[name], wanted[name], atol=1e-4, rtol=1e-4)


def test_its_parts_are_recognised(converted):
    canonical = converted[1]
    names = [OPS[n.target].name for n in canonical.module.graph.nodes if n.op == "call_function"]
    assert names.count("deformable_attention") == 2
    assert names.count("clamp") == 2  # in place of the inverse sigmoids
    assert names.count("attention") == 3
    assert not {"softmax", "grid_sample", "mul"} & set(names)
    boxes = next(
        n
        for n in canonical.module.graph.nodes
        if "enc_bbox_head_layers_0" in n.name and n.op == "call_function"
    )
    assert tuple(boxes.meta["val"].shape) == (1, 20, 32)


def test_the_program_stays_close_for_the_same_queries(converted):
    _, canonical, program, images = converted
    check_no_float(program)
    found = compare(canonical, program, images, same_choices=True)
    assert found.outputs["logits"] > 30
    assert found.outputs["pred_boxes"] > 30
    results = run(program, images)
    assert results["logits"].shape == (2, 20, 5)
    assert results["pred_boxes"].dtype == torch.int16
    assert int(results["pred_boxes"].min()) >= 0
    assert any(isinstance(node.op, TopK) for node in program)


def test_vanishing_activations_convert():
    # Of its initialisation nothing is left behind the batch norms, and all scores tie.
    size = (1, 3, *SIZE)
    images = torch.randint(0, 256, (2, *size[1:]), dtype=torch.uint8)
    model = untrained("default")
    program = quantize(model, images, mean=(0.0,) * 3, std=(1.0,) * 3, outputs=OUTPUTS)
    check_no_float(program)
    assert run(program, images[:1])["logits"].shape == (1, 20, 5)


@pytest.mark.slow
def test_the_library_gives_the_same_bits(converted, tmp_path):
    tvm_backend = pytest.importorskip("iqvit.tvm_backend")
    _, _, program, images = converted
    expected = run(program, images)
    for target in ("portable", "host"):
        library = tvm_backend.load(tvm_backend.compile(program, tmp_path / target, target))
        found = library(images)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("method", "mode"), [("default", "bilinear"), ("discrete", "discrete")])
def test_sampling_as_transformers_defines_it(method, mode):
    modeling = pytest.importorskip("transformers.models.rt_detr_v2.modeling_rt_detr_v2")
    torch.manual_seed(0)
    value = torch.randn(1, 126, 2, 4, dtype=torch.float64)
    boxes = torch.rand(1, 7, 4, dtype=torch.float64)
    offsets = 4 * torch.randn(1, 7, 2, 9, 2, dtype=torch.float64)
    logits = torch.randn(1, 7, 2, 9, dtype=torch.float64)
    places = boxes[:, :, None, None, :2] + offsets * 0.125 * boxes[:, :, None, None, 2:]
    shapes = list(zip(LEVELS[::2], LEVELS[1::2], strict=True))
    wanted = modeling.multi_scale_deformable_attention_v2(
        value, shapes, places, logits.softmax(-1), [3, 3, 3], method
    )
    args = (value.flatten(2), boxes, offsets.flatten(2), logits.flatten(2))
    found = deformable_attention(*args, LEVELS, [3, 3, 3], [0.125] * 9, mode)
    torch.testing.assert_close(found, wanted)


def test_more_fraction_bits_place_more_exactly():
    torch.manual_seed(0)
    shapes, points, factors = LEVELS, [4, 4, 4], [0.125] * 12
    value = torch.randint(-127, 128, (1, 126, 16), dtype=torch.int8)
    boxes = torch.randint(0, 32768, (1, 9, 4)).to(torch.int16)
    offsets, logits = (torch.randint(-9999, 9999, (1, 9, n)).to(torch.int16) for n in (96, 48))
    scales = [QParams.of(s) for s in (0.02, 2.0**-15, 2.0**-10, 0.0003)]
    inputs = (value, boxes, offsets, logits)
    real = [q.dequantize(x) for q, x in zip(scales, inputs, strict=True)]
    wanted = deformable_attention(*real, shapes, points, factors, "bilinear")
    errors = []
    for fraction in (1, 3, 5, 8):
        out = QParams.of(0.0001)
        op = DeformAttention.of(
            *scales, out, shapes, points, factors, "bilinear", "int16", fraction=fraction
        )
        errors.append(float((out.dequantize(op.run(*inputs)) - wanted).abs().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 30
