"""Measures are those that one computes by hand."""

import pytest
import torch
from torch import nn

import rsn2
from rsn2.experiments import measures

# Three classes; the answers are 0, 0, 1, 0, 1.
OUTPUTS = torch.tensor([[3.0, 1, 0], [2, 1, 0], [0, 5, 1], [4, 1, 0], [0, 1, -1]])


def test_accuracy_is_the_share_of_right_answers() -> None:
    assert measures.accuracy(OUTPUTS, torch.tensor([0, 1, 1, 0, 0])) == 3 / 5
    assert measures.accuracy(OUTPUTS.bfloat16(), torch.tensor([0, 0, 1, 0, 1])) == 1


def test_f1_has_every_column_and_is_zero_for_a_class_that_never_comes() -> None:
    # Class 0: of three answers two right, of three samples two found. Class 1: one of two, one of two.
    assert measures.f1_per_class(OUTPUTS, torch.tensor([0, 1, 1, 0, 0])) == pytest.approx([2 / 3, 1 / 2, 0])
    # Class 2: there, but never answered.
    assert measures.f1_per_class(OUTPUTS, torch.tensor([0, 0, 1, 0, 2])) == pytest.approx([1, 2 / 3, 0])


def test_mean_squared_error_is_computed_in_float64() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [0.0], [1.0]])
    assert measures.mean_squared_error(outputs, targets) == pytest.approx((0 + 4 + 9) / 3, abs=1e-15)
    assert measures.mean_squared_error(outputs.squeeze(1), targets.squeeze(1)) == pytest.approx(13 / 3, abs=1e-15)
    one = torch.tensor([1.0], dtype=torch.bfloat16)
    assert measures.mean_squared_error(one + 2**-7, one) == 2**-14


@pytest.mark.parametrize("measure", [measures.accuracy, measures.f1_per_class], ids=lambda measure: measure.__name__)
@pytest.mark.parametrize(("outputs", "targets"), [((5,), (5,)), ((5, 3), (5, 1)), ((5, 3), (4,))])
def test_classification_refuses_other_shapes(measure, outputs, targets) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"outputs, targets: expected shapes \[samples, classes\]"):
        measure(torch.zeros(outputs), torch.zeros(targets, dtype=torch.int64))


@pytest.mark.parametrize(("outputs", "targets"), [((5, 1), (5,)), ((5, 2), (5, 2)), ((), ())])
def test_mean_squared_error_refuses_shapes_that_would_broadcast(outputs, targets) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="outputs, targets: expected the same shape"):
        measures.mean_squared_error(torch.zeros(outputs), torch.zeros(targets))


# Experiment 4: two tasks at once, then a regression, then a fourth.
STAGES = [
    {"mnist": 0.9, "fashion": 0.8},
    {"mnist": 0.85, "fashion": 0.8, "boston": 0.011},
    {"mnist": 0.8, "fashion": 0.82, "boston": 0.02, "imdb": 0.78},
]


def test_average_accuracy_is_that_of_the_end() -> None:
    assert measures.average_accuracy(STAGES, leave_out=["boston"]) == pytest.approx((0.8 + 0.82 + 0.78) / 3)
    assert measures.average_accuracy(STAGES[:1]) == pytest.approx(0.85)


def test_backward_transfer_compares_the_end_with_each_task_s_own_stage() -> None:
    assert measures.backward_transfer(STAGES, leave_out=["boston"]) == pytest.approx((-0.1 + 0.02) / 2)
    assert measures.backward_transfer(STAGES) == pytest.approx((-0.1 + 0.02 + 0.009) / 3)


def test_backward_transfer_of_unchanged_scores_is_exactly_zero() -> None:
    assert measures.backward_transfer([{"a": 0.1}, {"a": 0.1, "b": 0.7}, {"a": 0.1, "b": 0.7, "c": 0.3}]) == 0.0


def test_backward_transfer_needs_a_task_before_the_last_stage() -> None:
    assert measures.backward_transfer(STAGES[:1]) is None
    assert measures.backward_transfer([{"boston": 0.1}, {"boston": 0.1, "imdb": 0.8}], leave_out=["boston"]) is None


def test_a_score_matrix_with_holes_is_refused() -> None:
    for measure in (measures.average_accuracy, measures.backward_transfer):
        with pytest.raises(ValueError, match="expected at least one stage"):
            measure([])
        with pytest.raises(ValueError, match=r"Stage 2 lacks \['mnist'\]"):
            measure([{"mnist": 0.9}, {"boston": 0.1}])
    with pytest.raises(ValueError, match="expected a task besides those left out"):
        measures.average_accuracy([{"boston": 0.1}], leave_out=["boston"])


def test_capacity_counts_a_shared_slot_once() -> None:
    model = rsn2.convert(nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10)))
    assert measures.capacity_used(model) == 0
    rsn2.allocate(model, "a", 0.2, criterion="random")
    rsn2.allocate(model, "b", 0.3, criterion="random")
    assert measures.capacity_used(model) == pytest.approx(0.5)
    rsn2.finalize(model)
    assert measures.capacity_used(model) == pytest.approx(0.5)
    shared = rsn2.convert(nn.Sequential(nn.Linear(20, 30)))
    rsn2.allocate(shared, "a", 0.2, criterion="random")
    rsn2.allocate(shared, "b", 0.2, criterion="random", share={"a": ["0"]})
    assert measures.capacity_used(shared) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="expected a network with multitask layers"):
        measures.capacity_used(nn.Linear(2, 2))
