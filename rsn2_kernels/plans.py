"""What GPU kernels read of a pattern, plans and compact forms: made once, and remembered by it."""

from torch import Tensor

from rsn2_kernels.compact import Compact
from rsn2_kernels.csr import CsrIndex
from rsn2_kernels.geometry import ConvGeometry
from rsn2_kernels.gpu_cost import Visits
from rsn2_kernels.plan import Plan, Survey, survey_conv, survey_linear


def visits(weight: CsrIndex, geometry: ConvGeometry | None) -> Visits:
    """What the forward product would visit. The first call waits for the device.

    Args:
        weight: a pattern, or the patterns of a grouped product.
        geometry: of a convolution, else None.
    """
    taps, groups = _taps_and_groups(geometry)

    def look() -> Visits:
        return Visits.of(survey(weight, geometry, False), weight.shape[1], taps)

    return weight.derived(("visits", taps, groups), look)


def plan_tensors(weight: CsrIndex, geometry: ConvGeometry | None, with_columns: bool) -> list[Tensor]:
    """The tensors of the plan, and behind them those of the transposed weight's plan if asked."""
    transposed = (False, True) if with_columns else (False,)
    return [tensor for each in transposed for tensor in plan(weight, geometry, each)]


def plan(weight: CsrIndex, geometry: ConvGeometry | None = None, transposed: bool = False) -> Plan:
    """The plan of a weight, or of its transpose, which the gradient of the input reads.

    The first call builds it and waits for the device; later ones return the same tensors.

    Args:
        weight: a pattern, or the patterns of a grouped product: one stack per task.
        geometry: of a convolution, whose groups are the stacks; None for a linear product.
        transposed: whether of the transpose.
    """
    key = ("plan", *_taps_and_groups(geometry), transposed)
    return weight.derived(key, lambda: Plan.build(survey(weight, geometry, transposed)))


def compact(weight: CsrIndex) -> Compact:
    """The compact form of a weight; the first call builds it."""
    return weight.derived("compact", lambda: Compact.of(weight))


def survey(weight: CsrIndex, geometry: ConvGeometry | None, transposed: bool) -> Survey:
    """A look at a weight, or at its transpose; see `plan` for the arguments."""
    cols = weight.shape[1]
    if geometry is not None:
        taps, groups = _taps_and_groups(geometry)
        return survey_conv(weight.crow, weight.col, cols, taps, groups, transposed)
    if transposed:
        crow_t, row_t, perm = weight.by_column()
        return survey_linear(weight.stacks, crow_t, row_t, weight.shape[0], perm)
    return survey_linear(weight.stacks, weight.crow, weight.col, cols)


def _taps_and_groups(geometry: ConvGeometry | None) -> tuple[int, int]:
    """All of a convolution that its plan depends on; (1, 0) for a linear product."""
    return (1, 0) if geometry is None else (geometry.kernel_size[0] * geometry.kernel_size[1], geometry.groups)
