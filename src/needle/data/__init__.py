"""Data: datasets, loaders, transforms, and readers for well-known data sets.

A `Dataset` has a length and gives samples by index, as NumPy arrays and Python numbers. A
`DataLoader` visits it in some order and makes batches of Tensors. What a batch holds depends on the
seed and the epoch alone: not on batch size, order of reading or workers, and a run that is resumed
sees what the uninterrupted run saw.
"""

from needle.data import transforms
from needle.data.cifar10 import CIFAR10
from needle.data.cifar10_jpeg import convert_cifar10_jpeg
from needle.data.collate import default_collate
from needle.data.dataset import Dataset, Subset, TensorDataset, random_split
from needle.data.digits import Digits
from needle.data.idx import read_idx
from needle.data.images import ImageDataset
from needle.data.loader import DataLoader
from needle.data.mnist import MNIST, FashionMNIST
from needle.data.sampler import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SeededSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from needle.data.streams import SampleStreams, sample_generator, sample_streams
from needle.data.text import CharText, CharWindows, ContiguousBatches

__all__ = [
    "CIFAR10",
    "MNIST",
    "BatchSampler",
    "CharText",
    "CharWindows",
    "ContiguousBatches",
    "DataLoader",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "ImageDataset",
    "RandomSampler",
    "SampleStreams",
    "Sampler",
    "SeededSampler",
    "SequentialSampler",
    "Subset",
    "SubsetRandomSampler",
    "TensorDataset",
    "WeightedRandomSampler",
    "convert_cifar10_jpeg",
    "default_collate",
    "random_split",
    "read_idx",
    "sample_generator",
    "sample_streams",
    "transforms",
]
