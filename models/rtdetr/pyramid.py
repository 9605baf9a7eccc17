"""A plain vision transformer with a simple feature pyramid as backbone.

Source: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection" (2022),
section 3: only the last feature map (stride 16) is used; a transposed convolution makes stride 8 of
it and max pooling stride 32. The norms and 1x1 convolutions that follow there are those of the
hybrid encoder here. Unlike there, the class token stays in the encoder, which is thus the one that
was trained before, and that a segmenter has.
"""

from torch import Tensor, nn
from torch.nn import functional

from iqvit.models.rtdetr.config import PyramidConfig
from iqvit.models.vit import ViTEncoder


class ViTPyramid(nn.Module):
    """Image float32 [N, 3, H, W] -> features of strides 8, 16 and 32.

    The transposed convolution of kernel 2 and stride 2 is written as the linear layer that it is:
    no two of its outputs overlap.
    """

    def __init__(self, config: PyramidConfig, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.vit = ViTEncoder(config.encoder(image_size))
        self.vit.initialise()
        self.grid = self.vit.config.grid
        self.channels = config.channels
        self.up = nn.Linear(config.width, 4 * self.channels[0])

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.levels(self.vit(x))

    def levels(self, tokens: Tensor) -> list[Tensor]:
        """The features from what the ViT gives, [N, 1 + patches, width]."""
        tokens = tokens[:, 1:]
        middle = tokens.transpose(1, 2).unflatten(2, self.grid)
        return [self._upsample(tokens), middle, functional.max_pool2d(middle, 2)]

    def _upsample(self, tokens: Tensor) -> Tensor:
        rows, columns = self.grid
        cells = self.up(tokens).reshape(-1, rows, columns, 2, 2, self.channels[0])
        cells = cells.permute(0, 5, 1, 3, 2, 4)
        return cells.reshape(-1, self.channels[0], 2 * rows, 2 * columns)
