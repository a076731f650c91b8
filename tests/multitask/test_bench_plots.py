"""The pictures of a benchmark's run say what was measured: who wins, what was skipped, what stays fixed on a curve."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench_records import PEAKS, fake, results
from rsn2 import figures
from rsn2.bench import plots
from rsn2.bench.analysis import growths, rows
from rsn2.bench.cases import Case

CASES = [Case("linear", (64, 64), batch, density) for batch in (1, 64) for density in (0.1, 0.5)]
FASTER = {"dense": 4.0, "rsn2": 1.0, "rsn2 cpu": 0.5, "rsn2 dense": 4.0}


def skipped(case: Case) -> dict[str, Any]:
    return {"key": case.key, "case": case.as_dict(), "skipped": "too large"}


def memory(case: Case, **sizes: int) -> dict[str, Any]:
    kinds = {name: {"total": size * case.tasks, "disk": size} for name, size in sizes.items()}
    return {"key": case.key, "case": case.as_dict(), "memory": kinds}


def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *records: dict[str, Any]) -> dict[str, Any]:
    """Name of a picture -> the figure that `write` drew and saved."""
    made: dict[str, Any] = {}
    figure = figures.figure

    def kept(*size: float) -> Any:
        new = figure(*size)
        save = new.savefig

        def savefig(path: Path) -> None:
            made[path.stem] = new
            save(path)

        new.savefig = savefig
        return new

    monkeypatch.setattr(figures, "figure", kept)
    assert [path.stem for path in plots.write(results(*records), tmp_path)] == [*made]
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in tmp_path.iterdir())
    return made


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_the_winner_is_what_this_package_chooses_and_never_a_backend_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slower = {"dense": 1.0, "rsn2": 2.0, "rsn2 cpu": 0.5, "torch CSR": 3.0}
    records = [fake(case, times, jitter=0) for case, times in zip(CASES, [FASTER, FASTER, FASTER, slower], strict=True)]
    made = drawn(monkeypatch, tmp_path, *records)
    assert legend(made["winners"]) == ["rsn2", "dense"]
    assert texts(made["winners"].axes[0]) == ["4.00", "4.00", "4.00", "1.00"]
    (line, *_) = made["speed"].axes[0].containers[0].lines
    assert [*line.get_ydata()] == [4.0, 4.0]


def test_the_winner_is_judged_by_the_ratio_that_is_shown() -> None:
    record = fake(CASES[0], {"dense": 1.0, "rsn2": 1.0}, rounds=3)
    record["seconds"] = {"dense": [1.0, 3.0, 5.0], "rsn2": [1.1, 2.9, 5.1], "dense again": [1.0, 3.0, 5.0]}
    assert texts(plots.winning(CASES[:1], rows([record], PEAKS)).axes[0]) == ["1.00 ?"]


def test_a_winner_that_may_be_none_is_marked() -> None:
    found = rows([fake(CASES[0], {"dense": 1.0, "rsn2": 0.99}, jitter=0.1)], PEAKS)
    (text,) = texts(plots.winning(CASES[:1], found).axes[0])
    assert text.endswith(" ?")


@pytest.mark.parametrize(
    "times, text", [(1, "1.00"), (3.2, "3.20"), (9.996, "10.0"), (28.64, "28.6"), (99.96, "100"), (312.4, "312")]
)
def test_numbers_of_winners_have_as_many_decimals_as_others_of_their_size(times: float, text: str) -> None:
    found = rows([fake(CASES[0], {"dense": times, "rsn2": 1.0, "masked": 1e3}, jitter=0)], PEAKS)
    assert texts(plots.winning(CASES[:1], found).axes[0])[0].removesuffix(" ?") == text


def test_cases_that_were_skipped_are_hatched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = drawn(monkeypatch, tmp_path, *(fake(case, FASTER) for case in CASES[:3]), skipped(CASES[3]))
    (axes,) = made["winners"].axes
    assert [bool(cell.get_hatch()) for cell in axes.patches] == [False, False, False, True]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "0.5"]
    assert legend(made["winners"]) == ["rsn2", "skipped: see tables.md"]
    with_all = drawn(monkeypatch, tmp_path, *(fake(case, FASTER) for case in CASES))
    assert legend(with_all["winners"]) == ["rsn2"]


def test_cases_at_one_density_and_compiled_ones_are_lines_of_one_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    single = [
        Case("linear", (64, 64), 8, 0.5, mask="2:4"),
        Case("linear", (64, 64), 8, 0.1, compiled=True),
        Case("inference", (64, 2), 8, 0.1, tasks=5, compiled=True),
    ]
    absent = replace(single[0], batch=64)
    compiled = {**FASTER, "compiled": 2.0}
    records = [*(fake(case, FASTER) for case in CASES), fake(single[0], FASTER), skipped(absent)]
    made = drawn(monkeypatch, tmp_path, *records, *(fake(case, compiled, jitter=0) for case in single[1:]))
    assert {*made} == {"speed", "speed-one-density", "roofline", "winners"}
    (axes,) = made["speed-one-density"].axes
    keys = [label.get_text() for label in axes.get_yticklabels()]
    assert keys == [case.key for case in (single[0], absent, *single[1:])]
    assert texts(axes) == [" skipped"] and axes.texts[0].get_position()[1] == 1
    assert legend(made["speed-one-density"]) == ["rsn2", "compiled"]
    line = next(each.lines[0] for each in axes.containers if each.get_label() == "compiled")
    assert [*zip(line.get_xdata(), line.get_ydata(), strict=True)] == [(2.0, 2), (2.0, 3)]
    for name in ("speed", "winners"):
        assert len(made[name].axes) == 1 and "speed-one-density.png" in made[name].get_suptitle()


def test_panels_of_one_size_and_dtype_have_one_scale() -> None:
    forward, training = ([replace(case, training=training) for case in CASES] for training in (False, True))
    larger = [replace(case, shape=(128, 128)) for case in CASES]
    half = [replace(case, dtype="bfloat16") for case in CASES]
    speeds = zip((forward, training, larger, half), (2.0, 8.0, 30.0, 90.0), strict=True)
    records = [fake(case, {"dense": times, "rsn2": 1.0}) for of, times in speeds for case in of]
    panels = plots.speed([row for row in rows(records, PEAKS) if row.ours]).axes
    limits = [axes.get_ylim() for axes in panels]
    assert limits[0] == limits[1] and len({*limits}) == 3


def test_a_roofline_tells_batches_and_operators_apart() -> None:
    cases = [*CASES, Case("conv2d", (8, 8, 6), 16, 0.1), Case("conv2d", (8, 8, 6), 16, 0.1, training=True)]
    records = [fake(case, {"dense": 1.0, "rsn2": 1.0}) for case in cases]
    figure = plots.roofline(rows(records, PEAKS), results(*records))
    assert [axes.get_title() for axes in figure.axes] == ["forward", "training"]
    assert legend(figure) == ["dense", "rsn2", "batch 1", "batch 16", "batch 64", "linear", "conv2d"]
    marks = [line for axes in figure.axes for line in axes.lines if line.get_marker() != "None"]
    looks = {(line.get_marker(), line.get_markersize()) for line in marks}
    assert len(marks) == 2 * len(cases)
    assert sorted(mark for mark, _ in looks) == ["o", "o", "s"] and len({size for _, size in looks}) == 3


def test_titles_of_curves_say_what_stays_fixed_and_names_both_exponents(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    over_tasks = [Case("inference", (32, 2), 64, 0.005, tasks=tasks, axis="tasks") for tasks in (1, 4, 16)]
    over_weights = [Case("inference", (width, 1), 8, 0.1, axis="weights") for width in (10, 100, 1000)]
    times = [1.0, 1.0, 4.0]
    records = [
        fake(case, {"dense": 1.0, "rsn2": each}, jitter=0)
        for of in (over_tasks, over_weights)
        for case, each in zip(of, times, strict=True)
    ]
    panels = drawn(monkeypatch, tmp_path, *records)["growth"].axes
    assert [axes.get_legend().get_title().get_text() for axes in panels] == [
        "inference over tasks: time\n2 layers of 32, density 0.005 per task, batch 64",
        "inference over weights: time\n1 layer, density 0.1, batch 8",
    ]
    names = [text.get_text() for axes in panels for text in axes.get_legend().get_texts()]
    assert names == ["dense: 0.00, 0.00", "rsn2: 0.50, 1.00", "dense: 0.00, 0.00", "rsn2: 0.15, 0.30"]


def test_curves_that_meet_differ_in_mark_and_line() -> None:
    cases = [Case("memory", (32, 1), tasks=tasks, axis="tasks") for tasks in (1, 2, 4)]
    records = [memory(case, rsn2=10, masked=40, separate=40) for case in cases]
    (axes,) = plots.growth([each for each in growths(records) if each.what == "total"], cases).axes
    marks, laws = axes.lines[::2], axes.lines[1::2]
    assert len({line.get_marker() for line in marks}) == 3 and {line.get_fillstyle() for line in marks} == {"none"}
    assert [line.get_linestyle() for line in laws] == ["-", "--", "-"]
    assert laws[1].get_zorder() > laws[2].get_zorder()


def test_the_batch_of_what_a_training_step_takes_is_told() -> None:
    records = [memory(Case("memory", (32, 2), 64, 0.1, tasks=tasks), rsn2=10, separate=40) for tasks in (1, 5)]
    assert [axes.get_title() for axes in plots.tasks(records).axes] == [
        "while one task trains\n2 layers of 32, batch 64, density 0.1 per task",
        "file of the finished network\n2 layers of 32, density 0.1 per task",
    ]


@pytest.mark.parametrize("span", [1.05, 1.5, 2.1, 4, 7.9, 13, 39, 100, 900, 1e6])
@pytest.mark.parametrize("low", [0.013, 0.47, 0.98, 6.0])
def test_a_logarithmic_axis_has_enough_numbers_and_not_too_many(low: float, span: float) -> None:
    axes = figures.figure(4, 3).add_subplot()
    axes.set(yscale="log", ylim=(low, span * low))
    figures.ticks_between(axes)
    assert 4 <= sum(low <= place <= span * low for place in axes.get_yticks()) <= 11


def test_a_caption_is_no_wider_than_its_figure() -> None:
    figure = figures.figure(4, 3)
    figures.caption(figure, "words " * 30 + "\nand more of them")
    (words,) = figure.texts
    assert words.get_window_extent().width <= figure.get_figwidth() * figure.dpi
    assert figure.get_suptitle().splitlines()[-1] == "and more of them"
