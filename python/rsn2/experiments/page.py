"""docs/experiments.md, written from the results files of the paper's experiments.

python -m rsn2.experiments.page [RESULTS] [OUT]
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsn2 import markdown
from rsn2.experiments import f1_appendix, study_tables
from rsn2.experiments.paper.kind import Result, training_of
from rsn2.experiments.paper_tables import SIZES
from rsn2.experiments.results import average, load_results, values_of
from rsn2.experiments.wording import MSE_DECIMALS, as_in_paper, counted, digits, listed, share_of, spread

FEW_SEEDS = 3
# What a mean may be behind the paper's before its row falls short.
ACCURACY_ALLOWED = 0.01
MSE_ALLOWED = 1.1
_ROUNDING = 1e-9
HELD_UP = 1.5
"""Times the median of its epochs, all together, from which a training counts as held up."""

_INTRO = (
    "The paper's six experiments, on real data: several tasks in one network, each on its own weights (RSN2), against "
    "a dense network of the same shape (control), and against the paper's figures. Training stops when the validation "
    "loss has not fallen by more than 0.01 for the epochs of the patience that is named below, the paper's unless a "
    "note says otherwise; tasks trained at once stop by the sum of theirs. "
    "Figures are of the test set: the mean over the seeds ± their sample standard deviation, with the number of seeds "
    "in brackets. `python -m rsn2.experiments.page` writes this page from what `rsn2 experiment N` left in `results`, "
    "one file for each seed.",
    f"A row falls short when RSN2's mean is more than {100 * ACCURACY_ALLOWED:g} point of accuracy below the paper's, "
    f"or its error more than {MSE_ALLOWED:g} times the paper's. A control is weak when its mean, rounded as the paper "
    f"rounds (whole percents, errors to {MSE_DECIMALS} decimals), is worse than the paper's control.",
    '"changed" counts a task\'s values that were not the same bits at the end as right after its training, the most of '
    'all seeds. "epochs" and "s per epoch", the seconds of an epoch of training, are of RSN2 / of the control; "ratio" '
    "is the first of these seconds over the second. The seconds are the mean of the medians of those seeds whose files "
    "have one; where none has, of all epochs. Tasks that were trained at once share their seconds; their ratio is over "
    "the seconds of their controls together. All seconds are wall time on a machine with other work; where the seeds "
    "ran on different machines, the table has none. Minutes are the sum of all epochs, and count what held a run up.",
    "What a note says of settings that were tried beforehand was written down with the runs: no results file has the "
    "losses of these trials.",
)

# What to say of an experiment's table.
_REMARKS = {
    5: "How much images move was chosen from five amounts, by the validation losses of a network of the faces alone, "
    "with seeds 0 and 1, which are seeds of this table too; two of the amounts were left after 16 epochs. Three "
    "learning rates were tried for RSN2; of the controls, at 0.001, no trial is noted. So the columns RSN2 and control "
    "are no fair comparison: the controls may be better than they are here.",
}


def render(folder: Path) -> str:
    """The page, in Markdown.

    Raises:
        ValueError: as for :func:`load_results`.
    """
    results = load_results(folder)
    parts = ["# Experiments", *map(markdown.wrapped, _INTRO)]
    if not results:
        parts.append("There are no results yet.")
    parts += [_section(number, seeds) for number, seeds in results.items()]
    parts += study_tables.sections(folder)
    parts += f1_appendix.sections(results)
    return "\n\n".join(parts) + "\n"


# A section


def _section(number: int, results: Sequence[Result]) -> str:
    first = results[0]
    seeds = [str(result["seed"]) for result in results]
    header = ["task", "density", "paper: RSN2", "RSN2", "paper: control", "control", "changed", "epochs"]
    places = _places(results)
    timed = len(places) == 1
    header += ["s per epoch", "ratio"] if timed else []
    groups = {row["name"]: [result["rows"][place] for result in results] for place, row in enumerate(first["rows"])}
    lines = [line for group in groups.values() for line in _shortfalls(group)] or ["No row falls short of the paper."]
    if len(seeds) < FEW_SEEDS:
        lines.append(f"{counted(len(seeds), 'seed')} only ({', '.join(seeds)}): too few to know the spread.")
    lines += [_audit(results), *_sizes(number, results), _continual(results)]
    notes = dict.fromkeys(note for result in results for note in result["notes"])
    lines += [*notes, f"Allocation: {listed(first['allocation'])}.", *_training_lines(results), *_machines(places)]
    if timed and all(_is_vague(result) for result in results):
        lines.append(
            "The results files have no medians and name no exact processor: seconds and ratio are of all epochs, and "
            "the trainings may be from processors that differ."
        )
    remark = _REMARKS.get(number)
    return "\n\n".join(
        [
            f"## Experiment {number}: {first['title']}",
            markdown.table(header, [_cells(groups, name) + (_times(groups, name) if timed else []) for name in groups]),
            *([markdown.wrapped(remark)] if remark else []),
            "\n".join(markdown.wrapped(f"- {line}") for line in lines),
        ]
    )


def _cells(groups: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> list[str]:
    """One line of the table but for its times, of one row in all seeds; ``groups`` are those of all rows."""
    rows = groups[name]
    first = rows[0]
    metric, density, changed = first["metric"], first["density"], values_of(rows, "values_changed")
    return [
        first["name"],
        "-" if density is None else f"{density:g}",
        as_in_paper(metric, first["paper_rsn2"]),
        spread(metric, values_of(rows, "rsn2")),
        as_in_paper(metric, first["paper_control"]),
        spread(metric, values_of(rows, "control")),
        f"{max(changed):.0f}" if changed else "-",
        f"{digits(average(values_of(rows, 'epochs')))} / {digits(average(values_of(rows, 'control_epochs')))}",
    ]


def _times(groups: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> list[str]:
    """The rest of that line, where all seeds ran on one machine: seconds of an epoch, and the ratio."""
    rows = groups[name]
    ours, control = _per_epoch(rows, ""), _per_epoch(rows, "control_")
    together = [_per_epoch(groups[each], "control_") for each in (name, *rows[0].get("trained_with", ()))]
    controls = sum(each or 0.0 for each in together) if all(together) else None
    return [
        f"{digits(ours)} / {digits(control)}",
        f"{ours / controls:.2f}" if ours is not None and controls else "-",
    ]


def _shortfalls(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on what is behind the paper in one row."""
    name, metric = rows[0]["name"], rows[0]["metric"]
    paper, paper_control = rows[0]["paper_rsn2"], rows[0]["paper_control"]
    ours, control = values_of(rows, "rsn2"), values_of(rows, "control")
    sentences = []
    if ours and paper is not None:
        limit = paper - ACCURACY_ALLOWED if metric == "accuracy" else MSE_ALLOWED * paper
        allowed = "1 point" if metric == "accuracy" else f"{100 * (MSE_ALLOWED - 1):.0f} %"
        if _worse(metric, statistics.fmean(ours), limit):
            behind = _behind(metric, statistics.fmean(ours), paper)
            sentences.append(f"{name} falls short: RSN2 is {behind}; allowed is {allowed}.")
    if control and paper_control is not None:
        rounded = round(statistics.fmean(control), 2 if metric == "accuracy" else MSE_DECIMALS)
        if _worse(metric, rounded, paper_control):
            behind = _behind(metric, statistics.fmean(control), paper_control)
            shown = as_in_paper(metric, rounded)
            sentences.append(f"{name} has a weak control: it is {behind}, and still worse when rounded ({shown}).")
    return sentences


def _worse(metric: str, value: float, limit: float) -> bool:
    return value < limit - _ROUNDING if metric == "accuracy" else value > limit + _ROUNDING


def _behind(metric: str, value: float, paper: float) -> str:
    if metric == "accuracy":
        return f"{100 * value:.2f} %, {100 * (paper - value):.2f} points below the paper's {as_in_paper(metric, paper)}"
    return f"{value:.4f}, {100 * (value / paper - 1):.1f} % above the paper's {as_in_paper(metric, paper)}"


def _audit(results: Sequence[Result]) -> str:
    """What later training and a new process did to the answers."""
    broken = []
    for key, promise in (
        ("predictions_unchanged", "predictions changed after later training"),
        ("reload_bitwise_equal", "the saved network answered otherwise in a new process"),
    ):
        if seeds := [str(result["seed"]) for result in results if not result[key]]:
            broken.append(f"**In {counted(len(seeds), 'run')} (seed {', '.join(seeds)}) {promise}.**")
    return " ".join(broken) or (
        f"In {len(results)} of {counted(len(results), 'run')}, every task predicts at the end what it did right after "
        "its training, bit for bit, and so does the saved network in a new process."
    )


def _sizes(number: int, results: Sequence[Result]) -> list[str]:
    """Bytes, like compared with like: with both or without optimizer state."""

    def mean(part: str, kind: str) -> float:
        return statistics.fmean([result["bytes"][part][kind] for result in results])

    if not mean("controls", "weights"):
        return [f"Size: {digits(mean('network', 'weights') / 1e6)} MB, without controls to compare it with."]
    weights, with_optimizer = (
        share_of(mean("network", kind), mean("controls", kind)) for kind in ("weights", "with_optimizer")
    )
    layers = share_of(mean("multitask_layers", "weights"), mean("multitask_layers", "dense"))
    lines = [
        f"Size: {weights} of {counted(len(results[0]['control_training']), 'dense control')}; with optimizer state "
        f"{with_optimizer}. The pruned layers alone: {layers} that they take in "
        f"{counted(len(results[0]['training']), 'dense network')}."
    ]
    if number in SIZES:
        lines.append(f"The paper's sizes on disk: {share_of(*SIZES[number])}.")
    if number == 6:
        lines[-1] += " They look like weights alone against weights with Adam's two moments; ours are like with like."
    return lines


def _continual(results: Sequence[Result]) -> str:
    measures = [result["continual"] for result in results]
    accuracies, transfers = (values_of(measures, key) for key in ("average_accuracy", "backward_transfer"))
    parts = [f"capacity used {spread('accuracy', values_of(measures, 'capacity'))}"]
    if transfers:
        parts.insert(0, f"backward transfer {100 * statistics.fmean(transfers) + 0.0:.3g} points")
    if accuracies:
        parts.insert(0, f"average accuracy {spread('accuracy', accuracies)}")
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _training_lines(results: Sequence[Result]) -> list[str]:
    """Tasks and controls with equal settings in one line."""
    groups: dict[str, list[str]] = {}
    for task, settings in training_of(results[0]).items():
        groups.setdefault(listed(settings), []).append(task)
    return [f"Training of {', '.join(tasks)}: {settings}." for settings, tasks in groups.items()]


def _places(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Machine -> the results that are from it."""
    found: dict[str, list[Result]] = {}
    for result in results:
        machine = result["machine"]
        place = (
            f"{machine['cpu']}, {counted(machine['threads'], 'thread')}, device {machine.get('gpu', machine['device'])}"
        )
        found.setdefault(place, []).append(result)
    return found


def _machines(places: Mapping[str, Sequence[Result]]) -> list[str]:
    """One line per machine: how long it took says nothing of another."""
    lines = []
    for place, results in places.items():
        torch = dict.fromkeys(f"torch {result['versions']['torch']}" for result in results)
        minutes = {
            part: statistics.fmean([result["training_seconds"][part] for result in results]) / 60
            for part in ("network", "controls")
        }
        seeds = f"Seed{'s' if len(results) > 1 else ''} {', '.join(str(result['seed']) for result in results)}: "
        lines.append(
            f"{seeds if len(places) > 1 else ''}{place}; {', '.join(torch)}; {minutes['network']:.1f} minutes of "
            f"training a run, and {minutes['controls']:.1f} of its controls."
        )
        if held := [str(result["seed"]) for result in results if _was_held_up(result)]:
            lines[-1] += (
                f" Held up by other work, so that all epochs took more than {HELD_UP:g} times what they take at their "
                f"median: seed{'s' if len(held) > 1 else ''} {', '.join(held)}."
            )
    return lines


def _is_vague(result: Result) -> bool:
    """Whether a file has neither a median of seconds nor the numbers that tell processors of one name apart."""
    return ", family " not in result["machine"]["cpu"] and not any("epoch_seconds" in row for row in result["rows"])


def _was_held_up(result: Result) -> bool:
    """Whether a training of a run, or of its controls, took much longer than its epochs at their median."""
    return any(
        row[f"{part}seconds"] > HELD_UP * row[f"{part}epochs"] * median
        for row in result["rows"]
        for part in ("", "control_")
        if (median := row.get(f"{part}epoch_seconds"))
    )


def _per_epoch(rows: Sequence[Mapping[str, Any]], prefix: str) -> float | None:
    """Seconds of one epoch, the mean of the seeds: of their medians, or in older files of all their epochs."""
    if medians := [row[key] for row in rows if (key := f"{prefix}epoch_seconds") in row and row[key] is not None]:
        return statistics.fmean(medians)
    seconds, epochs = values_of(rows, f"{prefix}seconds"), values_of(rows, f"{prefix}epochs")
    return sum(seconds) / sum(epochs) if sum(epochs) else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page; ``arguments`` are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m rsn2.experiments.page", description="Write docs/experiments.md.")
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="folder of the results files")
    parser.add_argument("out", nargs="?", type=Path, default=Path("docs/experiments.md"), help="the page")
    options = parser.parse_args(arguments)
    options.out.write_text(render(options.results), encoding="utf-8")


if __name__ == "__main__":
    main()
