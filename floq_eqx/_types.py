"""Array aliases and the legend of shape names that every signature uses.

| name          | axis                                                                |
|---------------|---------------------------------------------------------------------|
| `ensemble`    | members of an ensemble of networks                                  |
| `batch`       | transitions                                                         |
| `noise`       | samples of the initial noise of one transition (m in the paper)     |
| `observation` | components of an observation                                        |
| `action`      | components of an action, each in [-1, 1]; of a chunk those of all   |
| `chunk`       | actions that are chosen at once                                     |
| `bins`        | bins or features of an embedding                                    |
| `steps`       | integration steps of a flow (K in the paper)                        |

Where several occur together, they come in this order.
"""

import dataclasses
from typing import Annotated, Literal, TypeAlias

from jaxtyping import Array, Float, PRNGKeyArray

Key: TypeAlias = PRNGKeyArray
Scalar: TypeAlias = Float[Array, ""]
Number: TypeAlias = float | int
"""A Python number."""
FloatLike: TypeAlias = float | int | Float[Array, ""]
"""A hyperparameter: a Python number, or a scalar array so that a sweep can be vmapped."""
Discounts: TypeAlias = FloatLike | Float[Array, "batch"]
"""γ, or of each transition the γ^n of its next state after n steps."""
Precision: TypeAlias = Literal["float32", "tf32", "bfloat16"]
"""Of the factors in products between hidden layers; sums are in float32."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Where a hyperparameter may lie, in the annotation of its field."""

    low: Number = float("-inf")
    high: Number = float("inf")
    open_low: bool = False
    open_high: bool = False


AtLeastZero: TypeAlias = Annotated[FloatLike, Range(0)]
Positive: TypeAlias = Annotated[FloatLike, Range(0, open_low=True)]
Share: TypeAlias = Annotated[FloatLike, Range(0, 1)]
AtLeastZeroNumber: TypeAlias = Annotated[Number, Range(0)]
PositiveNumber: TypeAlias = Annotated[Number, Range(0, open_low=True)]
BelowOne: TypeAlias = Annotated[FloatLike, Range(0, 1, open_high=True)]

Observation: TypeAlias = Float[Array, "observation"]
Action: TypeAlias = Float[Array, "action"]
Observations: TypeAlias = Float[Array, "batch observation"]
Actions: TypeAlias = Float[Array, "batch action"]
Chunk: TypeAlias = Float[Array, "chunk action"]
Values: TypeAlias = Float[Array, "batch"]
MemberValues: TypeAlias = Float[Array, "ensemble batch"]
Samples: TypeAlias = Float[Array, "batch noise"]
MemberSamples: TypeAlias = Float[Array, "ensemble batch noise"]
NextActions: TypeAlias = Float[Array, "batch noise action"]
Metrics: TypeAlias = dict[str, Scalar]
Loss: TypeAlias = tuple[Scalar, Metrics]
"""A loss, and what is to be known of it."""
