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


# Of both operators: what is changed, the error, and a pattern of its text: argument, expected, got.
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


def test_the_good_calls_are_good() -> None:
    assert linear().shape == (3, 4) and conv2d().shape == (2, 4, 3, 4)


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


@pytest.mark.parametrize("call", [linear, conv2d])
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
