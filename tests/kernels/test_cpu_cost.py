"""The costs by which the CPU's backends are chosen: read from a file, checked, and of this machine or none."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import rsn2_kernels as rk
from rsn2_kernels import cpu_cost

from .cases import random_mask
from .precision import DTYPES

OPERATORS = ("linear", "conv2d")
PRODUCTS = ("forward", "dx", "dvalues")
PATTERN = rk.SparsePattern.from_mask(random_mask(64, 128, 0.1, 0))


def content(dense: float = 1.0, cpu: float = 1.0) -> dict[str, Any]:
    """A file of this machine in which each unit of work costs a backend so many nanoseconds."""
    costs = {name: [dense if name == "dense" else cpu] * len(of) for name, of in cpu_cost.FEATURES.items()}
    names = [cpu_cost.key(*kind) for kind in cpu_cost.KINDS]
    features = {name: list(parts) for name, parts in cpu_cost.FEATURES.items()}
    rows = {name: {"nanoseconds": dict(costs)} for name in names}
    return {"for": cpu_cost.machine(), "features": features, "costs": rows}


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that is read."""
    monkeypatch.setenv("RSN2_CPU_COSTS", str(tmp_path / "costs.json"))
    return tmp_path / "costs.json"


@pytest.mark.parametrize(
    ("processor", "name"),
    [
        ("AMD EPYC, family 25, model 17", "amd-family-25"),
        ("AMD Ryzen 9 9950X 16-Core Processor, family 26, model 68", "amd-family-26"),
        ("AMD EPYC 7002, family 23, model 49", "amd-family-25"),
        ("Intel(R) Xeon(R) Platinum 8480, family 6, model 143", "amd-family-25"),
        ("implementer 0x41, part 0xd40", "amd-family-25"),
        ("", "amd-family-25"),
    ],
)
def test_the_built_in_costs_of_a_processor_are_sound_and_cover_every_operator_and_type(
    processor: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RSN2_CPU_COSTS", "")
    monkeypatch.setattr(cpu_cost, "processor", lambda: processor)
    costs = cpu_cost.load()
    assert set(costs.table) == {(op, dtype, product) for op in OPERATORS for dtype in DTYPES for product in PRODUCTS}
    assert costs.origin.startswith(f"built in, {name};")


def test_costs_in_the_package_are_those_of_the_processor_that_their_name_says() -> None:
    files = list(cpu_cost._BUILT_IN.iterdir())
    assert files
    for path in files:
        maker, _, family = path.stem.partition("-")
        said = cpu_cost.read(path)[0]["processor"]
        assert said.lower().startswith(f"{maker} ") and family.replace("-", " ") in said


@pytest.mark.parametrize(("dense", "cpu", "cheaper"), [(1.0, 100.0, "dense"), (100.0, 1.0, "cpu")])
def test_a_file_of_this_machine_decides(
    dense: float, cpu: float, cheaper: str, named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(named, content(dense, cpu))
    monkeypatch.setattr(cpu_cost, "COSTS", cpu_cost.load())
    assert cpu_cost.COSTS.origin == f"measured here, {named}"
    for batch in (1, 512):
        predicted = cpu_cost.seconds("linear", PATTERN, batch, torch.float32, "dx")
        assert set(predicted) <= {"dense", "cpu"}
        if rk.available_backends()["cpu"] is True:
            said = rk.explain("linear", PATTERN, batch, torch.float32, "cpu")
            assert said.backend == cheaper == min(predicted, key=predicted.__getitem__)
            assert str(named) in said.reason


def test_a_prediction_is_the_sum_of_what_all_work_costs(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if rk.available_backends()["cpu"] is not True:
        pytest.skip("nothing to choose from")
    write(named, content(2.0, 3.0))
    monkeypatch.setattr(cpu_cost, "COSTS", cpu_cost.load())
    amounts = cpu_cost.features(PATTERN, 512)
    predicted = cpu_cost.seconds("linear", PATTERN, 512, torch.float32, "dvalues")
    assert predicted["dense"] == pytest.approx(2e-9 * sum(amounts["dense"]) * cpu_cost.DOUBT)
    assert predicted["cpu"] == pytest.approx(3e-9 * sum(amounts["cpu"]))


@pytest.mark.parametrize("field", sorted(cpu_cost.machine()))
def test_costs_of_another_machine_are_left_alone_and_named(field: str, named: Path) -> None:
    write(named, content(1.0, 1e6) | {"for": cpu_cost.machine() | {field: "another"}})
    costs = cpu_cost.load()
    assert costs.table == cpu_cost.read(cpu_cost.built_in())[1]
    assert str(named) in costs.origin and "another" in costs.origin


def without(row: str) -> dict[str, Any]:
    found = content()
    del found["costs"][row]
    return found


def changed(costs: object, backend: str = "dense") -> dict[str, Any]:
    found = content()
    found["costs"]["conv2d bfloat16, dx"]["nanoseconds"][backend] = costs
    return found


@pytest.mark.parametrize(
    ("damaged", "says"),
    [
        ([], "field 'costs'"),
        ({"costs": 1}, "field 'costs'"),
        (content() | {"features": {"dense": ["call"]}}, "run `rsn2 calibrate` again"),
        (without("linear float64, dx"), "no costs of 'linear float64, dx'; run `rsn2 calibrate` again"),
        (content() | {"costs": content()["costs"] | {"linear float64, dx": None}}, r"'linear float64, dx'.*Got None"),
        (changed([1.0] * 4), r"'conv2d bfloat16, dx', 'dense': expected 6 numbers"),
        (changed([1.0, 1.0, 1.0, 1.0, -1e-9]), "not negative"),
        (changed([1.0, 1.0, 1.0, 1.0, math.nan]), "finite"),
        (changed([1.0, 1.0, 1.0, 1.0, math.inf]), "finite"),
        (changed([1.0, 1.0, 1.0, 1.0, True]), "numbers"),
        (changed([1.0, 1.0, 1.0, 1.0, "1"]), "numbers"),
        (changed([1.0], "tpu"), "'nanoseconds' of 'dense' and 'cpu'"),
    ],
)
def test_a_damaged_file_is_told_and_the_built_in_costs_are_taken(damaged: object, says: str, named: Path) -> None:
    write(named, damaged)
    with pytest.raises(ValueError, match=says):
        cpu_cost.read(named)
    with pytest.warns(UserWarning, match=says):
        costs = cpu_cost.load()
    assert costs.table == cpu_cost.read(cpu_cost.built_in())[1]


def test_a_file_that_is_not_json_is_told(named: Path) -> None:
    named.write_bytes(b"\xff\x00{")
    with pytest.warns(UserWarning, match="not JSON"):
        assert cpu_cost.load().origin.startswith("built in")


def test_without_a_name_the_file_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RSN2_CPU_COSTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cpu_cost.place() == tmp_path / "rsn2-kernels" / "cpu-costs.json"
    monkeypatch.setenv("RSN2_CPU_COSTS", "")
    assert cpu_cost.place() is None
