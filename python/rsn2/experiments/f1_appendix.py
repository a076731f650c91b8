"""The end of docs/experiments.md: F1 of every class, beside the paper's."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from rsn2 import markdown
from rsn2.experiments.paper.kind import Result
from rsn2.experiments.paper_tables import F1_CONTROL, F1_RSN2, F1Row

# More columns than this are no table that one reads.
_MOST_CLASSES = 10

_INTRO = (
    "F1 of every class, the mean over the seeds in which the task has the class, and below it the paper's, where its "
    'appendix is legible. The appendix numbers experiments otherwise than the text: its "Exp 2" and "Exp 3" are 3 '
    'and 2 of the text, its "Exp 7" and "Exp 8" are 4 and 5. "Exp 3" is the nearest to experiment 2, though its '
    "accuracies (98 and 87 %) are each a point above those of the text (97 and 86 %)."
)


def sections(results: Mapping[int, Sequence[Result]]) -> list[str]:
    """The appendix in parts, in Markdown; ``results`` are those of each experiment by seed. Nothing without scores."""
    parts = [part for number, seeds in results.items() for part in _tables(number, seeds)]
    return ["## Appendix: F1 per class", markdown.wrapped(_INTRO), *parts] if parts else []


def _tables(number: int, results: Sequence[Result]) -> list[str]:
    """A heading and one table for all tasks of an experiment with the same classes."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for task, classes in _classes(results).items():
        if len(classes) > _MOST_CLASSES:
            continue
        rows = tables.setdefault(classes, [])
        for network, paper in (("rsn2", F1_RSN2), ("control", F1_CONTROL)):
            if ours := _mean_f1(results, network, task):
                rows.append([f"{task}: {'RSN2' if network == 'rsn2' else network}", *_scores(ours, classes)])
            if found := paper.get((number, task)):
                rows.append([_source(found), *_scores(found.scores, classes)])
    parts = [markdown.table(["F1", *classes], rows) for classes, rows in tables.items() if rows]
    return [f"### Experiment {number}", *parts] if parts else []


def _classes(results: Sequence[Result]) -> dict[str, tuple[str, ...]]:
    """Task -> its classes in any seed: which are easy or hard may differ between seeds."""
    found: dict[str, dict[str, None]] = {}
    for result in results:
        for task, classes in result["classes"].items():
            found.setdefault(task, {}).update(dict.fromkeys(classes))
    return {task: tuple(classes) for task, classes in found.items()}


def _mean_f1(results: Sequence[Result], network: str, task: str) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for result in results:
        if found := result["f1"].get(network, {}).get(task):
            for name, score in zip(result["classes"][task], found, strict=True):
                scores.setdefault(name, []).append(score)
    return {name: statistics.fmean(found) for name, found in scores.items()}


def _scores(scores: Mapping[str, float], classes: Iterable[str]) -> list[str]:
    return [f"{scores[name]:.2f}" if name in scores else "-" for name in classes]


def _source(row: F1Row) -> str:
    return f"paper, table {row.table}: {row.row}"
