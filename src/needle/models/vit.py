"""Vision transformers."""

from __future__ import annotations

from needle import nn
from needle.errors import ArgumentError, ShapeError
from needle.nn import init
from needle.ops.joining import concat
from needle.ops.movement import broadcast_to
from needle.tensor import Tensor


class ViT(nn.Module):
    """Vision transformer: an image as a sequence of patches, and a class token that reads it.

    Patches are projected, learnt positions added, and pre-norm encoder layers with GELU follow; the
    class token's last state, normalised, goes through a linear head.

    Sources: A. Dosovitskiy et al., "An Image is Worth 16×16 Words: Transformers for Image
    Recognition at Scale", 2020; for Tiny and Small: H. Touvron et al., "Training data-efficient
    image transformers & distillation through attention", 2020.

    Args:
        size: height and width of the images, a multiple of ``patch``.
        patch: height and width of a patch.
        width: of the residual stream, a multiple of ``heads``.
        layers: number of encoder layers.
        heads: number of attention heads.
        classes: number of outputs.
        channels: of the images.
        dropout: probability of dropping a unit.

    Raises:
        ArgumentError: the patches do not tile the image, or the width is no multiple of ``heads``.

    Example:
        >>> model = ndl.models.ViT(32, patch=8, width=48, layers=2, heads=3, classes=10)
        >>> model(ndl.zeros((2, 3, 32, 32))).shape
        (2, 10)
    """

    def __init__(
        self,
        size: int = 224,
        patch: int = 16,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        classes: int = 1000,
        channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if patch < 1 or size < patch or size % patch:
            raise ArgumentError(f"ViT: patches of {patch} do not tile images of {size} × {size}")
        self.size = size
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(init.zeros((1, 1, width)))
        places = (size // patch) ** 2 + 1
        self.positions = nn.Parameter(init.truncated_normal((1, places, width), std=0.02))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width,
                    heads,
                    4 * width,
                    dropout=dropout,
                    activation="gelu",
                    layer_norm_eps=1e-6,
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(layers)
            )
        )
        self.norm = nn.LayerNorm(width, 1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, size, size] to [batch, classes].

        Raises:
            ShapeError: images of another size, for which there are no positions.
        """
        if x.ndim != 4 or x.shape[2:] != (self.size, self.size):
            raise ShapeError(
                f"expected images [batch, channels, {self.size}, {self.size}], got shape "
                f"{list(x.shape)}; resize the images, or make the model with their size"
            )
        y = self.patches(x)
        batch, width = y.shape[:2]
        y = y.reshape(batch, width, -1).permute_dims((0, 2, 1))
        token = broadcast_to(self.class_token, (batch, 1, width))
        y = self.dropout(concat([token, y], axis=1) + self.positions)
        return self.head(self.norm(self.layers(y)[:, 0]))


def vit_tiny(classes: int = 1000, *, size: int = 224, patch: int = 16) -> ViT:
    """Return ViT-Ti: width 192, 3 heads; 5,717,416 parameters for 224² and 1,000 classes."""
    return ViT(size, patch, 192, 12, 3, classes)


def vit_small(classes: int = 1000, *, size: int = 224, patch: int = 16) -> ViT:
    """Return ViT-S: width 384, 6 heads; 22,050,664 parameters for 224² and 1,000 classes."""
    return ViT(size, patch, 384, 12, 6, classes)


def vit_base(classes: int = 1000, *, size: int = 224, patch: int = 16) -> ViT:
    """Return ViT-B: width 768, 12 heads; 86,567,656 parameters for 224² and 1,000 classes."""
    return ViT(size, patch, 768, 12, 12, classes)
