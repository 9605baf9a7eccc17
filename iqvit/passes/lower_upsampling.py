"""y = upsample_bilinear2d(x, [352, 480], False, None)  ->  y = upsample_bilinear(x, [352, 480])"""

from fractions import Fraction
from typing import Any

from torch import fx

from iqvit.canonical import aten, shape, upsample_bilinear, upsample_nearest
from iqvit.passes.editing import calls, is_call, replace, schema_arguments

UPSAMPLINGS = (aten.upsample_nearest2d, aten.upsample_bilinear2d)


def lower_upsampling(module: fx.GraphModule) -> None:
    """Write resizing with its output size alone.

    With aligned corners, or with a factor that the output size does not have exactly (torch then
    reads at the factor's positions, not at the size's), it stays for the checker.
    """
    for node in calls(module, *UPSAMPLINGS):
        values = schema_arguments(node)
        x: Any = values.get("input", values.get("self"))
        if values.get("align_corners") or not _keeps_factors(x, node, values):
            continue
        nearest = is_call(node, aten.upsample_nearest2d)
        replace(node, upsample_nearest if nearest else upsample_bilinear, x, list(shape(node)[-2:]))


def _keeps_factors(x: fx.Node, node: fx.Node, values: dict[str, Any]) -> bool:
    factors = values.get("scale_factors") or [values.get("scales_h"), values.get("scales_w")]
    sizes = zip(shape(x)[-2:], shape(node)[-2:], factors, strict=True)
    return all(f is None or Fraction(f) * before == after for before, after, f in sizes)
