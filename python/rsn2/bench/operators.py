"""The calls of an operator's case: this package with each of its backends, and all baselines, each checked first."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

import rsn2_kernels as rk
from rsn2.bench.baselines import BASELINES, DENSE, OURS, SEPARATE, first_line, ours
from rsn2.bench.cases import Case
from rsn2.bench.products import Candidate, Problem
from rsn2.bench.work import UnavailableError, Work, WrongResultError

# Of the largest value of the reference. Sums of some thousand products, rounded to the type at the end.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}

# Rows of x whose result, and whose gradient, is compared before anything is timed.
_CHECKED_ROWS = 16
# The definition that the others are tested against, which `backend=None` never chooses.
_NOT_TIMED = ("reference",)


def work(case: Case, device: torch.device | str, missing: Mapping[str, str] | None = None) -> Work:
    """Dense or separate, `rsn2` as it chooses, `rsn2 <backend>` for each backend, and the other baselines.

    Args:
        case: a product.
        device: where it is computed.
        missing: name -> why, of calls that are not to be made; with it, results are not compared again.

    Raises:
        UnavailableError: if the case has no such mask, or the baseline itself cannot run.
    """
    problem = Problem(case, device)
    baseline = SEPARATE if case.op == "grouped_linear" else DENSE
    found = Work(baseline, unavailable=dict(missing or {}))
    backends = [name for name in rk.available_backends() if name not in _NOT_TIMED]
    makers: dict[str, Callable[[Problem], Candidate]] = {
        baseline: BASELINES[baseline],
        OURS: ours,
        **{f"{OURS} {backend}": partial(ours, backend=backend) for backend in backends},
        **BASELINES,
    }
    check = _check(problem) if missing is None else None
    errors: dict[str, float] = {}
    wrong: list[str] = []
    for name, make in makers.items():
        if name in found.unavailable:
            continue
        try:
            candidate = make(problem)
            if check is not None:
                errors[name] = check(candidate)
            call = candidate.call(case.training)
            call()
        except torch.OutOfMemoryError:
            raise
        except (UnavailableError, RuntimeError, TypeError, ValueError) as error:
            # Of this package and of the baseline, only what is known to be impossible may be missing.
            if name == baseline or (name.startswith(OURS) and not isinstance(error, UnavailableError)):
                raise
            found.unavailable[name] = first_line(error)
            if name.startswith(OURS) and isinstance(error, WrongResultError):
                wrong.append(name)
            continue
        found.add(name, call, problem.amount(candidate.kind))
    chosen = rk.explain(
        case.op,
        problem.patterns[0],
        case.positions,
        problem.dtype,
        device,
        kernel_size=3 if problem.is_conv else 1,
        training=case.training,
    )
    found.facts = {
        "nnz": sum(pattern.nnz for pattern in problem.patterns),
        "chosen": chosen.backend,
        "wrong": wrong,
        "error": {name: float(f"{error:.2g}") for name, error in errors.items() if name in found.calls},
    }
    return found


def _check(problem: Problem) -> Callable[[Candidate], float]:
    """What compares a candidate's first rows, and in training its gradient of x, with the reference."""
    case = problem.case
    rows = min(_CHECKED_ROWS, case.batch)
    expected = problem.reference(rows)
    if not case.training:
        return lambda candidate: checked(candidate, expected, case.dtype)
    generator = torch.Generator().manual_seed(2)
    dy = torch.randn(case.batch, *expected.shape[1:], generator=generator).to(problem.device, problem.dtype)
    gradient = problem.reference_gradient(dy[:rows])

    def check(candidate: Candidate) -> float:
        return max(checked(candidate, expected, case.dtype), checked_gradient(candidate, problem, dy, gradient))

    return check


def checked(candidate: Candidate, expected: Tensor, dtype: str) -> float:
    """The largest error of the first rows, as a share of the largest value.

    Raises:
        WrongResultError: if it is more than the type explains: then it is another product.
    """
    with torch.no_grad():
        result = candidate.forward()
    return _compared("result", result, expected, dtype)


def checked_gradient(candidate: Candidate, problem: Problem, dy: Tensor, expected: Tensor) -> float:
    """The same of the gradient of x for this gradient of the result.

    Raises:
        WrongResultError: if it is more than the type explains.
    """
    dx, *others = torch.autograd.grad(candidate.forward(), candidate.inputs, dy)
    if candidate.inputs[0] is not problem.x:
        parts = [dx, *others[: problem.case.tasks - 1]]
        dx = torch.cat(parts)[torch.cat(problem.rows_of_task).argsort()]
    return _compared("gradient of x", dx, expected, problem.case.dtype)


def _compared(what: str, found: Tensor, expected: Tensor, dtype: str) -> float:
    """The largest error of the first rows, as a share of the largest value; raises if it is more than allowed."""
    error = float((found[: len(expected)].double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not error <= TOLERANCE[dtype]:
        raise WrongResultError(f"its {what} is off by {error:.2g} of the largest value: not timed")
    return error
