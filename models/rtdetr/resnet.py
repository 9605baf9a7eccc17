"""The ResNet-D backbone of RT-DETR.

Source: He et al., "Bag of Tricks for Image Classification" (2019), variant D: three 3x3
convolutions as stem, average pooling before the 1x1 convolution of a strided shortcut.
"""

from torch import Tensor, nn
from torch.nn import functional

from iqvit.models.rtdetr.config import ResNetConfig
from iqvit.models.rtdetr.layers import ConvNorm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, [N, in, H, W] -> [N, out, H/s, W/s].

    The first block of a stage projects its shortcut, at the first stage too.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, project: bool) -> None:
        super().__init__()
        self.stride = stride
        self.convs = nn.Sequential(
            ConvNorm(inputs, outputs, 3, stride, nn.ReLU()), ConvNorm(outputs, outputs, 3)
        )
        self.shortcut = ConvNorm(inputs, outputs, 1) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        pooled = x if self.stride == 1 else functional.avg_pool2d(x, self.stride)
        return functional.relu(self.convs(x) + self.shortcut(pooled))


class ResNet(nn.Module):
    """Image float32 [N, 3, H, W] -> features of strides 8, 16 and 32."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        half, stem = config.stem // 2, config.stem
        self.stem = nn.Sequential(
            ConvNorm(3, half, 3, 2, nn.ReLU()),
            ConvNorm(half, half, 3, 1, nn.ReLU()),
            ConvNorm(half, stem, 3, 1, nn.ReLU()),
        )
        inputs = (stem, *config.channels[:3])
        self.stages = nn.ModuleList(
            _stage(*sizes, stride=1 if place == 0 else 2)
            for place, sizes in enumerate(zip(inputs, config.channels, config.depths, strict=True))
        )
        self.channels = config.channels[1:]

    def forward(self, x: Tensor) -> list[Tensor]:
        x = functional.max_pool2d(self.stem(x), 3, stride=2, padding=1)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[1:]


def _stage(inputs: int, outputs: int, depth: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, project=True)
    rest = [BasicBlock(outputs, outputs, 1, project=False) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)
