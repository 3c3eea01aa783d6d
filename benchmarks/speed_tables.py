"""The tables of `benchmarks/speed.py`, from the numbers that it writes as JSON."""

from collections.abc import Iterable, Sequence
from typing import Any

MEBI = 2**20


def markdown(results: dict[str, Any]) -> str:
    """Every number of a run, as Markdown."""
    machine = results["machine"]
    rates = ", ".join(
        f"{precision} {rate['wall'] / 1e9:.1f} GFLOP/s ({rate['cpu'] / 1e9:.1f} a CPU second)"
        for precision, rate in results["rates"].items()
    )
    blocks = [
        f"`{results['command']}`",
        f"{machine['cpu']}, {machine['cores']} cores, on {machine['device']}, "
        f"JAX {machine['jax']}, {results['date']}.\nThe best rate of matrix products: {rates}. "
        "Times are medians, and in brackets their range.",
    ]
    for title, rows in _sections(results):
        blocks.append(f"## {title}\n\n{_table(rows)}")
    return "\n\n".join(blocks) + "\n"


def _sections(results: dict[str, Any]) -> Iterable[tuple[str, list[dict[str, str]]]]:
    cases = results["cases"]
    yield "An update", [_of_case(case) for case in cases]
    yield "The time to the first update, in seconds (of CPU time)", [_of_first(c) for c in cases]
    compared = [_of_other(case) for case in cases if "other" in case]
    if compared:
        yield f"By turns with {results['against']}", compared
    for block in results["breakdown"]:
        title = f"The parts of an update of {block['agent']}, {block['size']}, each by itself"
        yield title, [_of_part(row, block) for row in block["rows"]]
    for block in results["growth"]:
        around = f"of {block['agent']} at {block['precision']}, around {block['around']}"
        for size in dict.fromkeys(row["size"] for row in block["rows"]):
            rows = [row for row in block["rows"] if row["size"] == size]
            yield f"An update {around}, by {size}", [_of_growth(row, rows[0]) for row in rows]


def _of_case(case: dict[str, Any]) -> dict[str, str]:
    return _names(case) | {
        "parameters": f"{case['parameters']:,}",
        "batch": str(case["batch_size"]),
        "GFLOP": _flops(case),
        "updates a second": f"{case['updates_per_second']:.1f}",
        "wall, ms": _milliseconds(case["wall"]),
        "CPU, ms": _milliseconds(case["cpu"]),
        "the system's, ms": f"{1e3 * case['system']['median']:.2f}",
        "of the products' rate": f"{case['fraction']['wall']:.0%}",
        "by CPU time": f"{case['fraction']['cpu']:.0%}",
        "program, MiB": f"{case['memory'] / MEBI:.0f}",
        "process, MiB": f"{case['resident'] / MEBI:.0f}",
    }


def _of_first(case: dict[str, Any]) -> dict[str, str]:
    parts = {name: f"{t['wall']:.2f} ({t['cpu']:.2f})" for name, t in case["first"].items()}
    return _names(case) | parts


def _of_other(case: dict[str, Any]) -> dict[str, str]:
    other = case["other"]
    return _names(case) | {
        "its precision": other["precision"],
        "CPU, ms": _milliseconds(case["cpu"]),
        "its CPU, ms": _milliseconds(other["cpu"]),
        "ratio of CPU time": _spread(other["ratio"]["cpu"], 1, 3),
        "ratio of wall time": _spread(other["ratio"]["wall"], 1, 3),
        "its first update, s": f"{other['first']['total']['wall']:.2f}",
    }


def _of_part(row: dict[str, Any], block: dict[str, Any]) -> dict[str, str]:
    whole = block["rows"][-1]
    return {
        "part": row["part"],
        "GFLOP": _flops(row),
        "wall, ms": _milliseconds(row["wall"]),
        "CPU, ms": _milliseconds(row["cpu"]),
        "the system's, ms": f"{1e3 * row['system']['median']:.2f}",
        "of the whole's CPU time": f"{row['cpu']['median'] / whole['cpu']['median']:.0%}",
        "of the products' rate, by CPU time": f"{row['fraction']['cpu']:.0%}",
    }


def _of_growth(row: dict[str, Any], first: dict[str, Any]) -> dict[str, str]:
    return {
        row["size"]: str(row["value"]),
        "GFLOP": _flops(row),
        "wall, ms": _milliseconds(row["wall"]),
        "CPU, ms": _milliseconds(row["cpu"]),
        "CPU time over the first": f"{row['cpu']['median'] / first['cpu']['median']:.2f}",
    }


def _names(case: dict[str, Any]) -> dict[str, str]:
    return {name: case[name] for name in ("agent", "size", "precision")}


def _flops(row: dict[str, Any]) -> str:
    """With a note where loops of unknown length count once."""
    return f"{row['flops'] / 1e9:.3g}" + (" or more" if row.get("loops") else "")


def _milliseconds(seconds: dict[str, float]) -> str:
    return _spread(seconds, 1e3, 2)


def _spread(found: dict[str, float], unit: float, digits: int) -> str:
    median, least, most = (f"{unit * found[k]:.{digits}f}" for k in ("median", "least", "most"))
    return f"{median} [{least}, {most}]"


def _table(rows: Sequence[dict[str, str]]) -> str:
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
