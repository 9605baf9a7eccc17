"""The integer operators: one file each, and one import line each."""

from iqvit.ops.add import Add
from iqvit.ops.amax import Amax
from iqvit.ops.argmax import Argmax
from iqvit.ops.attention import Attention
from iqvit.ops.avg_pool import AvgPool
from iqvit.ops.base import REGISTRY, Op, Sample
from iqvit.ops.concat import Concat
from iqvit.ops.constant import Constant
from iqvit.ops.conv2d import Conv2d
from iqvit.ops.deform_attention import DeformAttention
from iqvit.ops.floor_divide import FloorDivide
from iqvit.ops.gather import Gather
from iqvit.ops.grid_sample import GridSample
from iqvit.ops.igelu import IGelu
from iqvit.ops.ilayernorm import ILayerNorm
from iqvit.ops.input import Input
from iqvit.ops.interpolate import Interpolate
from iqvit.ops.isoftmax import ISoftmax
from iqvit.ops.l2_normalize import L2Normalize
from iqvit.ops.lambda_shiftgelu import LambdaShiftGelu
from iqvit.ops.layernorm import LayerNorm
from iqvit.ops.linear import Linear
from iqvit.ops.lookup import Lookup
from iqvit.ops.matmul import Matmul
from iqvit.ops.max_pool import MaxPool
from iqvit.ops.mean import Mean
from iqvit.ops.multiply import Multiply
from iqvit.ops.permute import Permute
from iqvit.ops.rectified import Rectified
from iqvit.ops.remainder import Remainder
from iqvit.ops.requantise import Requantise
from iqvit.ops.reshape import Reshape
from iqvit.ops.row_linear import RowLinear
from iqvit.ops.row_peak import RowPeak
from iqvit.ops.row_quantise import RowQuantise
from iqvit.ops.shiftgelu import ShiftGelu
from iqvit.ops.shiftmax import Shiftmax
from iqvit.ops.slice import Slice
from iqvit.ops.softmax import Softmax
from iqvit.ops.take_rows import TakeRows
from iqvit.ops.topk import TopK
from iqvit.ops.upsample_bilinear import UpsampleBilinear
from iqvit.ops.upsample_nearest import UpsampleNearest

__all__ = [
    "REGISTRY",
    "Add",
    "Amax",
    "Argmax",
    "Attention",
    "AvgPool",
    "Concat",
    "Constant",
    "Conv2d",
    "DeformAttention",
    "FloorDivide",
    "Gather",
    "GridSample",
    "IGelu",
    "ILayerNorm",
    "ISoftmax",
    "Input",
    "Interpolate",
    "L2Normalize",
    "LambdaShiftGelu",
    "LayerNorm",
    "Linear",
    "Lookup",
    "Matmul",
    "MaxPool",
    "Mean",
    "Multiply",
    "Op",
    "Permute",
    "Rectified",
    "Remainder",
    "Requantise",
    "Reshape",
    "RowLinear",
    "RowPeak",
    "RowQuantise",
    "Sample",
    "ShiftGelu",
    "Shiftmax",
    "Slice",
    "Softmax",
    "TakeRows",
    "TopK",
    "UpsampleBilinear",
    "UpsampleNearest",
]
