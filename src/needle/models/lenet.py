"""LeNet-5."""

from __future__ import annotations

from needle import nn
from needle.tensor import Tensor


class LeNet(nn.Module):
    """LeNet-5 for grey images, with full connections in the second convolution: 61,706 parameters.

    Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
    recognition", Proceedings of the IEEE, 1998.

    Args:
        channels: of the images.
        classes: number of outputs.
        size: height and width of the images: 28 (padded to 32 as in the paper) or 32.

    Example:
        >>> ndl.models.LeNet()(ndl.zeros((2, 1, 28, 28))).shape
        (2, 10)
    """

    def __init__(self, channels: int = 1, classes: int = 10, size: int = 28) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=(32 - size) // 2),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120),
            nn.Tanh(),
            nn.Linear(120, 84),
            nn.Tanh(),
            nn.Linear(84, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, size, size] to [batch, classes]."""
        return self.classifier(self.features(x))
