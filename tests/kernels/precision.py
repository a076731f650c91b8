"""How far a result may lie from the exact one: the only place that holds a tolerance.

A sum of n products, added in any order and rounded to the accumulator after every step, lies within
``n * u * sum(|product|)`` of the exact sum, u the accumulator's unit roundoff (Higham, Accuracy and
Stability of Numerical Algorithms, 2nd edition, equation 3.5, to first order in u). Rounding the result to its
own dtype adds that dtype's unit roundoff times the result. Nothing here was fitted to what a backend returns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Unit roundoff: half the distance from 1 to the next number.
ROUNDOFF = {dtype: torch.finfo(dtype).eps / 2 for dtype in DTYPES}

# What the operators promise to add in: float32 for everything narrower.
ACCUMULATOR = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


@dataclass(frozen=True)
class Exact:
    """A tensor computed in float64, with what bounds the error of computing it in less; all of one shape.

    Attributes:
        value: the result.
        magnitude: the sum of the absolute values of the products it is the sum of.
        terms: how many those products are.
        rounded: the sum of the absolute values of what may be rounded to the result's dtype on the way: the
            result, and for a result with a bias also the product before the bias was added.
    """

    value: Tensor
    magnitude: Tensor
    terms: Tensor
    rounded: Tensor

    def tolerance(self, dtype: torch.dtype) -> Tensor:
        """The largest error that ``dtype`` explains, per element."""
        # One rounding more than terms for the scatter into 0; float64 again for the oracle's own error.
        accumulate = (self.terms + 1) * (ROUNDOFF[ACCUMULATOR[dtype]] + ROUNDOFF[torch.float64])
        info = torch.finfo(dtype)
        # Below the smallest normal number the distance between neighbours stops shrinking.
        subnormal = info.smallest_normal * info.eps
        return accumulate * self.magnitude + 1.001 * ROUNDOFF[dtype] * self.rounded + subnormal


def assert_within_roundoff(name: str, actual: Tensor, exact: Exact, dtype: torch.dtype) -> None:
    """Fail, naming the worst element, unless ``actual`` is ``exact`` up to what its dtype explains."""
    assert actual.dtype == dtype, f"{name}: expected {dtype}. Got {actual.dtype}."
    assert actual.shape == exact.value.shape, f"{name}: expected {exact.value.shape}. Got {actual.shape}."
    if actual.numel() == 0:
        return
    got = actual.detach().to(torch.float64)
    error = (got - exact.value).abs()
    excess = (error / exact.tolerance(dtype)).nan_to_num(nan=torch.inf).flatten()
    worst = int(excess.argmax())
    assert excess[worst] <= 1, (
        f"{name}: flat element {worst} of {tuple(actual.shape)} is off by {float(excess[worst]):.3g} "
        f"tolerances; expected {float(exact.value.flatten()[worst])}, got {float(got.flatten()[worst])}; "
        f"{int((excess > 1).sum())} elements are off."
    )
