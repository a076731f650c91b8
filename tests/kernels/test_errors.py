"""The operators refuse bad arguments: the error names the argument, what was expected and what came.

One table per operator. Each row changes one argument of a good call.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import rsn2_kernels as rk

from .cases import random_mask

MASK = random_mask(4, 18, 0.5, 0)
PATTERN = rk.SparsePattern.from_mask(MASK)
NNZ = PATTERN.nnz


def linear(**changed: Any) -> Tensor:
    """A good call of `linear` with ``changed`` arguments."""
    good: dict[str, Any] = {
        "x": torch.zeros(3, 18),
        "values": torch.zeros(NNZ),
        "pattern": PATTERN,
        "bias": torch.zeros(4),
        "backend": "reference",
    }
    return rk.linear(**(good | changed))


def conv2d(**changed: Any) -> Tensor:
    """A good call of `conv2d`, of 2 groups of 3 channels under a 3 x 2 kernel, with ``changed`` arguments."""
    good: dict[str, Any] = {
        "x": torch.zeros(2, 6, 5, 5),
        "values": torch.zeros(NNZ),
        "pattern": PATTERN,
        "bias": torch.zeros(4),
        "groups": 2,
        "kernel_size": (3, 2),
        "backend": "reference",
    }
    return rk.conv2d(**(good | changed))


PATTERNS = [rk.SparsePattern.from_mask(random_mask(4, 18, 0.5, seed)) for seed in range(3)]


def grouped_linear(**changed: Any) -> Tensor:
    """A good call of `grouped_linear`, of three tasks, with ``changed`` arguments."""
    good: dict[str, Any] = {
        "x": torch.zeros(5, 18),
        "vs": [torch.zeros(each.nnz) for each in PATTERNS],
        "ps": PATTERNS,
        "task_of_row": torch.tensor([2, 0, 1, 1, 2]),
        "biases": [torch.zeros(4)] * 3,
        "backend": "reference",
    }
    return rk.grouped_linear(**(good | changed))


# Of both operators on one pattern: what is changed, the error, and a pattern of its text: argument, expected, got.
OPERANDS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "values too few": (
        {"values": torch.zeros(NNZ - 1)},
        ValueError,
        rf"values: .*\({NNZ},\).*\({NNZ - 1},\)",
    ),
    "values dense": ({"values": torch.zeros(4, 18)}, ValueError, rf"values: .*\({NNZ},\).*\(4, 18\)"),
    "values column": ({"values": torch.zeros(NNZ, 1)}, ValueError, rf"values: .*\({NNZ},\).*\({NNZ}, 1\)"),
    "values dtype": (
        {"values": torch.zeros(NNZ, dtype=torch.float64)},
        TypeError,
        "values: .*float32.*float64",
    ),
    "values integer": (
        {"values": torch.zeros(NNZ, dtype=torch.int64)},
        TypeError,
        "values: .*floating.*int64",
    ),
    "values complex": (
        {"values": torch.zeros(NNZ, dtype=torch.complex64)},
        TypeError,
        "values: .*floating.*complex64",
    ),
    "values device": ({"values": torch.zeros(NNZ, device="meta")}, ValueError, "values: .*cpu.*meta"),
    "values list": ({"values": [0.0] * NNZ}, TypeError, "values: .*tensor.*list"),
    "values None": ({"values": None}, TypeError, "values: .*tensor.*NoneType"),
    "bias too short": ({"bias": torch.zeros(3)}, ValueError, r"bias: .*\(4,\).*\(3,\)"),
    "bias row": ({"bias": torch.zeros(1, 4)}, ValueError, r"bias: .*\(4,\).*\(1, 4\)"),
    "bias scalar": ({"bias": torch.zeros(())}, ValueError, r"bias: .*\(4,\).*\(\)"),
    "bias dtype": ({"bias": torch.zeros(4, dtype=torch.bfloat16)}, TypeError, "bias: .*float32.*bfloat16"),
    "bias integer": ({"bias": torch.zeros(4, dtype=torch.int32)}, TypeError, "bias: .*floating.*int32"),
    "bias device": ({"bias": torch.zeros(4, device="meta")}, ValueError, "bias: .*cpu.*meta"),
    "bias number": ({"bias": 0.0}, TypeError, "bias: .*tensor.*float"),
    "bias flag": ({"bias": True}, TypeError, "bias: .*tensor.*bool"),
    "pattern mask": ({"pattern": MASK}, TypeError, "pattern: .*SparsePattern.*Tensor"),
    "pattern None": ({"pattern": None}, TypeError, "pattern: .*SparsePattern.*NoneType"),
    "x None": ({"x": None}, TypeError, "x: .*tensor.*NoneType"),
    "backend unknown": ({"backend": "cudnn"}, rk.BackendError, "'cudnn'.*no such backend.*dense.*reference"),
    "backend empty": ({"backend": ""}, rk.BackendError, "''.*no such backend"),
    "backend list": ({"backend": ["cpu"]}, TypeError, "backend: expected the name of one, or None. Got list"),
    "backend number": ({"backend": 3}, TypeError, "backend: expected the name of one, or None. Got int"),
}
LINEAR: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "x columns": ({"x": torch.zeros(3, 17)}, ValueError, r"x: .*\[\.\.\., 18\].*\(3, 17\)"),
    "x transposed": ({"x": torch.zeros(18, 3)}, ValueError, r"x: .*\[\.\.\., 18\].*\(18, 3\)"),
    "x scalar": ({"x": torch.zeros(())}, ValueError, r"x: .*\[\.\.\., 18\].*\(\)"),
    "x dtype": ({"x": torch.zeros(3, 18, dtype=torch.float16)}, TypeError, "values: .*float16.*float32"),
    "x integer": ({"x": torch.zeros(3, 18, dtype=torch.uint8)}, TypeError, "x: .*floating.*uint8"),
    "x bool": ({"x": torch.zeros(3, 18, dtype=torch.bool)}, TypeError, "x: .*floating.*bool"),
    "x device": ({"x": torch.zeros(3, 18, device="meta")}, ValueError, "x: .*cpu.*meta"),
}
CONV2D: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "x channels": ({"x": torch.zeros(2, 5, 5, 5)}, ValueError, r"x: .*\[N, 6, H, W\].*\(2, 5, 5, 5\)"),
    "x channels last": ({"x": torch.zeros(2, 5, 5, 6)}, ValueError, r"x: .*\[N, 6, H, W\].*\(2, 5, 5, 6\)"),
    "x rows": ({"x": torch.zeros(5, 5)}, ValueError, r"x: .*\[6, H, W\].*\(5, 5\)"),
    "x video": ({"x": torch.zeros(1, 2, 6, 5, 5)}, ValueError, r"x: .*\[N, 6, H, W\].*\(1, 2, 6, 5, 5\)"),
    "x too low": ({"x": torch.zeros(2, 6, 2, 5)}, ValueError, r"x: .*\(2, 5\).*kernel"),
    "x too narrow": (
        {"x": torch.zeros(2, 6, 5, 2), "dilation": (1, 2)},
        ValueError,
        r"x: .*\(5, 2\).*kernel",
    ),
    "x integer": ({"x": torch.zeros(2, 6, 5, 5, dtype=torch.int64)}, TypeError, "x: .*floating.*int64"),
    "x device": ({"x": torch.zeros(2, 6, 5, 5, device="meta")}, ValueError, "x: .*cpu.*meta"),
    "stride zero": ({"stride": 0}, ValueError, "stride: .*at least 1.*0"),
    "stride negative": ({"stride": (1, -2)}, ValueError, r"stride: .*at least 1.*\(1, -2\)"),
    "stride float": ({"stride": 1.5}, ValueError, r"stride: .*int.*1\.5"),
    "stride floats": ({"stride": (1.0, 1.0)}, ValueError, r"stride: .*int.*\(1\.0, 1\.0\)"),
    "stride triple": ({"stride": (1, 1, 1)}, ValueError, r"stride: .*pair.*\(1, 1, 1\)"),
    "stride bool": ({"stride": True}, ValueError, "stride: .*True"),
    "padding negative": ({"padding": -1}, ValueError, "padding: .*at least 0.*-1"),
    "padding same": ({"padding": "same"}, ValueError, "padding: .*pair.*same"),
    "padding None": ({"padding": None}, ValueError, "padding: .*pair.*None"),
    "dilation zero": ({"dilation": (0, 1)}, ValueError, r"dilation: .*at least 1.*\(0, 1\)"),
    "dilation single": ({"dilation": (2,)}, ValueError, r"dilation: .*pair.*\(2,\)"),
    "kernel zero": ({"kernel_size": 0}, ValueError, "kernel_size: .*at least 1.*0"),
    "kernel triple": ({"kernel_size": (1, 3, 2)}, ValueError, r"kernel_size: .*pair.*\(1, 3, 2\)"),
    "kernel no divisor": ({"kernel_size": (2, 2)}, ValueError, r"kernel_size: .*divisor.*18.*\(2, 2\)"),
    "groups zero": ({"groups": 0}, ValueError, "groups: .*at least 1.*0"),
    "groups negative": ({"groups": -2}, ValueError, "groups: .*at least 1.*-2"),
    "groups float": ({"groups": 2.0}, ValueError, r"groups: .*int.*2\.0"),
    "groups bool": ({"groups": True}, ValueError, "groups: .*int.*True"),
    "groups no divisor": ({"groups": 3}, ValueError, "groups: .*divisor.*4.*3"),
    "groups of other channels": ({"groups": 4}, ValueError, r"x: .*\[N, 12, H, W\].*\(2, 6, 5, 5\)"),
}


def values_but(task: int, changed: Any) -> list[Any]:
    """The values of a good grouped call, those of one task ``changed``."""
    return [changed if t == task else torch.zeros(each.nnz) for t, each in enumerate(PATTERNS)]


WIDER = rk.SparsePattern.from_mask(random_mask(4, 19, 0.5, 0))
ELSEWHERE = PATTERNS[1].to("meta")
GROUPED_LINEAR: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "ps none": ({"ps": []}, ValueError, "ps: expected at least one"),
    "ps single": ({"ps": PATTERNS[0]}, TypeError, "ps: expected a sequence.*SparsePattern"),
    "ps mask": ({"ps": [PATTERNS[0], MASK, PATTERNS[2]]}, TypeError, r"ps\[1\]: expected a SparsePattern.*Tensor"),
    "ps shape": (
        {"ps": [*PATTERNS[:2], WIDER]},
        ValueError,
        r"ps\[2\]: expected shape \(4, 18\), that of ps\[0\]\. Got \(4, 19\)",
    ),
    "ps device": ({"ps": [PATTERNS[0], ELSEWHERE, PATTERNS[2]]}, ValueError, r"ps\[1\]: .*cpu.*ps\[0\].*meta"),
    "ps too few": ({"ps": PATTERNS[:2]}, ValueError, "vs: expected 2 tensors, one per pattern. Got 3"),
    "vs too few": ({"vs": values_but(0, None)[:2]}, ValueError, "vs: expected 3 tensors, one per pattern. Got 2"),
    "vs shape": (
        {"vs": torch.zeros(3, NNZ)},
        ValueError,
        rf"vs: expected shape \({sum(each.nnz for each in PATTERNS)},\), one per owned weight. Got \(3, {NNZ}\)",
    ),
    "vs dtype": (
        {"vs": torch.zeros(sum(each.nnz for each in PATTERNS)).double()},
        TypeError,
        "vs: .*float32.*float64",
    ),
    "vs None": ({"vs": None}, TypeError, "vs: expected a sequence of tensors. Got NoneType"),
    "vs item list": ({"vs": values_but(1, [0.0])}, TypeError, r"vs\[1\]: .*tensor.*list"),
    "vs item shape": (
        {"vs": values_but(2, torch.zeros(3))},
        ValueError,
        rf"vs\[2\]: expected shape \({PATTERNS[2].nnz},\), one per owned weight. Got \(3,\)",
    ),
    "vs item dtype": (
        {"vs": values_but(1, torch.zeros(PATTERNS[1].nnz).double())},
        TypeError,
        r"vs\[1\]: .*float32.*float64",
    ),
    "vs item integer": (
        {"vs": values_but(0, torch.zeros(PATTERNS[0].nnz).long())},
        TypeError,
        r"vs\[0\]: .*floating.*int64",
    ),
    "vs item device": (
        {"vs": values_but(2, torch.zeros(PATTERNS[2].nnz, device="meta"))},
        ValueError,
        r"vs\[2\]: .*cpu.*meta",
    ),
    "biases too many": (
        {"biases": [torch.zeros(4)] * 4},
        ValueError,
        "biases: expected 3 tensors, one per pattern. Got 4",
    ),
    "biases number": ({"biases": 0.0}, TypeError, "biases: expected a sequence of tensors. Got float"),
    "biases shape": ({"biases": torch.zeros(4, 3)}, ValueError, r"biases: expected shape \(3, 4\).*\(4, 3\)"),
    "biases dtype": ({"biases": torch.zeros(3, 4).half()}, TypeError, "biases: .*float32.*float16"),
    "biases device": ({"biases": torch.zeros(3, 4, device="meta")}, ValueError, "biases: .*cpu.*meta"),
    "biases item None": ({"biases": [torch.zeros(4), None, torch.zeros(4)]}, TypeError, r"biases\[1\]: .*NoneType"),
    "biases item shape": (
        {"biases": [torch.zeros(4), torch.zeros(4), torch.zeros(1, 4)]},
        ValueError,
        r"biases\[2\]: expected shape \(4,\), one per row. Got \(1, 4\)",
    ),
    "task_of_row list": ({"task_of_row": [0] * 5}, TypeError, "task_of_row: expected a tensor. Got list"),
    "task_of_row dtype": ({"task_of_row": torch.zeros(5)}, TypeError, "task_of_row: expected int32.*float32"),
    "task_of_row bool": ({"task_of_row": torch.zeros(5).bool()}, TypeError, "task_of_row: expected int32.*bool"),
    "task_of_row shape": (
        {"task_of_row": torch.zeros(5, 1, dtype=torch.int64)},
        ValueError,
        r"task_of_row: expected shape \(5,\), one task per row of x. Got \(5, 1\)",
    ),
    "task_of_row device": (
        {"task_of_row": torch.zeros(5, dtype=torch.int64, device="meta")},
        ValueError,
        "task_of_row: .*cpu.*meta",
    ),
    "task_of_row negative": (
        {"task_of_row": torch.tensor([0, -4, 2, -1, 1])},
        IndexError,
        "task_of_row: expected tasks from 0 to 2. Got -4 to 2",
    ),
    "task_of_row too large": (
        {"task_of_row": torch.tensor([0, 1, 3, 2, 1], dtype=torch.int32)},
        IndexError,
        "task_of_row: expected tasks from 0 to 2. Got 0 to 3",
    ),
    "backend unknown": OPERANDS["backend unknown"],
    "backend list": OPERANDS["backend list"],
    **LINEAR,
    "x columns": ({"x": torch.zeros(5, 17)}, ValueError, r"x: .*\[\.\.\., 18\].*\(5, 17\)"),
    "x transposed": ({"x": torch.zeros(18, 5)}, ValueError, r"x: .*\[\.\.\., 18\].*\(18, 5\)"),
    "x dtype": ({"x": torch.zeros(5, 18).half()}, TypeError, r"vs\[0\]: .*float16.*float32"),
}


def test_the_good_calls_are_good() -> None:
    assert linear().shape == (3, 4) and conv2d().shape == (2, 4, 3, 4) and grouped_linear().shape == (5, 4)


@pytest.mark.parametrize(("changed", "error", "text"), OPERANDS.values(), ids=OPERANDS)
@pytest.mark.parametrize("call", [linear, conv2d])
def test_bad_operands_are_named(call: Any, changed: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(**changed)


@pytest.mark.parametrize(("changed", "error", "text"), LINEAR.values(), ids=LINEAR)
def test_bad_arguments_of_linear_are_named(changed: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        linear(**changed)


@pytest.mark.parametrize(("changed", "error", "text"), CONV2D.values(), ids=CONV2D)
def test_bad_arguments_of_conv2d_are_named(changed: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        conv2d(**changed)


@pytest.mark.parametrize(("changed", "error", "text"), GROUPED_LINEAR.values(), ids=GROUPED_LINEAR)
def test_bad_arguments_of_grouped_linear_are_named(changed: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        grouped_linear(**changed)


@pytest.mark.parametrize("call", [linear, conv2d, grouped_linear])
@pytest.mark.parametrize("name", [name for name, status in rk.available_backends().items() if status is not True])
def test_a_backend_that_cannot_run_says_why(call: Any, name: str) -> None:
    with pytest.raises(rk.BackendError) as caught:
        call(backend=name)
    assert name in str(caught.value) and str(rk.available_backends()[name]) in str(caught.value)


@pytest.mark.parametrize("call", [linear, conv2d])
def test_an_error_leaves_the_operands_unchanged(call: Any) -> None:
    values, bias = torch.ones(NNZ), torch.ones(3)
    before = PATTERN.nbytes
    with pytest.raises(ValueError, match="bias"):
        call(values=values, bias=bias)
    assert values.eq(1).all() and bias.eq(1).all() and PATTERN.nbytes == before


@pytest.mark.parametrize(
    "changed",
    [each for each, _, text in GROUPED_LINEAR.values() if "backend" not in each],
    ids=[name for name, (each, _, _) in GROUPED_LINEAR.items() if "backend" not in each],
)
def test_an_error_stacks_no_index(changed: dict[str, Any]) -> None:
    ps = [rk.SparsePattern.from_mask(each.mask()) for each in PATTERNS]
    with pytest.raises((TypeError, ValueError, IndexError)):
        grouped_linear(**({"ps": ps} | changed))
    assert not any(each.groups for each in ps)


@pytest.mark.skipif(rk.available_backends()["cpu"] is not True, reason="there is no such backend")
@pytest.mark.parametrize("name", ["cpu", "cpu/dense/dense"])
@pytest.mark.parametrize("call", [linear, conv2d, grouped_linear])
def test_a_type_that_a_backend_has_no_kernels_for_is_named(call: Any, name: str) -> None:
    narrow = torch.float8_e4m3fn
    x = torch.zeros((2, 6, 5, 5) if call is conv2d else (5, 18)).to(narrow)
    if call is grouped_linear:
        values: dict[str, Any] = {"vs": torch.zeros(sum(each.nnz for each in PATTERNS)).to(narrow), "biases": None}
    else:
        values = {"values": torch.zeros(NNZ).to(narrow), "bias": None}
    with pytest.raises(rk.BackendError, match=f"'{name}' cannot run this call: it has no kernels for {narrow}"):
        call(x=x, backend=name, **values)
