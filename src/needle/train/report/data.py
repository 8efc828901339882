"""What a report shows, as plain data: nothing here knows of models, tensors or HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LayerRow:
    """One layer of the model summary.

    Attributes:
        name: Its path in the model (`blocks.0.conv1`); empty for the model itself.
        kind: Its class.
        output_shape: The shape of what it returns, batch axis first.
        parameters: How many numbers it learns, without those of the layers inside of it.
        flops: Its own floating-point operations for one example, forward; None where unknown.
        memory: Bytes of the results of its own ops for one example; None where unknown.
        depth: How deeply it is nested, for indentation.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] | None
    parameters: int
    flops: int | None = None
    memory: int | None = None
    depth: int = 0


@dataclass(frozen=True)
class Mistake:
    """A test example that the model got wrong.

    Attributes:
        index: Its number in the test set.
        true: Its class.
        predicted: The class with the highest probability.
        probability: The probability of the predicted class.
        true_probability: The probability of its own class.
        picture: uint8 pixels, `[height, width]` or `[height, width, 3]`; None if it has no picture.
    """

    index: int
    true: int
    predicted: int
    probability: float
    true_probability: float
    picture: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows. Empty parts are left out of the page.

    Attributes:
        title: The run's headline, such as `digits · MLP`.
        outcome: The most important figures, in order: name and formatted value.
        records: The metrics of the run (`needle.train.metrics`): steps and epochs.
        class_names: Names of the classes.
        confusion: Test examples counted by `[true class, predicted class]`.
        mistakes: The worst mistakes, worst first.
        examples: How many examples were tested.
        layers: The model summary.
        configuration: Options of the run.
        environment: Versions and machine.
        timing: Where the time went: name and formatted value.
        notes: Remarks about data or run that a reader has to know.
        sample: Text that the model wrote, for language models.
        sample_prompt: The text it was given to continue.
    """

    title: str
    outcome: Mapping[str, str]
    records: Sequence[Mapping[str, Any]] = ()
    class_names: Sequence[str] = ()
    confusion: NDArray[np.int64] | None = None
    mistakes: Sequence[Mistake] = ()
    examples: int = 0
    layers: Sequence[LayerRow] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    timing: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    sample: str = ""
    sample_prompt: str = ""
