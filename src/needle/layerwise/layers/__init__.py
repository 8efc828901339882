"""The catalogue of layers; importing it registers them."""

from needle.layerwise.layers import (
    activation as activation,
    data as data,
    linear as linear,
    loss as loss,
    normalization as normalization,
    pooling as pooling,
    structure as structure,
)
