"""A configuration and its data are checked key by key and column by column, and read as they say."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from csv_runs import EXAMPLES
from rsn2.experiments import tabular
from rsn2.experiments.config import _ALLOCATION, _NETWORK, _TASK, _TRAINING, Config, ConfigError, read_config
from rsn2.experiments.settings import Allocation, Training
from rsn2.experiments.tables import Scaling, load_split


def test_the_examples_are_sound_and_differ_in_training_alone() -> None:
    demo, sgd = (read_config(EXAMPLES / name) for name in ("demo.toml", "demo_sgd.toml"))
    assert [task.name for task in demo.tasks] == ["digits", "breast_cancer", "wine", "diabetes"]
    assert all(task.density == 0.2 for task in demo.tasks)
    assert demo.hidden == sgd.hidden == (256, 256, 256)
    assert (demo.training.optimizer, demo.training.weight_decay) == ("adamw", 0.1)
    assert (sgd.training.optimizer, sgd.training.momentum) == ("sgd", 0.9)
    assert demo.allocation == sgd.allocation


def test_a_task_overrides_the_training_of_the_file(config: Path) -> None:
    first, second = read_config(config).tasks
    assert first.training == read_config(config).training
    assert second.training == dataclasses.replace(first.training, epochs=2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[network]", "[net]", r"unknown table \[net\]"),
        ("hidden = [24, 20]", "hiden = [24]", r"\[network\]: unknown key 'hiden'"),
        ("hidden = [24, 20]", "hidden = []", r"\[network\] hidden: expected a list"),
        ("lr = 0.05", "lr = 0", r"\[training\] lr: expected a number above 0\. Got 0"),
        ("lr = 0.05", 'lr = "fast"', r"\[training\] lr: "),
        ("lr = 0.05", "lr = true", r"\[training\] lr: "),
        ("lr = 0.05", "lr = nan", r"\[training\] lr: "),
        ("lr = 0.05", "lr_patience = 0", r"\[training\] lr_patience: expected an int of at least 1"),
        ("lr = 0.05", "lr_factor = 1", r"\[training\] lr_factor: expected a number in \(0, 1\)"),
        ('optimizer = "sgd"', 'optimizer = "lion"', r"\[training\] optimizer: expected one of"),
        ('optimizer = "sgd"', 'optimizer = "adam"', r"\[training\] momentum: only 'sgd' has one"),
        ("momentum = 0.9", "momentum = 1.0", r"\[training\] momentum: "),
        ("epochs = 4", "epochs = 0", r"\[training\] epochs: "),
        ("[[tasks]]", '[allocation]\nscope = "all"\n[[tasks]]', r"\[allocation\] scope: "),
        ("density = 0.3", "density = 1.3", r"\[\[tasks\]\] 'shapes' density: "),
        ("density = 0.3", "density = 0.6", r"the densities add to 1\.1"),
        ("density = 0.3", "", r"\[\[tasks\]\] 'shapes': the key 'density' is missing"),
        ('name = "sizes"', 'name = "shapes"', "expected different names"),
        ('name = "sizes"', 'name = "the sizes"', r"\[\[tasks\]\] 'the sizes' name: "),
        ('data = "sizes.csv"', 'data = "sklearn:iris"', r"'sizes' data: .* Got 'iris'"),
        ('data = "sizes.csv"', 'data = "sklearn:wine"', r"'sizes' target: "),
        ('target = "size"\n', "", r"'sizes' target: missing"),
        ('kind = "regression"', 'kind = "ranking"', r"'sizes' kind: "),
        ("[network]", "[network", "not a TOML file"),
    ],
)
def test_a_mistake_in_the_configuration_is_named(config: Path, old: str, new: str, message: str) -> None:
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as error:
        read_config(config)
    assert str(error.value).startswith(str(config))


def test_the_page_on_tables_has_every_key_and_what_it_is_by_itself() -> None:
    page = (EXAMPLES.parent / "docs/train.md").read_text()
    rows = [line.removeprefix("| `").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    shown = {row[0].rstrip("`"): row[-1].strip(' `|"') for row in rows}
    assert {*shown} == {*_NETWORK, *_TRAINING, *_ALLOCATION, *_TASK, "target"}
    for settings in (Training(), Allocation(), Config()):
        for key, value in dataclasses.asdict(settings).items():
            if key in shown and value is not None:
                assert shown[key] == str(list(value) if key == "hidden" else value).lower().removesuffix(".0"), key


def test_a_configuration_without_tasks_is_refused(config: Path) -> None:
    config.write_text("")
    with pytest.raises(ConfigError, match=r"at least one \[\[tasks\]\]"):
        read_config(config)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "sizes.csv",
            "width,k,size\n1,2,3\n1,x,3\n",
            r"sizes\.csv: line 3, column 'k': expected a number\. Got 'x'",
        ),
        ("sizes.csv", "width,k,size\n1,2,\n", "line 2, column 'size'"),
        ("sizes.csv", "width,k,size\n1,2\n", "line 2: expected 3 fields. Got 2"),
        ("sizes.csv", "width,width,size\n1,2,3\n", r"columns \['width'\] appear more than once"),
        ("sizes.csv", "width,k\n1,2\n", "task 'sizes' target: .* no column 'size'"),
        ("sizes.csv", "size\n1\n", "task 'sizes' data: .* no features"),
        ("sizes.csv", "width,size\n", "task 'sizes' data: .* no rows"),
        ("sizes.csv", "", "expected a header"),
        (
            "sizes.csv",
            "width,size\n" + "1e300,1\n-1e300,2\n" * 20,
            "task 'sizes' data: values too large for float32 after scaling, in width",
        ),
        (
            "sizes.csv",
            "width,size\n" + "1,1e300\n2,-1e300\n" * 20,
            "task 'sizes' data: values too large .* in the target",
        ),
        ("shapes.csv", "a,shape\n1,flat\n2,flat\n", "task 'shapes' target: .* one class, 'flat'"),
        ("shapes.csv", "a,shape\n1,flat\n2,round\n", "task 'shapes' data: 2 samples cannot be split"),
        ("shapes.csv", "a,shape\n1,flat\n2, \n3,round\n", r"shapes\.csv: line 3, column 'shape': expected a class"),
        ("shapes.csv", 'a,shape\n1,"two\nlines"\nx,flat\n', "line 4, column 'a': expected a number. Got 'x'"),
        ("shapes.csv", "a,shape\n" + "1,flat\n2,round\n" * 9 + "3,odd\n", "19 samples .* there is one of 'odd'"),
        (
            "shapes.csv",
            "a,shape\n" + "".join(f"1,{number / 7}\n" for number in range(100)),
            r"^.{,100} cannot be split: .* there is one of '0\.0', .{,120} and 95 more\.$",
        ),
        ("sizes.csv", "width,k,size\n1_000,2,3\n", "line 2, column 'width': expected a number. Got '1_000'"),
    ],
)
def test_a_mistake_in_a_csv_file_is_named(config: Path, file: str, content: str, message: str) -> None:
    (config.parent / file).write_text(content)
    with pytest.raises(ConfigError, match=message):
        tabular.experiment(read_config(config))


def test_the_split_is_fixed_stratified_and_of_the_standard_shares() -> None:
    wine = next(task for task in read_config(EXAMPLES / "demo.toml").tasks if task.name == "wine")
    split, again = load_split(wine, EXAMPLES), load_split(wine, EXAMPLES)
    assert [len(part[0]) for part in (split.train, split.val, split.test)] == [105, 19, 54]
    assert all(torch.equal(*pair) for pair in zip(split.test, again.test, strict=True))
    shares = [torch.bincount(part[1]) / len(part[1]) for part in (split.train, split.val, split.test)]
    assert all((share - shares[0]).abs().max() < 0.04 for share in shares)


def test_features_and_targets_are_standardised_by_the_samples_trained_on(config: Path) -> None:
    split = load_split(read_config(config).tasks[1], config.parent)
    x, target = split.train
    assert split.scaling.features == ("width", "k")
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    # The second column is the constant 7: it keeps its scale.
    torch.testing.assert_close(x.std(0, correction=0), torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(target.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert Scaling.from_json(json.loads(json.dumps(split.scaling.to_json()))) == split.scaling


@pytest.mark.parametrize("constant", [0.1, 1e30, -7.0])
def test_a_constant_keeps_its_scale_however_its_mean_is_rounded(config: Path, constant: float) -> None:
    rows = "".join(f"{number},{constant},{constant}\n" for number in range(100))
    (config.parent / "sizes.csv").write_text(f"width,k,size\n{rows}")
    scaling = load_split(read_config(config).tasks[1], config.parent).scaling
    assert scaling.scale[scaling.features.index("k")] == scaling.target_scale == 1.0


def test_blanks_around_fields_and_empty_lines_at_the_end_do_not_count(config: Path) -> None:
    task = read_config(config).tasks[0]
    plain = load_split(task, config.parent)
    file = config.parent / "shapes.csv"
    file.write_text(file.read_text().replace(",", " ,  ") + "\n\n")
    spaced = load_split(task, config.parent)
    assert spaced.scaling == plain.scaling and torch.equal(spaced.train[1], plain.train[1])


def test_settings_and_metadata_hold_no_folder_so_that_a_project_can_be_moved(config: Path, tmp_path: Path) -> None:
    made = tabular.experiment(read_config(config))
    assert str(tmp_path) not in json.dumps([made.described(), made.metadata])
    assert [task["data"] for task in made.settings["tasks"]] == ["shapes.csv", "sizes.csv"]
    moved = config.parent.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    assert tabular.experiment(read_config(moved / config.name)).described() == made.described()


def test_mse_is_in_the_units_of_the_target(config: Path) -> None:
    problem = tabular.experiment(read_config(config)).controls["sizes"].problem
    scaling = load_split(read_config(config).tasks[1], config.parent).scaling
    off_by_three = problem.test[1] + 3 / scaling.target_scale
    assert problem.score(off_by_three, problem.test[1]) == pytest.approx(9, rel=1e-4)
