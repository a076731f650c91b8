"""The linear operator with a weight per row: each row of x is multiplied by its own task's packed weight."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from rsn2_kernels import dispatch
from rsn2_kernels.backends import Index, registry
from rsn2_kernels.geometry import Pair
from rsn2_kernels.group import PatternGroup
from rsn2_kernels.ops.gradients import register_gradients
from rsn2_kernels.ops.library import check_floating, check_pattern, check_shape, in_one_dtype
from rsn2_kernels.ops.operator import Operator, is_watched, out_of_autocast
from rsn2_kernels.pattern import SparsePattern
from rsn2_kernels.tracing import is_traced

Item = TypeVar("Item")


def grouped_linear(
    x: Tensor,
    vs: Sequence[Tensor] | Tensor,
    ps: Sequence[SparsePattern],
    task_of_row: Tensor,
    biases: Sequence[Tensor] | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Multiply each row of x by the packed weight of its own task. Differentiable, to any order.

    With T tasks, row ``b`` of the result is ``linear(x[b], vs[t], ps[t], biases[t])`` for ``t = task_of_row[b]``. The
    index of the patterns is stacked at the first call; the first pattern remembers it for later calls with the same
    ones (the 8 groups that were stacked last).

    Differentiable in reverse mode, as :func:`linear` is; many gradients at once come from the ``cpu`` backend alone.

    Args:
        x: ``[..., cols]``, any strides.
        vs: T tensors ``[nnz]``, each as long as its pattern asks; or one with all of them one behind the other, which
            saves the copy that makes one of them.
        ps: T patterns of one shape ``(rows, cols)``; the same one may occur several times. T is at least 1.
        task_of_row: int32 or int64, of shape ``x.shape[:-1]``: the position of each row's task in ``vs`` and ``ps``.
            A task may have any number of rows, none included.
        biases: T tensors ``[rows]``, or one ``[T, rows]``, or None.
        backend: a name from :func:`available_backends`, or None for the one predicted to be fastest; see
            :func:`linear`. On a GPU the ``dense`` backend waits for the device to learn how many rows each task has.

    Returns:
        ``[..., rows]``, in the dtype of the operands (autocast's where it is on). Types narrower than float32
        accumulate in float32.

        Ids out of range are an error on the CPU. Checking them on a GPU would wait for the device, and where a graph is
        captured, or a mode of torch follows, they may not be known yet: there such a row comes out as NaN, its gradient
        of x is 0, and it contributes nothing to the gradients of the values and biases.

        What is not finite may reach other results of its own task, as it may in :func:`linear`.

    Raises:
        TypeError, ValueError: if an operand has the wrong type, shape, dtype or device; names it.
        IndexError: if ``task_of_row`` on the CPU holds an id that is not in ``[0, T)``.
        BackendError: if ``backend`` cannot run here; says why.
        NotImplementedError: under forward-mode differentiation, from the gradients as well.
    """
    ps = _patterns(ps)
    rows, cols = ps[0].shape
    x, values, biases = _checked_operands(x, vs, ps, biases)
    if x.dim() == 0 or x.shape[-1] != cols:
        raise ValueError(f"x: expected shape [..., {cols}]. Got {tuple(x.shape)}.")
    _check_tasks(task_of_row, x, len(ps))
    group = PatternGroup.of(ps)
    flat = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), cols)
    records = torch.is_grad_enabled()
    trains = records and any(each.requires_grad for each in (x, *values))
    with_columns = records and x.requires_grad
    name, stacked = dispatch.resolve(
        "grouped_linear", group, flat.shape[0], x.dtype, backend, with_columns, trains=trains
    )
    index = [task_of_row.reshape(-1).to(torch.int64), *stacked]
    # Joining values that need not be one tensor can take as long as the product.
    apart = getattr(registry.module(name), "grouped_linear_apart", None)
    recorded = trains or (records and any(each.requires_grad for each in biases))
    if apart is not None and not recorded and not is_watched((x, *values, *biases)):
        y: Tensor = apart(flat, values, biases, index, len(ps))
    else:
        stacked_biases = _joined(biases).view(len(ps), rows) if biases else None
        y = _GROUPED_LINEAR(flat, _joined(values), stacked_biases, index, ps[0].shape, len(ps), name)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], rows)


def _items(name: str, given: Iterable[Item], what: str) -> tuple[Item, ...]:
    """The items of a sequence argument."""
    if isinstance(given, Tensor) or not isinstance(given, Iterable):
        raise TypeError(f"{name}: expected a sequence of {what}. Got {type(given).__name__}.")
    return tuple(given)


def _named(name: str, given: Iterable[Tensor] | Tensor, tasks: int) -> dict[str, Tensor]:
    """The tensors of a sequence argument, each by its own name; or the one tensor that it may be instead."""
    if isinstance(given, Tensor):
        return {name: given}
    items = _items(name, given, "tensors")
    if len(items) != tasks:
        raise ValueError(f"{name}: expected {tasks} tensors, one per pattern. Got {len(items)}.")
    return {f"{name}[{task}]": item for task, item in enumerate(items)}


def _patterns(given: Iterable[SparsePattern]) -> tuple[SparsePattern, ...]:
    """The patterns of the argument ``ps``, which have one shape and device."""
    ps = _items("ps", given, "SparsePatterns")
    if not ps:
        raise ValueError("ps: expected at least one SparsePattern. Got none.")
    for task, pattern in enumerate(ps):
        check_pattern(f"ps[{task}]", pattern)
    compiles = torch.compiler.is_dynamo_compiling()
    # A graph would be bound to the answer.
    if not compiles and PatternGroup.is_known(ps):
        return ps
    for task, pattern in enumerate(ps):
        if pattern.shape != ps[0].shape:
            raise ValueError(f"ps[{task}]: expected shape {ps[0].shape}, that of ps[0]. Got {pattern.shape}.")
        if pattern.device != ps[0].device:
            raise ValueError(f"ps[{task}]: expected it on {ps[0].device}, where ps[0] is. Got {pattern.device}.")
    if compiles:
        from rsn2_kernels import outside_graphs  # noqa: PLC0415 slow to import

        outside_graphs.stack(ps)
    return ps


def _checked_operands(
    x: Tensor, vs: Sequence[Tensor] | Tensor, ps: tuple[SparsePattern, ...], biases: Sequence[Tensor] | Tensor | None
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """x, and of values and biases a vector for each task, or a single one of all tasks; no biases at all: none."""
    tasks, rows = len(ps), ps[0].shape[0]
    values = _named("vs", vs, tasks)
    added = {} if biases is None else _named("biases", biases, tasks)
    operands = {"x": x, **values, **added}
    check_floating(operands, ps[0].device)
    owned = [pattern.nnz for pattern in ps]
    for (name, each), nnz in zip(values.items(), [sum(owned)] if "vs" in values else owned, strict=True):
        check_shape(name, each, (nnz,), "one per owned weight")
    for name, each in added.items():
        if name == "biases":
            check_shape(name, each, (tasks, rows), "one per task and row")
        else:
            check_shape(name, each, (rows,), "one per row")
    x, *rest = in_one_dtype(operands).values()
    return x, rest[: len(values)], [each.flatten() for each in rest[len(values) :]]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)


def _check_tasks(task_of_row: Tensor, x: Tensor, tasks: int) -> None:
    if not isinstance(task_of_row, Tensor):
        raise TypeError(f"task_of_row: expected a tensor. Got {type(task_of_row).__name__}.")
    if task_of_row.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"task_of_row: expected int32 or int64. Got {task_of_row.dtype}.")
    check_shape("task_of_row", task_of_row, tuple(x.shape[:-1]), "one task per row of x")
    if task_of_row.device != x.device:
        raise ValueError(f"task_of_row: expected it on {x.device}, where x is. Got {task_of_row.device}.")
    # Elsewhere the values are not known to the host yet.
    if x.device.type == "cpu" and not is_traced() and task_of_row.numel() > 0:
        smallest, largest = (int(each) for each in task_of_row.aminmax())
        if smallest < 0 or largest >= tasks:
            raise IndexError(f"task_of_row: expected tasks from 0 to {tasks - 1}. Got {smallest} to {largest}.")


def _grouped_linear(x: Tensor, values: Tensor, biases: Tensor | None, index: Index, *rest: Any) -> Tensor:
    _, tasks, backend = rest
    return registry.module(backend).grouped_linear(x, values, biases, index, tasks)


def _grouped_linear_fake(x: Tensor, values: Tensor, biases: Tensor | None, index: Index, *rest: Any) -> Tensor:
    features, *_ = rest
    return x.new_empty(x.shape[0], features[0])


def _grouped_linear_dx(dy: Tensor, values: Tensor, index: Index, features: Pair, tasks: int, backend: str) -> Tensor:
    task_of_row, *stacked = index
    index = [task_of_row, *dispatch.completed(stacked, backend, features, tasks)]
    return registry.module(backend).grouped_linear_dx(dy, values, index, tasks)


def _grouped_linear_dx_fake(dy: Tensor, values: Tensor, index: Index, features: Pair, *rest: Any) -> Tensor:
    return dy.new_empty(dy.shape[0], features[1])


def _grouped_linear_dvalues(dy: Tensor, x: Tensor, index: Index, features: Pair, tasks: int, backend: str) -> Tensor:
    return registry.module(backend).grouped_linear_dvalues(dy, x, index, tasks)


def _grouped_linear_dvalues_fake(dy: Tensor, x: Tensor, index: Index, *rest: Any) -> Tensor:
    return dy.new_empty(index[2].shape[0])


def _grouped_linear_dbias(dy: Tensor, index: Index, features: Pair, tasks: int, backend: str) -> Tensor:
    """The sum of dy over the rows of each task, ``[tasks, rows]``: one dense product, the same bits at every run."""
    wide = dy.to(torch.promote_types(dy.dtype, torch.float32))
    one_hot = (index[0] == torch.arange(tasks, device=dy.device)[:, None]).to(wide.dtype)
    # 0 * NaN is NaN: what is not finite must not reach other tasks, nor what stands in the rows of no task anyone.
    sums = one_hot @ wide.where(wide.isfinite(), 0)
    # A NaN is neither below nor above anything: it counts as both infinities, whose sum it is.
    above, below = (one_hot @ (~inside).to(wide.dtype) > 0 for inside in (wide < torch.inf, wide > -torch.inf))
    return (sums.masked_fill(above, torch.inf) + torch.zeros_like(sums).masked_fill(below, -torch.inf)).to(dy.dtype)


_REST = "int[2] features, int tasks, str backend"
_GROUPED_LINEAR = Operator(
    f"grouped_linear(Tensor x, Tensor values, Tensor? biases, Tensor[] index, {_REST}) -> Tensor",
    _grouped_linear,
    _grouped_linear_fake,
    operands=3,
)
_GROUPED_LINEAR_DX = Operator(
    f"grouped_linear_dx(Tensor dy, Tensor values, Tensor[] index, {_REST}) -> Tensor",
    _grouped_linear_dx,
    _grouped_linear_dx_fake,
    operands=2,
)
_GROUPED_LINEAR_DVALUES = Operator(
    f"grouped_linear_dvalues(Tensor dy, Tensor x, Tensor[] index, {_REST}) -> Tensor",
    _grouped_linear_dvalues,
    _grouped_linear_dvalues_fake,
    operands=2,
)
register_gradients(
    _GROUPED_LINEAR,
    _GROUPED_LINEAR_DX,
    _GROUPED_LINEAR_DVALUES,
    size_of=lambda x: (),
    dbias=out_of_autocast(_grouped_linear_dbias),
)
