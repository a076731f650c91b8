"""What the benchmark compares: baselines have the product that they stand for, and only the work done is counted."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench_records import with_wrong_gradient
from rsn2.bench import baselines, cases, measure
from rsn2.bench.cases import Case
from rsn2.bench.operators import TOLERANCE, checked, checked_gradient, work
from rsn2.bench.products import Candidate, Problem
from rsn2.bench.work import UnavailableError


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize(
    "case",
    [
        Case("linear", (48, 32), 5, 0.3),
        Case("linear", (48, 32), 5, 0.3, "float64"),
        Case("linear", (48, 32), 5, 0.5, "bfloat16", mask="2:4"),
        Case("linear", (48, 32), 5, 0.3, mask="blocks"),
        Case("linear", (48, 32), 5, 0.3, mask="rsn2"),
        Case("conv2d", (6, 4, 5), 3, 0.3),
        Case("conv2d", (6, 4, 5), 3, 0.3, mask="rsn2"),
        Case("grouped_linear", (12, 20), 7, 0.3, tasks=3),
    ],
    ids=lambda case: case.key,
)
def test_no_baseline_measures_another_product(case: Case, training: bool) -> None:
    case = replace(case, training=training)
    found = work(case, "cpu")
    assert {"rsn2", "rsn2 dense", "masked", found.baseline} <= {*found.calls}
    assert {*found.calls} == {*found.facts["error"]} == {*found.amounts}
    assert all(error <= TOLERANCE[case.dtype] for error in found.facts["error"].values())
    assert all(found.unavailable.values()) and {*found.calls, *found.unavailable} >= {*baselines.BASELINES}
    for call in found.calls.values():
        call()


@pytest.mark.parametrize("op, shape", [("linear", (24, 16)), ("conv2d", (6, 4, 5))])
def test_gradients_of_baselines_are_those_of_the_dense_product(op: str, shape: tuple[int, ...]) -> None:
    problem = Problem(Case(op, shape, 4, 0.4, "float64", training=True))
    dy = torch.randn_like(problem.reference(4))
    reference = torch.autograd.grad(problem.dense(problem.x, problem.weights[0]), [problem.x, problem.weights[0]], dy)
    owned = problem.masks[0]
    for make in (baselines.ours, baselines.dense, baselines.masked):
        candidate = make(problem)
        dx, dw = torch.autograd.grad(candidate.forward(), candidate.inputs, dy)
        torch.testing.assert_close(dx, reference[0])
        torch.testing.assert_close(dw if dw.dim() == 1 else dw[owned], reference[1][owned])


def test_another_product_is_not_timed() -> None:
    problem = Problem(Case("linear", (8, 8), 4, 0.5))
    wrong = Candidate(lambda: 1.1 * problem.dense(problem.x, problem.weights[0]), [problem.x])
    with pytest.raises(UnavailableError, match="off by"):
        checked(wrong, problem.reference(4), "float32")


@pytest.mark.parametrize("op, shape", [("linear", (8, 12)), ("conv2d", (6, 4, 5)), ("grouped_linear", (8, 12))])
def test_another_gradient_of_x_is_not_timed(op: str, shape: tuple[int, ...]) -> None:
    problem = Problem(Case(op, shape, 5, 0.5, training=True, tasks=3 if op == "grouped_linear" else 1))
    dy = torch.randn_like(problem.reference(5)).float()
    expected = problem.reference_gradient(dy[:4])
    for make in (baselines.ours, baselines.masked):
        right = make(problem)
        assert checked_gradient(right, problem, dy, expected) <= TOLERANCE["float32"]
        wrong = with_wrong_gradient(right)
        checked(wrong, problem.reference(4), "float32")
        with pytest.raises(UnavailableError, match=r"gradient of x is off by 0\.5"):
            checked_gradient(wrong, problem, dy, expected)


def test_real_masks_are_exact_and_unlike_random_ones() -> None:
    (real,) = Problem(Case("linear", (64, 64), 1, 0.1, mask="rsn2")).masks
    (drawn,) = Problem(Case("linear", (64, 64), 1, 0.1)).masks
    assert int(real.sum()) == round(0.1 * 64 * 64)
    assert (real.sum(0) == 0).sum() > (drawn.sum(0) == 0).sum()


def test_cases_have_their_own_names_and_come_back_from_json() -> None:
    for grid in (cases.quick(), cases.full()):
        assert len({case.key for case in grid}) == len(grid)
        assert [Case.from_dict(json.loads(json.dumps(case.as_dict()))) for case in grid] == grid
    kinds = {case.op for case in cases.quick()}
    assert kinds == {*cases.PRODUCTS, *cases.NETWORKS, "memory"} == {case.op for case in cases.full()}


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize(
    "case",
    [
        Case("linear", (12, 8), 5, 0.4),
        Case("conv2d", (6, 4, 5), 3, 0.3),
        Case("conv2d", (6, 4, 1), 3, 0.3),
        Case("grouped_linear", (12, 20), 7, 0.3, tasks=3),
    ],
    ids=lambda case: case.key,
)
def test_padding_and_rows_of_other_tasks_are_not_counted(case: Case, training: bool) -> None:
    problem = Problem(replace(case, training=training))
    problem.x = torch.ones_like(problem.x)
    for kind, masks in (("owned", problem.masks), ("all", [torch.ones_like(mask) for mask in problem.masks])):
        # A product of ones counts them.
        problem.weights = [mask.float() for mask in masks]
        count = float(problem.reference(case.batch).sum())
        assert problem.amount(kind).macs == (3 if training else 1) * count


@pytest.mark.parametrize("op", ["inference", "epoch", "allocate"])
def test_no_gradient_is_counted_that_nothing_takes(op: str) -> None:
    case = Case(op, (8, 3), 4, 0.5, tasks=2)
    found = measure._NETWORKS[op](case, "cpu")
    with FlopCounterMode(display=False) as counter:
        found.calls[found.baseline]()
    assert 2 * found.amounts[found.baseline].macs == pytest.approx(counter.get_total_flops())
