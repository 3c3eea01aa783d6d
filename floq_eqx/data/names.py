"""OGBench's names (arXiv 2410.20092), which are known without OGBench."""

import dataclasses
import difflib
import itertools

# Each family's environments, and the kinds of their data.
_MAZES = ("medium", "large", "giant", "teleport")
_NAMES = {
    "antmaze": (_MAZES, ("navigate", "stitch", "explore")),
    "antsoccer": (("arena", "medium"), ("navigate", "stitch")),
    "cube": (("single", "double", "triple", "quadruple", "octuple"), ("play", "noisy")),
    "humanoidmaze": (_MAZES, ("navigate", "stitch")),
    "pointmaze": (_MAZES, ("navigate", "stitch")),
    "powderworld": (("easy", "medium", "hard"), ("play",)),
    "puzzle": (("3x3", "4x4", "4x5", "4x6"), ("play", "noisy")),
    "scene": (("",), ("play", "noisy")),
}
_VISUAL = ("antmaze", "cube", "humanoidmaze", "puzzle", "scene")
_TASKS = ("", "-singletask", *(f"-singletask-task{number}" for number in range(1, 6)))


@dataclasses.dataclass(frozen=True)
class DatasetName:
    """An OGBench name, `<environment>-<kind>[-singletask[-task<N>]]-v0`, taken apart.

    **Attributes:**

    - `environment`: such as `cube-single`.
    - `kind`: how the data were collected, such as `play`.
    - `task`: `None` for the goal-conditioned environment; else the task, 1 to 5, or 0 for the
        one that OGBench takes by default.
    """

    environment: str
    kind: str
    task: int | None = None

    @property
    def family(self) -> str:
        """The environment's first word, such as `cube`; `visual` where it shows pixels."""
        return self.environment.split("-")[0]

    @property
    def dataset(self) -> str:
        """The dataset's name, which all tasks share: its files' stem."""
        return f"{self.environment}-{self.kind}-v0"

    @property
    def environment_id(self) -> str:
        """The name under which OGBench registers the environment in Gymnasium."""
        return f"{self.environment}{self._suffix}-v0"

    @property
    def _suffix(self) -> str:
        if self.task is None:
            return ""
        return "-singletask" + (f"-task{self.task}" if self.task else "")

    def __str__(self) -> str:
        return f"{self.environment}-{self.kind}{self._suffix}-v0"


def dataset_names() -> list[str]:
    """All the dataset names that `parse_name` accepts, sorted; OGBench is not needed for them.

    **Returns:** goal-conditioned names such as `cube-single-play-v0` and, where OGBench has the
    tasks, single-task names such as `cube-single-play-singletask-task1-v0`.
    """
    names = []
    for family, (sizes, kinds) in _NAMES.items():
        tasks = _TASKS if family != "powderworld" else ("",)
        for size, kind, task in itertools.product(sizes, kinds, tasks):
            if (size, kind) == ("giant", "explore"):
                continue
            name = "-".join(filter(None, (family, size, kind)))
            names.append(f"{name}{task}-v0")
            if family in _VISUAL and size != "octuple":
                names.append(f"visual-{name}{task}-v0")
    return sorted(names)


def parse_name(name: str) -> DatasetName:
    """Takes an OGBench dataset name apart.

    **Arguments:**

    - `name`: such as `cube-single-play-v0` or `cube-single-play-singletask-task1-v0`.

    **Returns:** its parts, as a `DatasetName`.

    **Raises:** `ValueError` for a name that OGBench does not have, with the nearest it has.
    """
    known = dataset_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise ValueError(
            f"Unknown dataset {name!r}: expected an OGBench name, "
            f"<environment>-<kind>[-singletask[-task<N>]]-v0.{hint}"
        )
    stem, _, task = name.removesuffix("-v0").partition("-singletask")
    environment, kind = stem.rsplit("-", 1)
    number = int(task.removeprefix("-task") or 0) if "-singletask" in name else None
    return DatasetName(environment, kind, number)
