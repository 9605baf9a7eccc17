"""benchmarks/loops.py: the loops of a library, and what occupies a vector unit."""

import pytest
import torch

from iqvit import tvm_backend
from iqvit.calibration.quantize import quantize
from iqvit.errors import TargetError
from iqvit.models.vit import ViT, ViTConfig


@pytest.fixture(scope="module")
def loops(benchmark_script):
    """The script."""
    return benchmark_script("loops")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"image_size": 24, "patch_size": 8, "width": 128, "depth": 1, "heads": 2, "classes": 7}
    model = ViT(ViTConfig(mlp_ratio=2, **sizes)).eval()
    graph = quantize(model, torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8))
    return tvm_backend.compile(graph, tmp_path_factory.mktemp("loops") / "artifact", "x86-vnni")


@pytest.mark.parametrize(
    ("mnemonic", "operands", "kind"),
    [
        ("vpdpbusd", "zmm7, zmm10, dword ptr [r12]{1to16}", "product"),
        ("vpaddd", "zmm0, zmm1, zmmword ptr [rsp]", "other"),
        ("vmovdqa32", "zmm1 {k1}, zmm2", "other"),
        ("vmovdqa64", "zmm1, zmm2", ""),
        ("vpbroadcastd", "zmm1, dword ptr [rax]", ""),
        ("vpmovsdb", "xmmword ptr [r12], zmm11", "other"),
        ("add", "rsi, 0x40", ""),
    ],
)
def test_what_occupies_a_vector_unit(loops, mnemonic, operands, kind):
    assert loops.kind_of(mnemonic, operands) == kind


def test_an_inner_loop_is_what_its_jump_leads_back_to(loops):
    body = [
        (0, "mov", "eax, 1"),
        (4, "vpaddd", "zmm0, zmm0, zmm1"),
        (8, "vpdpbusd", "zmm2, zmm0, zmm1"),
        (12, "jne", "0x8"),
        (16, "je", "0x18"),
        (20, "jne", "0x4"),
        (24, "ret", ""),
    ]
    assert [[place for place, _, _ in loop] for loop in loops.loops(body)] == [[8, 12]]
    assert loops.counts(body) == (7, 1, 1)


def test_a_gemm_is_its_products_and_nothing_else(loops, artifact, capsys):
    found = loops.bodies(artifact / "model.so")
    gemms = [name for name in found if name.startswith("row_gemm")]
    assert gemms
    counted = [loops.counts(loop) for name in gemms for loop in loops.loops(found[name])]
    products = [(count, other) for _, count, other in counted if count]
    assert (48, 0) in products  # two groups of K of a block of 6 x 4
    assert {other for _, other in products} == {0}
    loops.list_loops(artifact, gemms[0])
    assert gemms[0] in capsys.readouterr().out


def test_mistakes(loops, artifact, tmp_path):
    with pytest.raises(TargetError, match=r"no kernel fast; .* has .*row_gemm_0"):
        loops.list_loops(artifact, "row_gemm_0,fast")
    with pytest.raises(TargetError, match=r"no library .*model\.so"):
        loops.list_loops(tmp_path, "")
