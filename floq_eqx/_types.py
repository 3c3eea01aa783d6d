"""Array aliases and the legend of shape names that every signature uses.

| name          | axis                                                                |
|---------------|---------------------------------------------------------------------|
| `ensemble`    | members of an ensemble of networks                                  |
| `batch`       | transitions                                                         |
| `noise`       | samples of the initial noise of one transition (m in the paper)     |
| `observation` | components of an observation                                        |
| `action`      | components of an action, each in [-1, 1]                            |
| `bins`        | bins or features of an embedding                                    |
| `steps`       | integration steps of a flow (K in the paper)                        |

Where several occur together, they come in this order.
"""

from typing import TypeAlias

from jaxtyping import Array, Float, PRNGKeyArray

Key: TypeAlias = PRNGKeyArray
Scalar: TypeAlias = Float[Array, ""]
Number: TypeAlias = float | int
"""A Python number."""
FloatLike: TypeAlias = float | int | Float[Array, ""]
"""A hyperparameter: a Python number, or a scalar array so that a sweep can be vmapped."""

Observation: TypeAlias = Float[Array, "observation"]
Action: TypeAlias = Float[Array, "action"]
Observations: TypeAlias = Float[Array, "batch observation"]
Actions: TypeAlias = Float[Array, "batch action"]
Values: TypeAlias = Float[Array, "batch"]
Metrics: TypeAlias = dict[str, Scalar]
