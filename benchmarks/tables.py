"""The figures of README.md and docs/performance.md, written from the results files of this repository.

python benchmarks/tables.py           # writes them
python benchmarks/tables.py --check   # exits with 1 if they are not what the results files say
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import operators

ROOT = Path(__file__).parents[1]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, the first column to the left and the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def demo() -> str:
    """The tasks of `make demo`."""
    report = json.loads((ROOT / "results/demo/report.json").read_text())
    rows = []
    for task in report["tasks"]:
        decimals = 4 if task["metric"] == "accuracy" else 0
        figures = (task["value"], task["control"], task["value_after_training"])
        sparse, dense, before = (f"{figure:.{decimals}f}" for figure in figures)
        rows.append([task["name"], task["metric"], sparse, dense, before, str(task["values_changed"])])
    table = markdown(
        [
            "task",
            "metric",
            "one network, density 0.2",
            "dense network of its own",
            "right after its training",
            "changed",
        ],
        rows,
    )
    bits, dense_bits = report["bits_per_weight"], report["bits_per_weight_dense"]
    return (
        f"{table}\n\nBits per shared weight, everything counted: {bits:.1f} for the network of four tasks, "
        f"{dense_bits:.1f} for four dense networks. {report['seconds']:.0f} s on {report['threads']} thread, controls "
        f"included."
    )


def speed() -> str:
    """Operators against the dense library."""
    content = json.loads((ROOT / "results/operators-cpu.json").read_text())
    machine = content["machine"]
    table = markdown(operators.COLUMNS, [operators.cells(found) for found in content["results"]])
    return f"torch {machine['torch']}, {machine['cpu_capability']}, {machine['threads']} thread.\n\n{table}"


TABLES = {"README.md": ("demo", demo), "docs/performance.md": ("speed", speed)}


def main() -> int:
    """Write or check all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = []
    for name, (marker, make) in TABLES.items():
        path = ROOT / name
        text = path.read_text()
        start, end = f"<!-- {marker} -->\n", f"<!-- end of {marker} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        fresh = f"{before}{start}{make()}\n{end}{after}"
        if fresh != text:
            stale.append(name)
            if not check:
                path.write_text(fresh)
    print(f"{'stale' if check else 'written'}: {stale}" if stale else "all tables are those of the results files")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
