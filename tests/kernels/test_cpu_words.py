"""Few rows of x with no backend asked for: by the bits of the mask where enough is owned; one of them, in any order."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import rsn2_kernels as rk
from rsn2_kernels import cpu_cost, dispatch
from rsn2_kernels.backends import cpu, words_of
from rsn2_kernels.bits import pack_bits
from rsn2_kernels.group import PatternGroup

from .cases import Case, GroupedCase, LinearCase, random_mask
from .contract import assert_keeps_contract
from .precision import DTYPES

STATUS = rk.available_backends()["cpu"]
pytestmark = pytest.mark.skipif(STATUS is not True, reason=str(STATUS))
GOES_BY_BITS = pytest.mark.skipif(not any(cpu.WORTH_BITS["forward"]), reason="no vectors that bits fill here")

# Around a word of 64 columns and one register of a row; rows and tasks that own nothing or all.
AWKWARD_SIZES: tuple[Case, ...] = (
    LinearCase(1, 1, (1,), 1.0),
    LinearCase(5, 7, (1,), 1.0),
    LinearCase(7, 96, (1,), 0.5, holes=True),
    LinearCase(40, 63, (1,), 0.9),
    LinearCase(3, 64, (1,), 1.0),
    LinearCase(33, 65, (1,), 0.2, x_layout="reversed", dy_layout="reversed"),
    LinearCase(70, 300, (1, 1), 0.3, bias=False),
    LinearCase(130, 1000, (), 0.6),
    GroupedCase(4, 33, 70, (4,), 0.4),
    GroupedCase(5, 9, 130, (7,), 0.3, absent=(1,), empty=(2,), full=(3,)),
    LinearCase(5, 64, (2,), 1.0),
    LinearCase(40, 63, (3,), 0.9),
    LinearCase(33, 65, (4,), 0.4, x_layout="reversed", dy_layout="reversed"),
    LinearCase(70, 300, (5,), 0.6, bias=False),
    LinearCase(130, 1000, (2, 4), 0.6, holes=True),
    GroupedCase(4, 33, 70, (20,), 0.6),
)
# Rows of fewer weights than are multiplied at once, of as many, and of more.
THIN_SIZES: tuple[Case, ...] = (
    LinearCase(1, 1, (1,), 0.0),
    LinearCase(40, 30, (1,), 0.05),
    LinearCase(33, 100, (1,), 0.1, x_layout="reversed", dy_layout="reversed"),
    LinearCase(30, 1000, (), 0.08, holes=True),
    LinearCase(70, 300, (1, 1), 0.1, bias=False),
    LinearCase(70, 300, (1,), 0.02),
    GroupedCase(4, 33, 70, (4,), 0.05),
    GroupedCase(5, 9, 500, (7,), 0.05, absent=(1,), empty=(2,)),
)


@pytest.fixture(autouse=True)
def _cpu_is_cheapest(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about how the backend goes, not when it is chosen."""
    costs = {name: (1.0 if name == "dense" else 0.0,) * len(of) for name, of in cpu_cost.FEATURES.items()}
    monkeypatch.setattr(cpu_cost, "COSTS", cpu_cost.Costs(dict.fromkeys(cpu_cost.KINDS, costs), "made up"))


def words_read(case: Case) -> Tensor | None:
    """The words that a call reads with no backend asked for."""
    patterns = case.operands(torch.float32).patterns
    weight, op = (
        (PatternGroup.of(patterns), "grouped_linear") if isinstance(case, GroupedCase) else (patterns[0], "linear")
    )
    batch = torch.Size(case.batch).numel()
    name, index = dispatch.resolve(op, weight, batch, torch.float32, None, with_columns=True)
    assert name == "cpu"
    return words_of(index)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", AWKWARD_SIZES + THIN_SIZES, ids=str)
def test_awkward_sizes(case: Case, dtype: torch.dtype) -> None:
    words = words_read(case)
    assert words is not None and (words.shape[1] == 0) == (case in THIN_SIZES)
    assert_keeps_contract(case, dtype, None)


@pytest.mark.parametrize("case", AWKWARD_SIZES + THIN_SIZES, ids=str)
def test_gradients_are_those_by_indices_to_the_bit(case: Case) -> None:
    """Those of the values for one row alone: several are summed in another order."""
    operands = case.operands(torch.float32)
    found, expected = (
        dict(
            zip(
                operands.inputs,
                torch.autograd.grad(case.call(operands, backend), list(operands.inputs.values()), operands.dy),
                strict=True,
            )
        )
        for backend in (None, "cpu")
    )
    alone = torch.Size(case.batch).numel() == 1
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]) or (name == "dvalues" and not alone), name


@GOES_BY_BITS
def test_a_row_of_x_has_the_same_bits_among_few() -> None:
    case = LinearCase(70, 300, (8,), 0.6)
    operands = case.operands(torch.float32)
    x, values, pattern, bias = operands.x.detach(), operands.values.detach(), operands.pattern, operands.bias
    alone = torch.cat([rk.linear(row, values, pattern, bias) for row in x.split(1)])
    for few in (2, 3, 8):
        assert torch.equal(rk.linear(x[:few], values, pattern, bias), alone[:few])


@pytest.mark.parametrize("case", AWKWARD_SIZES + THIN_SIZES, ids=str)
def test_gradients_asked_for_together_are_those_alone(case: Case) -> None:
    operands = case.operands(torch.float32)
    asked = (operands.x, operands.values)
    y = case.call(operands, None)
    together = torch.autograd.grad(y, asked, operands.dy, retain_graph=True)
    alone = [torch.autograd.grad(y, each, operands.dy, retain_graph=True)[0] for each in asked]
    assert all(map(torch.equal, together, alone))


@pytest.mark.parametrize("case", AWKWARD_SIZES + THIN_SIZES, ids=str)
def test_a_row_of_x_may_lie_anywhere(case: Case) -> None:
    """What stands beside the operands in memory is not read into the result, though registers are wider."""
    operands = case.operands(torch.float32)
    expected = case.call(operands, None)
    memory = torch.full((operands.x.numel() + 130,), torch.nan)
    beside = memory[65 : 65 + operands.x.numel()].view(operands.x.shape).copy_(operands.x.detach())
    values = torch.full((operands.values.numel() + 130,), torch.nan)
    packed = values[65 : 65 + operands.values.numel()].copy_(operands.values.detach())
    assert torch.equal(case.call(replace(operands, x=beside, values=packed), None), expected)


def test_the_words_are_those_of_the_masks() -> None:
    case = GroupedCase(3, 33, 70, (5,), 0.4)
    operands = case.operands(torch.float32)
    expected = [pack_bits(mask) for mask in operands.mask]
    assert all(torch.equal(p.words(), words) for p, words in zip(operands.patterns, expected, strict=True))
    assert torch.equal(PatternGroup.of(operands.patterns).words(), torch.cat(expected))


@GOES_BY_BITS
def test_the_prediction_for_one_row_knows_that_its_time_is_that_of_all_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What is left of the costs when all but one are nothing.
    known = {
        "dense": (0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
        "cpu": (0.0, 0.0, 0.0, 0.0, 1.0),
        "cpu by bits": (0.0, 0.0, 1.0, 0.0),
    }
    monkeypatch.setattr(cpu_cost, "COSTS", cpu_cost.Costs({("linear", torch.float32, "forward"): known}, "made up"))
    half, most = (rk.SparsePattern.from_mask(random_mask(500, 500, density, 0)) for density in (0.5, 0.9))
    one_row = [rk.explain("linear", pattern, 1, torch.float32, "cpu").seconds["cpu"] for pattern in (half, most)]
    rows = [rk.explain("linear", pattern, 9, torch.float32, "cpu").seconds["cpu"] for pattern in (half, most)]
    assert one_row[1] == one_row[0] and rows[1] > 1.5 * rows[0]


def test_a_larger_batch_goes_by_indices_in_their_order() -> None:
    assert words_read(LinearCase(70, 300, (9,), 0.5)) is None


@GOES_BY_BITS
@pytest.mark.parametrize("density", [0.02, 0.06, 0.11, 0.2, 0.3, 0.9])
@pytest.mark.parametrize("batch", [2, 3, 8])
def test_few_rows_go_by_bits_where_that_is_quicker(batch: int, density: float) -> None:
    """The prediction and the kernels agree: by bits, few rows are summed in another order."""
    operands = LinearCase(128, 256, (batch,), density).operands(torch.float32)
    y, named = (rk.linear(operands.x, operands.values, operands.pattern, backend=each) for each in (None, "cpu"))
    assert torch.equal(y, named) != cpu.is_worth_bits(operands.pattern, batch)
    (found,), (expected,) = (torch.autograd.grad(each, operands.values, operands.dy) for each in (y, named))
    assert torch.equal(found, expected) != cpu.is_worth_bits(operands.pattern, batch, "dvalues")
    by_bits = [cpu.is_worth_bits(operands.pattern, batch, product) for product in ("forward", "dx", "dvalues")]
    assert (density > 0.02 or not any(by_bits)) and (density < 0.9 or all(by_bits))


def test_a_backend_that_is_asked_for_gives_a_row_the_same_bits_in_every_batch() -> None:
    pattern = rk.SparsePattern.from_mask(random_mask(70, 300, 0.5, 0))
    _, index = dispatch.resolve("linear", pattern, 1, torch.float32, "cpu", with_columns=True)
    assert words_of(index) is None


def test_words_are_made_once_and_counted() -> None:
    pattern = rk.SparsePattern.from_mask(random_mask(70, 300, 0.5, 0))
    dispatch.index("cpu", pattern, with_columns=False)
    before = pattern.nbytes
    first = words_of(dispatch.index("cpu", pattern, with_columns=False, batch=1))
    assert pattern.nbytes == before + 70 * 5 * 8
    assert words_of(dispatch.index("dense", pattern, with_columns=False)) is first


@pytest.mark.parametrize("product", ["linear", "linear_dx", "linear_dvalues"])
@pytest.mark.parametrize("density", [0.05, 0.5])
def test_opcheck_passes(product: str, density: float) -> None:
    operands = LinearCase(6, 90, (1,), density).operands(torch.float32)
    x, values, dy = operands.x, operands.values, operands.dy
    index, short = (dispatch.index("cpu", operands.pattern, columns, batch=1, trains=True) for columns in (True, False))
    arguments = {
        "linear": (x, values, operands.bias, index, "relu", (6, 90), "cpu"),
        "linear_dx": (dy, values.detach(), index, (6, 90), "cpu"),
        "linear_dvalues": (dy, x.detach(), short, (6, 90), "cpu"),
    }
    torch.library.opcheck(getattr(torch.ops.rsn2, product).default, arguments[product])


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_compiled_calls_give_what_eager_ones_do(density: float) -> None:
    torch.compiler.reset()
    case = LinearCase(33, 130, (1,), density)
    operands = case.operands(torch.float32)
    compiled = torch.compile(lambda: case.call(operands, None), fullgraph=True)()
    torch.testing.assert_close(compiled, case.call(operands, None))


@pytest.mark.parametrize("words", [torch.zeros(6, 1, dtype=torch.int64), torch.zeros(6, 2, dtype=torch.int32)])
def test_the_operator_refuses_words_of_another_weight(words: Tensor) -> None:
    operands = LinearCase(6, 90, (1,), 0.5).operands(torch.float32)
    crow, col = dispatch.index("cpu", operands.pattern, with_columns=False)
    with pytest.raises(RuntimeError, match=r"rsn2_cpu::linear: expected .*words"):
        torch.ops.rsn2_cpu.linear(operands.x, operands.values, operands.bias, crow, col, words)
