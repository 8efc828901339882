"""Models: well-known networks with the parameter counts of their papers."""

from needle.models.alexnet import AlexNet
from needle.models.gpt import GPT, GPTConfig
from needle.models.language import LSTMLanguageModel
from needle.models.lenet import LeNet
from needle.models.mlp import MLP, MLPResNet
from needle.models.mobilenet import MobileNetV2
from needle.models.resnet import (
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)
from needle.models.resnet_cifar import (
    CifarResNet,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
    resnet110,
)
from needle.models.unet import UNet
from needle.models.vit import ViT, vit_base, vit_small, vit_tiny

__all__ = [
    "GPT",
    "MLP",
    "AlexNet",
    "CifarResNet",
    "GPTConfig",
    "LSTMLanguageModel",
    "LeNet",
    "MLPResNet",
    "MobileNetV2",
    "ResNet",
    "UNet",
    "ViT",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "resnet152",
    "vit_base",
    "vit_small",
    "vit_tiny",
]
