"""Every way to multiply by a sparse weight, each a function of the problem; one that cannot run here says why.

A foreign library may also raise its own errors, when it is made or when it runs: the caller takes these for the reason.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import rsn2_kernels as rk
from rsn2.bench.masks import BLOCK
from rsn2.bench.products import Candidate, Problem
from rsn2.bench.work import UnavailableError

_STK_BLOCK = 128

DENSE, OURS, SEPARATE = "dense", "rsn2", "separate"


def ours(problem: Problem, backend: str | None = None) -> Candidate:
    """This package's operator; without a backend it chooses."""
    case, patterns = problem.case, problem.patterns
    if backend is not None and (why := rk.available_backends()[backend]) is not True:
        raise UnavailableError(str(why))
    values = problem.values
    x, first, rows = problem.x, patterns[0], problem.task_of_row

    def forward() -> Tensor:
        if problem.is_conv:
            return rk.conv2d(x, values[0], first, padding=1, kernel_size=3, backend=backend)
        if case.op == "grouped_linear":
            return rk.grouped_linear(x, values, patterns, rows, backend=backend)
        return rk.linear(x, values[0], first, backend=backend)

    try:
        with torch.no_grad():
            forward()
    except rk.BackendError as error:
        raise UnavailableError(str(error)) from error
    return Candidate(forward, [x, *values], "owned")


def dense(problem: Problem) -> Candidate:
    """F.linear, F.conv2d: the vendor's library on a dense weight."""
    _not_grouped(problem, f"see {SEPARATE!r}")
    weight = problem.weights[0]
    return Candidate(lambda: problem.dense(problem.x, weight), [problem.x, weight])


def separate(problem: Problem) -> Candidate:
    """A dense weight of its own for every task; each multiplies the rows of its task, which are gathered beforehand."""
    if problem.case.op != "grouped_linear":
        raise UnavailableError(f"one task: it is {DENSE!r}")
    parts, gather = _by_task(problem)

    def forward() -> Tensor:
        return gather([problem.dense(part, weight) for part, weight in zip(parts, problem.weights, strict=True)])

    return Candidate(forward, [*parts, *problem.weights])


def masked(problem: Problem) -> Candidate:
    """Weight times mask in every call, how sparse multitask networks ran so far."""
    factors = [mask.to(problem.dtype) for mask in problem.masks]
    parts, gather = _by_task(problem)

    def forward() -> Tensor:
        both = zip(parts, problem.weights, factors, strict=True)
        return gather([problem.dense(part, weight * factor) for part, weight, factor in both])

    return Candidate(forward, [*parts, *problem.weights])


def compiled(problem: Problem) -> Candidate:
    """The dense product under torch.compile."""
    if not problem.case.compiled:
        raise UnavailableError("compiling takes seconds: some cases only")
    _not_grouped(problem, "not compiled")
    weight = problem.weights[0]
    run = compile_for(problem.dense, problem.x, weight)
    return Candidate(lambda: run(problem.x, weight), [problem.x, weight])


def vector(problem: Problem) -> Candidate:
    """torch.mv: the dense library's product of one row."""
    _linear_only(problem)
    if problem.case.batch != 1:
        raise UnavailableError("more than one row")
    weight = problem.weights[0]
    return Candidate(lambda: torch.mv(weight, problem.x[0])[None], [problem.x, weight])


def csr(problem: Problem) -> Candidate:
    """torch.sparse CSR; its gradient of the weight is CSR, too."""
    return _sparse(problem, lambda weight: weight.to_sparse_csr())


def bsr(problem: Problem) -> Candidate:
    """torch.sparse BSR with blocks of 16 x 16; where a block owns anything, all of it is multiplied."""
    return _sparse(problem, lambda weight: weight.to_sparse_bsr((BLOCK, BLOCK)))


def semi_structured(problem: Problem) -> Candidate:
    """torch.sparse's 2:4 format, on the tensor cores that know it."""
    _linear_only(problem)
    if problem.case.mask != "2:4":
        raise UnavailableError("the mask does not own two of every four weights")
    if problem.device.type != "cuda":
        raise UnavailableError("2:4 needs an NVIDIA GPU of compute capability 8.0")
    _without_gradient(problem)
    weight = torch.sparse.to_sparse_semi_structured(problem.weights[0].detach())
    return Candidate(lambda: nn.functional.linear(problem.x, weight), [problem.x], "half")


def beyondml_masked(problem: Problem) -> Candidate:
    """MultiMaskedDense, MaskedConv2D: what the paper's authors train with."""
    layers = _beyondml()
    if problem.is_conv:
        filters, channels, _ = problem.case.shape
        conv = layers.MaskedConv2D(channels, filters, 3, padding=1)
        conv.w = nn.Parameter(problem.weights[0].detach().view(filters, channels, 3, 3))
        conv.w_mask = problem.masks[0].to(problem.dtype).view(filters, channels, 3, 3)
        conv.b = nn.Parameter(torch.zeros(filters, dtype=problem.dtype, device=problem.device))
        conv.b_mask = torch.ones_like(conv.b)
        return Candidate(lambda: conv(problem.x), [problem.x, conv.w])
    rows, cols = problem.masks[0].shape
    layer = layers.MultiMaskedDense(cols, rows, problem.case.tasks)
    layer.w = nn.Parameter(torch.stack([weight.detach().t() for weight in problem.weights]).contiguous())
    layer.w_mask = torch.stack([mask.t().to(problem.dtype) for mask in problem.masks]).contiguous()
    layer.b = nn.Parameter(torch.zeros(problem.case.tasks, rows, dtype=problem.dtype, device=problem.device))
    layer.b_mask = torch.ones_like(layer.b)
    parts, gather = _by_task(problem)
    return Candidate(lambda: gather(layer(parts)), [*parts, layer.w])


def beyondml_sparse(problem: Problem) -> Candidate:
    """SparseDense: what the paper's authors infer with, torch's COO format."""
    layers = _beyondml()
    _linear_only(problem)
    _without_gradient(problem)
    weight = problem.weights[0].detach().t()
    bias = torch.zeros(weight.shape[1], dtype=problem.dtype, device=problem.device)
    layer = layers.SparseDense(weight, bias, device=problem.device, dtype=problem.dtype)
    return Candidate(lambda: layer(problem.x), [problem.x], "owned")


def stk(problem: Problem) -> Candidate:
    """stanford-stk: block-sparse products with blocks of 128 x 128, on NVIDIA GPUs."""
    _linear_only(problem)
    library = _imported("stk", "stanford-stk")
    if problem.device.type != "cuda":
        raise UnavailableError("stanford-stk needs an NVIDIA GPU")
    if any(side % _STK_BLOCK for side in (problem.case.batch, *problem.case.shape)):
        raise UnavailableError(f"stanford-stk takes sizes that {_STK_BLOCK} divides")
    weight = library.ops.to_sparse(problem.weights[0].detach(), _STK_BLOCK)
    weight.requires_grad_(True)
    return Candidate(lambda: library.ops.dds(problem.x, weight.t()), [problem.x, weight.data])


BASELINES: dict[str, Callable[[Problem], Candidate]] = {
    DENSE: dense,
    SEPARATE: separate,
    "compiled": compiled,
    "masked": masked,
    "torch.mv": vector,
    "torch CSR": csr,
    "torch BSR": bsr,
    "torch 2:4": semi_structured,
    "beyondml masked": beyondml_masked,
    "beyondml sparse": beyondml_sparse,
    "stk": stk,
}
"""Name -> the baseline. Each raises UnavailableError where it is known that it cannot run."""


def _sparse(problem: Problem, convert: Callable[[Tensor], Tensor]) -> Candidate:
    _linear_only(problem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # CSR and BSR are beta, says torch
        weight = convert(problem.weights[0].detach()).requires_grad_()
    return Candidate(lambda: torch.sparse.mm(weight, problem.x.t()).t(), [problem.x, weight], "owned")


def compile_for(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[..., Tensor]:
    """A function under torch.compile, compiled for inputs like these.

    Raises:
        UnavailableError: if it does not compile here.
    """
    torch.compiler.reset()
    run: Callable[..., Tensor] = torch.compile(function, dynamic=False)
    try:
        run(*inputs)
    except Exception as error:  # whatever the compiler raises, such as that there is no C++ compiler
        raise UnavailableError(f"torch.compile: {first_line(error)}") from error
    return run


def _by_task(problem: Problem) -> tuple[list[Tensor], Callable[[list[Tensor]], Tensor]]:
    """The part of x of each task, and what brings the parts of the result back in order."""
    if problem.case.op != "grouped_linear":
        return [problem.x], lambda parts: parts[0]
    rows = problem.rows_of_task
    back = torch.cat(rows).argsort()
    parts = [problem.x.detach()[each].requires_grad_() for each in rows]
    return parts, lambda results: torch.cat(results)[back]


def _linear_only(problem: Problem) -> None:
    if problem.case.op != "linear":
        raise UnavailableError("it has no such product")


def _not_grouped(problem: Problem, why: str) -> None:
    if problem.case.op == "grouped_linear":
        raise UnavailableError(f"no dense product of several tasks: {why}")


def _without_gradient(problem: Problem) -> None:
    if problem.case.training:
        raise UnavailableError("its weight takes no sparse gradient")


def _beyondml() -> Any:
    """The layers of the paper's authors. Their package imports its TensorFlow half, which an empty module replaces."""
    if importlib.util.find_spec("beyondml") is not None:
        sys.modules.setdefault("beyondml.tflow", ModuleType("beyondml.tflow"))
    return _imported("beyondml.pt.layers", "beyondml")


def _imported(module: str, distribution: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnavailableError(f"not installed: pip install {distribution} ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """What an error says, in a line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
