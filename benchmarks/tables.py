"""The figures of README.md and of docs, written from the results files of this repository.

python benchmarks/tables.py           # writes them
python benchmarks/tables.py --check   # exits with 1 if they are not what the results files say
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gpu_tables
import occupancy
import operators
from rsn2 import markdown
from rsn2.bench import report
from rsn2.bench.results import Results

ROOT = Path(__file__).parents[1]


def demo() -> str:
    """The tasks of `make demo`."""
    report = json.loads((ROOT / "results/demo/report.json").read_text())
    rows = []
    for task in report["tasks"]:
        decimals = 4 if task["metric"] == "accuracy" else 0
        figures = (task["value"], task["control"], task["value_after_training"])
        sparse, dense, before = (f"{figure:.{decimals}f}" for figure in figures)
        rows.append([task["name"], task["metric"], sparse, dense, before, str(task["values_changed"])])
    table = markdown.table(
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
    """Operators against the dense library, and where they lose, per processor and number of threads."""
    parts = []
    for path in sorted((ROOT / "results").glob("operators-*.json")):
        results = Results.read(path)
        speeds = operators.table(results)
        parts += [f"### {path.stem}", " ".join(report.summary(results)), markdown.table(speeds.header, speeds.rows)]
        parts.append(report.losses(results).markdown(level=4))
    return "\n\n".join(parts)


def place(content: dict[str, Any]) -> str:
    """Where a results file was measured, in a sentence."""
    machine = content["machine"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    return f"{machine['cpu']} ({machine['cpu_capability']}), {threads}, torch {machine['torch']}."


def epoch() -> str:
    """One epoch of training against dense and masked networks."""
    content = json.loads((ROOT / "results/epoch-cpu.json").read_text())
    seconds = content["seconds"]
    rows = [[name, f"{each:.2f}", f"{each / seconds['packed']:.2f}"] for name, each in seconds.items()]
    table = markdown.table(["network", "seconds of one epoch", "times the packed one's"], rows)
    return f"{place(content)}\n\n{table}"


def overhead() -> str:
    """What a call costs beside its kernel, in microseconds."""
    content = json.loads((ROOT / "results/overhead-cpu.json").read_text())
    hot, cold = content["seconds"].values()
    table = markdown.table(
        ["", *content["seconds"]], [[name, f"{1e6 * hot[name]:.0f}", f"{1e6 * cold[name]:.0f}"] for name in hot]
    )
    return f"{place(content)}\n\n{table}"


def occupancies() -> Any:
    """What benchmarks/occupancy.py counted and predicted."""
    return json.loads((ROOT / "results/occupancy.json").read_text())


def summary(columns: dict[str, str]) -> str:
    """Medians and ranges over layers and tasks."""
    return markdown.table(*occupancy.summary(occupancies(), columns))


def short() -> str:
    """Medians of the linear networks, and of the convolutions, in three sentences."""
    medians: dict[str, dict[str, list[float]]] = {}
    for (network, claimed, *_), found in occupancy.summary_rows(occupancies()):
        if claimed == "1 x 1":
            of_network = medians.setdefault(network, {})
            for column in ("windows_128", "windows_visited", "windows_predicted_forward"):
                of_network.setdefault(column, []).append(statistics.median(each[column] for each in found))
    wide, narrow, conv = (medians[name] for name in ("fc 4096", "fc 1000", "conv, 3 x 3 layers"))

    def listed(values: list[float]) -> str:
        *first, last = (f"{value:.2f}" for value in values)
        return f"{', '.join(first)} and {last}"

    densities = listed(list(occupancy.DENSITIES))
    ahead, behind = (listed(each["windows_predicted_forward"]) for each in (wide, narrow))
    return "\n".join(
        markdown.wrapped(f"- {line}")
        for line in (
            f"Windows of 128 rows visit {listed(wide['windows_128'])} of a 4096-wide layer at densities {densities}; "
            f"of a 1000-wide one {listed(narrow['windows_128'])}.",
            "**Predicted** forward time over the dense library's, bf16, 4096 rows: "
            f"{ahead} in layers of 4096, {behind} in layers of 1000.",
            f"The paper's convolutions: {listed(conv['windows_visited'])} visited, so nothing is skipped, and a "
            f"predicted time of {listed(conv['windows_predicted_forward'])}.",
        )
    )


def tiles() -> str:
    """How often windows are ahead of sorted tiles."""
    found = [
        each
        for each in occupancy.records(occupancies()["layers"])
        if each["taps"] == 1 and each["without_gradient"] <= occupancy.TIED
    ]
    fewer = sum(all(each[f"windows_{side}"] <= each[f"tiles_{side}"] for side in occupancy.TILES) for each in found)
    worst = [
        each["windows_predicted_forward"] / min(each[f"tiles_{side}_predicted_forward"] for side in occupancy.TILES)
        for each in found
    ]
    ahead = sum(ratio <= 1 for ratio in worst)
    return markdown.wrapped(
        f"Of {len(found)} masks of linear layers, blocks included, windows visit no more than sorted tiles of their "
        f"height in {fewer}, at 64 and at 128 rows. By predicted forward time they are not behind the better of both "
        f"tile sizes in {ahead}, and at worst {100 * (max(worst) - 1):.1f} % behind."
    )


def orders() -> str:
    """Orders of the rows against the order by count."""
    return markdown.table(*occupancy.order_summary(occupancies()))


def build() -> str:
    """How long a plan takes to make."""
    found = occupancies()["build"]
    seconds = found["both_plans_seconds"]
    return (
        f"Both plans of a {found['rows']} x {found['cols']} mask of density {found['owned']:.2g}: {seconds:.2g} s on "
        f"{found['threads']} thread of a CPU with {found['cpu_capability']}."
    )


def by_layer(network: str) -> str:
    """Tasks across: what the forward product and dX visit, and the share of weights without a gradient."""
    found = [each for each in occupancy.records(occupancies()["layers"]) if each["network"] == network]
    rows: dict[tuple[str, str], list[str]] = {}
    for each in found:
        if each["claimed"] == "1 x 1":
            tied = f" ({each['without_gradient']:.2f})" if each["without_gradient"] > occupancy.TIED else ""
            key = (f"{each['layer']}: {each['rows']} x {each['cols']}", str(each["density"]))
            rows.setdefault(key, []).append(f"{each['windows_visited']:.2f} {each['transposed_visited']:.2f}{tied}")
    tasks = [f"task {task}" for task in range(1, occupancy.TASKS + 1)]
    return markdown.table(["layer", "density", *tasks], [[*key, *cells] for key, cells in rows.items()])


def profile() -> str:
    """Where the C++ operators spend their time, and what their innermost loops are made of."""
    found = json.loads((ROOT / "results/profile-cpu.json").read_text())
    parts = list(next(iter(found["shares"].values()))["forward"])
    shares = [
        [f"{problem}, {kind}", *(f"{100 * of[part]:.0f} %" for part in parts)]
        for problem, kinds in found["shares"].items()
        for kind, of in kinds.items()
    ]
    kinds = list(next(iter(found["loops"].values())))
    loops = [[loop, *(f"{of[kind]:.1f}" for kind in kinds)] for loop, of in found["loops"].items()]
    return "\n\n".join(
        [
            place(found),
            markdown.table(["problem", *parts], shares),
            markdown.table(["innermost loop of", *kinds], loops),
        ]
    )


def benchmarks() -> str:
    """What `rsn2 bench` found, per results file."""
    parts = []
    for path in sorted((ROOT / "results").glob("bench-*.json")):
        results = Results.read(path)
        brief = results.about["settings"]["grid"] == "full"
        parts += [f"### {path.stem.removeprefix('bench-')}", *report.summary(results)]
        parts += [table.markdown(level=4) for table in report.tables(results, brief=brief)]
    return "\n\n".join(parts) or "There is no such file yet."


TABLES: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("README.md", "demo", demo),
    ("docs/performance.md", "speed", speed),
    ("docs/performance.md", "epoch", epoch),
    ("docs/performance.md", "overhead", overhead),
    ("docs/performance.md", "profile", profile),
    ("docs/benchmarks.md", "bench", benchmarks),
    ("docs/gpu.md", "steps", gpu_tables.steps),
    ("docs/gpu.md", "training", gpu_tables.training),
    ("docs/gpu.md", "other products", gpu_tables.others),
    ("docs/gpu.md", "bars", gpu_tables.bars),
    ("docs/gpu.md", "tiles of the product", gpu_tables.products),
    ("docs/gpu.md", "tiles of the sampled product", gpu_tables.sampled),
    ("docs/gpu.md", "small batches", gpu_tables.small_batches),
    ("docs/gpu.md", "calls", gpu_tables.calls),
    ("docs/plan.md", "short", short),
    ("docs/plan.md", "tiles", tiles),
    ("docs/plan.md", "occupancy", partial(summary, occupancy.OCCUPANCIES)),
    ("docs/plan.md", "predictions", partial(summary, occupancy.PREDICTIONS)),
    ("docs/plan.md", "structure", partial(summary, occupancy.STRUCTURE)),
    ("docs/plan.md", "build", build),
    ("docs/plan.md", "orders", orders),
    *(("docs/plan.md", f"layers of {network}", partial(by_layer, network)) for network in occupancy.NETWORKS),
)


def main() -> int:
    """Write or check all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = []
    for name, marker, make in TABLES:
        path = ROOT / name
        text = path.read_text()
        start, end = f"<!-- {marker} -->\n", f"<!-- end of {marker} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        fresh = f"{before}{start}{make()}\n{end}{after}"
        if fresh != text:
            stale.append(f"{marker} in {name}")
            if not check:
                path.write_text(fresh)
    print(f"{'stale' if check else 'written'}: {stale}" if stale else "all tables are those of the results files")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
