"""AlexNet."""

from __future__ import annotations

from needle import nn
from needle.tensor import Tensor


class AlexNet(nn.Module):
    """AlexNet in the one-column form that frameworks ship: 61,100,840 parameters for 1,000 classes.

    Source: A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.

    Args:
        classes: number of outputs.
        dropout: probability of dropping a unit before the linear layers.

    Example:
        >>> with ndl.inference_mode():
        ...     ndl.models.AlexNet(classes=10).eval()(ndl.zeros((1, 3, 224, 224))).shape
        (1, 10)
    """

    def __init__(self, classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
        )
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(6),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, 3, height, width] to [batch, classes]."""
        return self.classifier(self.features(x))
