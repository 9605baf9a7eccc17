"""y = conv2d(upsample_nearest(x), w1, b)  ->  y = upsample_nearest(conv2d(x, w1, b))"""

from torch import fx

from iqvit.canonical import aten, constant, upsample_nearest
from iqvit.passes.editing import calls, insert, is_call, operands, substitute


def hoist_upsampling(module: fx.GraphModule) -> None:
    """Repeat pixels after the 1x1 convolutions that read them: the same values for a quarter of
    the products."""
    for conv in calls(module, aten.conv2d):
        x, weight, bias, stride, padding, dilation, groups = operands(conv)
        if not is_call(x, upsample_nearest) or constant(weight).shape[2:] != (1, 1):
            continue
        if set(stride) != {1} or any(padding):
            continue
        small, size = operands(x)
        geometry = (stride, padding, dilation, groups)
        first = insert(conv, aten.conv2d.default, small, weight, bias, *geometry)
        substitute(conv, insert(conv, upsample_nearest, first, size))
