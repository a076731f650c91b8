"""Which backends there are, which one a call without a name runs, and that `explain` says so."""

import dataclasses
from typing import Any

import pytest
import torch

import rsn2_kernels as rk
from rsn2_kernels import cpu_cost, dispatch

from .cases import SMALL, Case, ConvCase, GroupedCase, LinearCase, random_mask
from .precision import DTYPES

PATTERN = rk.SparsePattern.from_mask(random_mask(64, 128, 0.1, 0))
OPERATORS = ("linear", "conv2d")


def test_every_backend_of_the_architecture_is_listed_with_true_or_a_sentence() -> None:
    known = rk.available_backends()
    assert {"reference", "dense", "cpu", "cuda", "triton"} <= set(known)
    assert known["reference"] is True and known["dense"] is True
    for name, status in known.items():
        assert status is True or (isinstance(status, str) and len(status.split()) >= 3), name


def test_changing_the_answer_changes_no_backend() -> None:
    rk.available_backends().clear()
    assert rk.available_backends()["dense"] is True


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [0, 1, 7, 4096])
@pytest.mark.parametrize("op", OPERATORS)
def test_explain_names_a_runnable_backend_and_the_cost_of_each(op: str, batch: int, dtype: torch.dtype) -> None:
    said = rk.explain(op, PATTERN, batch, dtype, "cpu")
    assert rk.available_backends()[said.backend] is True
    assert said.backend != "reference", "the reference is an oracle, not a choice"
    assert said.backend == min(said.seconds, key=said.seconds.__getitem__)
    assert all(cost >= 0 for cost in said.seconds.values())
    assert all(said.unavailable.values())
    assert set(said.seconds) | set(said.unavailable) == set(rk.available_backends())
    assert not set(said.seconds) & set(said.unavailable)
    assert said.reason


@pytest.mark.parametrize("op", OPERATORS)
def test_printing_an_explanation_shows_choice_reason_costs_and_who_could_not(op: str) -> None:
    said = rk.explain(op, PATTERN, 32, torch.float32, torch.device("cpu"))
    first, *rest = str(said).splitlines()
    assert first == f"{said.backend}: {said.reason}"
    for name in said.seconds:
        assert any(line.split()[0] == name and "ms predicted" in line for line in rest), name
    for name, why in said.unavailable.items():
        assert any(line.split()[0] == name and why in line for line in rest), name


def test_an_explanation_cannot_be_changed() -> None:
    said = rk.explain("linear", PATTERN, 32, torch.float32, "cpu")
    with pytest.raises(dataclasses.FrozenInstanceError):
        said.backend = "cuda"  # type: ignore[misc]


def test_explain_for_a_gpu_needs_no_gpu() -> None:
    said = rk.explain("linear", PATTERN, 32, torch.bfloat16, "cuda")
    assert said.backend != "cpu" and "cpu" in said.unavailable


@pytest.mark.parametrize("op", ["matmul", "", "rsn2::linear"])
def test_explain_refuses_an_unknown_operator(op: str) -> None:
    with pytest.raises(ValueError, match=rf"op: expected .*linear.*conv2d.*Got '{op}'"):
        rk.explain(op, PATTERN, 1, torch.float32, "cpu")


def test_explain_refuses_a_negative_batch() -> None:
    with pytest.raises(ValueError, match=r"batch: expected at least 0\. Got -1"):
        rk.explain("linear", PATTERN, -1, torch.float32, "cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        LinearCase(5, 7, (12,), 0.5),
        LinearCase(64, 128, (40,), 0.05),
        SMALL["conv2d"],
        ConvCase(2, 8, 16, (9, 9), (3, 3)),
    ],
    ids=str,
)
def test_no_name_runs_the_backend_that_explain_names(case: LinearCase | ConvCase, dtype: torch.dtype) -> None:
    operands = case.operands(dtype)
    if isinstance(case, LinearCase):
        op, batch = "linear", torch.Size(case.batch).numel()
    else:
        op, batch = "conv2d", (case.images or 1) * case.output_size[0] * case.output_size[1]
    chosen = rk.explain(op, operands.pattern, batch, dtype, "cpu", training=True).backend
    unnamed, named = case.call(operands, None), case.call(operands, chosen)
    assert torch.equal(unnamed, named)
    inputs = list(operands.inputs.values())
    for a, b in zip(
        torch.autograd.grad(unnamed, inputs, operands.dy),
        torch.autograd.grad(named, inputs, operands.dy),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", [LinearCase(9, 8, (0,)), ConvCase(0, 2, 3, (5, 5), (3, 3))], ids=str)
def test_an_empty_batch_runs_without_a_name(case: LinearCase | ConvCase) -> None:
    assert case.call(case.operands(torch.float32), None).numel() == 0


MIXED = ("cpu/dense/dense", "dense/cpu/dense", "dense/dense/cpu", "cpu/cpu/dense", "cpu/dense/cpu", "dense/cpu/cpu")
EACH_PRODUCT: tuple[Case, ...] = (
    *SMALL.values(),
    LinearCase(70, 300, (1,), 0.5),
    LinearCase(40, 130, (33,), 0.4),
    ConvCase(2, 4, 8, (9, 7), (3, 3), groups=2),
    GroupedCase(4, 33, 70, (9,), 0.4, absent=(1,), empty=(2,)),
)


@pytest.mark.skipif(rk.available_backends()["cpu"] is not True, reason="nothing to mix")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", EACH_PRODUCT, ids=str)
@pytest.mark.parametrize("mixture", MIXED)
def test_each_product_runs_on_the_backend_that_is_cheapest_for_it(
    mixture: str, case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    operands = case.operands(dtype)
    backends = mixture.split("/")

    def products(backend: str | None) -> list[torch.Tensor]:
        y = case.call(operands, backend)
        return [y, *torch.autograd.grad(y, [operands.x, operands.values], operands.dy)]

    alone = {backend: products(backend) for backend in ("cpu", "dense")}
    expected = [alone[backend][place] for place, backend in enumerate(backends)]
    _make_cheapest(backends, monkeypatch)
    for found, right in zip(products(mixture), expected, strict=True):
        assert torch.equal(found, right)
    # The words of the mask may serve a single row, in other order.
    for found, right in zip(products(None), expected, strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.skipif(rk.available_backends()["cpu"] is not True, reason="nothing to mix")
def test_explain_names_the_backend_of_each_product_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    _make_cheapest(["cpu", "dense", "dense"], monkeypatch)
    said = rk.explain("linear", PATTERN, 32, torch.float32, "cpu", training=True)
    assert said.backend == "cpu/dense/dense" == min(said.seconds, key=said.seconds.__getitem__)
    assert set(said.seconds) == {"cpu", "dense", "cpu/dense/dense"}
    assert rk.explain("linear", PATTERN, 32, torch.float32, "cpu").backend == "cpu"


@pytest.mark.parametrize("name", ["cpu/dense", "cpu/cpu/cpu", "cpu/dense/triton", "cpu/dense/dense/dense", "/", ""])
def test_a_mixture_of_other_backends_is_refused(name: str) -> None:
    operands = SMALL["linear"].operands(torch.float32)
    with pytest.raises(rk.BackendError, match=f"'{name}' cannot run this call: there is no such backend"):
        SMALL["linear"].call(operands, name)


def _make_cheapest(backends: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each of the three products costs by which this backend is the cheapest."""
    table = {}
    for op, dtype, product in cpu_cost.KINDS:
        cheap = backends[cpu_cost.PRODUCTS.index(product)]
        table[op, dtype, product] = {
            name: (0.0 if name.startswith(cheap) else 1.0,) * len(of) for name, of in cpu_cost.FEATURES.items()
        }
    monkeypatch.setattr(cpu_cost, "COSTS", cpu_cost.Costs(table, "made up"))


class ClearedMeanwhile(dict[Any, Any]):
    """Another thread clears it right after this one has seen what is there."""

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        self.clear()
        return found


def test_a_choice_that_another_thread_forgets_is_made_again() -> None:
    pattern = SMALL["linear"].operands(torch.float32).pattern
    arguments = ("linear", pattern, 3, torch.float32, "dense", False)
    expected, _ = dispatch.resolve(*arguments)
    pattern._derived["resolved"] = ClearedMeanwhile(pattern._derived["resolved"])
    assert dispatch.resolve(*arguments)[0] == expected


@pytest.mark.skipif(rk.available_backends()["cpu"] is not True, reason="nothing to mix")
@pytest.mark.parametrize("operator", SMALL)
def test_a_mixture_compiles(operator: str) -> None:
    torch.compiler.reset()
    case = SMALL[operator]
    operands = case.operands(torch.float64)
    inputs = list(operands.inputs.values())
    found, expected = (
        torch.autograd.grad(function(), inputs, operands.dy)
        for function in (
            torch.compile(lambda: case.call(operands, "cpu/dense/dense"), fullgraph=True, backend="aot_eager"),
            lambda: case.call(operands, "cpu/dense/dense"),
        )
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
