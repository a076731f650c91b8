"""The operators inside torch: opcheck, torch.compile, torch.export, function transforms."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import rsn2_kernels as rk
from rsn2_kernels import csr, dispatch, plans, tracing
from rsn2_kernels.backends import cpu, registry
from rsn2_kernels.geometry import ConvGeometry
from rsn2_kernels.group import PatternGroup

from .cases import SMALL, Case, ConvCase, GroupedCase, LinearCase, Operands

LAYOUTS = ("contiguous", "reversed", "strided")


def operator_calls(operator: str, backend: str, x_layout: str) -> dict[str, tuple[Any, ...]]:
    """Arguments of the three registered operators behind ``operator``, by operator name."""
    size: tuple[Any, ...] = ()
    if operator == "linear":
        case: Case = LinearCase(6, 9, (5,), x_layout=x_layout, dy_layout=x_layout)
    elif operator == "conv2d":
        case = ConvCase(2, 4, 6, (5, 4), (3, 2), (2, 1), (1, 0), (1, 2), 2, x_layout=x_layout, dy_layout=x_layout)
        size = (case.size,)
    else:
        case = GroupedCase(4, 6, 9, (7,), absent=(1,), x_layout=x_layout, dy_layout=x_layout)
    o = case.operands(torch.float32)
    values, rest = o.values.detach(), rest_of(case)
    index, short = (index_of(case, o, backend, with_columns) for with_columns in (True, False))
    activation = () if operator == "grouped_linear" else ("none",)
    return {
        operator: (o.x, o.values, o.bias, index, *activation, *rest, backend),
        f"{operator}_dx": (o.dy, values, index, *size, *rest, backend),
        f"{operator}_dvalues": (o.dy, o.x.detach(), short, *rest, backend),
    }


def rest_of(case: Case) -> tuple[Any, ...]:
    """What the registered operators behind ``case`` are told beside operands, index and backend."""
    if isinstance(case, ConvCase):
        features = (case.filters, case.channels)
        return features, case.kernel_size, case.stride, case.padding, case.dilation, case.groups
    return ((case.rows, case.cols), case.tasks) if isinstance(case, GroupedCase) else ((case.rows, case.cols),)


def index_of(case: Case, operands: Operands, backend: str, with_columns: bool) -> list[Tensor]:
    """The index tensors that the registered operator behind ``case`` takes."""
    if isinstance(case, GroupedCase):
        group = PatternGroup.of(operands.patterns)
        return [case.task_of_row(case.batch).to(operands.x.device), *dispatch.index(backend, group, with_columns)]
    geometry = None
    if isinstance(case, ConvCase):
        geometry = ConvGeometry(case.kernel_size, case.stride, case.padding, case.dilation, case.groups)
    return dispatch.index(backend, operands.pattern, with_columns, geometry)


@pytest.mark.parametrize("x_layout", LAYOUTS)
@pytest.mark.parametrize("product", ["", "_dx", "_dvalues"], ids=["forward", "dx", "dvalues"])
def test_opcheck_passes(operator: str, product: str, x_layout: str, backend: str) -> None:
    arguments = operator_calls(operator, backend, x_layout)[operator + product]
    torch.library.opcheck(getattr(torch.ops.rsn2, operator + product).default, arguments)


@pytest.mark.parametrize("x_layout", LAYOUTS)
@pytest.mark.parametrize("batch", [5, 16])
def test_opcheck_passes_for_the_layout_of_the_triton_backend(batch: int, x_layout: str) -> None:
    if (why := registry.why_not("triton", torch.device("cpu"), torch.float32)) is not None:
        pytest.skip(why)
    x = LinearCase(6, 9, (batch,), x_layout=x_layout).operands(torch.float32).x
    torch.library.opcheck(torch.ops.rsn2.feature_major.default, (x,))
    assert torch.equal(torch.ops.rsn2.feature_major(x), x)


@pytest.mark.parametrize("missing", ["bias", "gradients", "columns"])
def test_opcheck_passes_without(missing: str, operator: str, backend: str) -> None:
    x, values, bias, index, *rest = operator_calls(operator, backend, "contiguous")[operator]
    if missing == "bias":
        bias = None
    elif missing == "gradients":
        x, values, bias = x.detach(), values.detach(), bias.detach()
    else:
        x, index = x.detach(), operator_calls(operator, backend, "contiguous")[f"{operator}_dvalues"][2]
    torch.library.opcheck(getattr(torch.ops.rsn2, operator).default, (x, values, bias, index, *rest))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """A compiler that remembers nothing of earlier tests."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def small_call(
    operator: str, operands: Operands, backend: str | None
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A function of x, values and bias with something to fuse around the operator."""

    def function(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        if operator == "linear":
            return rk.linear(x * 2, values, operands.pattern, bias, backend=backend).relu()
        if operator == "grouped_linear":
            vs = values.split([each.nnz for each in operands.patterns])
            task_of_row = torch.arange(x.shape[0]) % len(vs)
            return rk.grouped_linear(x * 2, vs, operands.patterns, task_of_row, bias, backend=backend).relu()
        return rk.conv2d(
            x * 2,
            values,
            operands.pattern,
            bias,
            (2, 1),
            (1, 0),
            groups=2,
            kernel_size=(3, 2),
            backend=backend,
        ).relu()

    return function


def column_order(operator: str, patterns: tuple[rk.SparsePattern, ...]) -> tuple[Tensor, ...]:
    """The column order that the operator uses, of the pattern or of the group."""
    return (PatternGroup.of(patterns) if operator == "grouped_linear" else patterns[0]).by_column()


def with_gradients(function: Callable[..., Tensor], operands: Operands, dy: Tensor) -> list[Tensor]:
    """y and the gradients of x, values and bias."""
    y = function(operands.x, operands.values, operands.bias)
    return [y.detach(), *torch.autograd.grad(y, list(operands.inputs.values()), dy)]


@pytest.mark.usefixtures("fresh_compiler")
def test_what_is_made_of_a_mask_is_no_part_of_a_graph(operator: str, backend: str) -> None:
    operands, served = (SMALL[operator].operands(torch.float32) for _ in range(2))
    with_gradients(small_call(operator, served, backend), served, served.dy)
    counts = []
    for each in (operands, served):
        torch.compiler.reset()
        counter = CompileCounterWithBackend("aot_eager")
        function = torch.compile(small_call(operator, each, backend), fullgraph=True, backend=counter)
        function(each.x, each.values, each.bias)
        counts.append((counter.frame_count, counter.op_count))
    assert counts[0] == counts[1] and counts[0][0] == 1


# What a checkpointed function meets between its call and the backward pass that runs it again.
BETWEEN: dict[str, Callable[[Callable[[], object]], object]] = {
    "nothing": lambda eager: None,
    "an eager call": lambda eager: eager(),
}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
@pytest.mark.parametrize("asked", ["by name", None], ids=str)
def test_a_compiled_function_can_be_checkpointed_from_its_first_call_on(
    between: Callable[[Callable[[], object]], object], asked: str | None, operator: str, backend: str
) -> None:
    operands = SMALL[operator].operands(torch.float32)
    function = small_call(operator, operands, backend if asked else None)
    inputs = operands.x, operands.values, operands.bias
    y = checkpoint(torch.compile(function, fullgraph=True, backend="aot_eager"), *inputs, use_reentrant=False)
    between(lambda: with_gradients(function, operands, operands.dy))
    found = torch.autograd.grad(y, inputs, operands.dy)
    for got, expected in zip(found, with_gradients(function, operands, operands.dy)[1:], strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE], ids=str)
def test_selective_checkpointing_sees_the_same_operators_from_the_first_call_on(
    policy: CheckpointPolicy, operator: str, backend: str
) -> None:
    operands = SMALL[operator].operands(torch.float32)
    function = small_call(operator, operands, backend)
    inputs = operands.x, operands.values, operands.bias

    def contexts() -> Any:
        return create_selective_checkpoint_contexts(lambda *call, **options: policy)

    y = checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)
    found = torch.autograd.grad(y, inputs, operands.dy)
    for got, expected in zip(found, with_gradients(function, operands, operands.dy)[1:], strict=True):
        assert torch.equal(got, expected)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_compiled_function_equals_the_eager_one_at_every_batch_size(
    operator: str, backend: str, dynamic: bool
) -> None:
    case = SMALL[operator]
    operands = case.operands(torch.float32)
    # The compiled function sees the pattern first.
    function = small_call(operator, operands, backend)
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (3, 5):
        x = torch.randn(batch, *operands.x.shape[1:], requires_grad=True)
        now = replace(operands, x=x)
        dy = torch.randn(batch, *operands.dy.shape[1:])
        for name, got, expected in zip(
            ("y", "dx", "dvalues", "dbias"),
            with_gradients(compiled, now, dy),
            with_gradients(function, now, dy),
            strict=True,
        ):
            assert torch.equal(got, expected), f"{name} at batch {batch}"


@pytest.mark.usefixtures("fresh_compiler")
def test_a_dynamic_batch_size_is_compiled_once(operator: str, backend: str) -> None:
    operands = SMALL[operator].operands(torch.float32)
    counter = CompileCounterWithBackend("aot_eager")
    function = small_call(operator, operands, backend)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    # None of them is the size of an index tensor, which a dynamic graph would take for the same symbol.
    for batch in (19, 23, 29):
        compiled(torch.randn(batch, *operands.x.shape[1:]), operands.values, operands.bias)
    assert counter.frame_count == 1


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_function_leaves_a_pattern_that_eager_calls_can_use(operator: str, backend: str) -> None:
    operands = SMALL[operator].operands(torch.float32)
    function = small_call(operator, operands, backend)
    with_gradients(torch.compile(function, fullgraph=True, backend="aot_eager"), operands, operands.dy)
    expected = column_order(operator, SMALL[operator].operands(torch.float32).patterns)
    for got, wanted in zip(column_order(operator, operands.patterns), expected, strict=True):
        assert type(got) is Tensor and torch.equal(got, wanted)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_without_a_backend_name_compiling_works_too(operator: str, dynamic: bool) -> None:
    operands = SMALL[operator].operands(torch.float32)
    function = small_call(operator, operands, None)
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for got, expected in zip(
        with_gradients(compiled, operands, operands.dy),
        with_gradients(function, operands, operands.dy),
        strict=True,
    ):
        # For a symbolic batch, a graph may sum in another order than a call.
        torch.testing.assert_close(got, expected)


class Network(nn.Module):
    """A convolution and a linear layer on packed weights."""

    def __init__(self, backend: str | None) -> None:
        super().__init__()
        self.conv, self.head = ConvCase(2, 3, 4, (6, 6), (3, 3)), LinearCase(5, 64, (2,))
        conv, head = self.conv.operands(torch.float32), self.head.operands(torch.float32)
        self.conv_pattern, self.head_pattern = conv.pattern, head.pattern
        self.conv_values, self.head_values = (
            nn.Parameter(conv.values.detach()),
            nn.Parameter(head.values.detach()),
        )
        self.owners = rk.OwnerMap.empty(self.conv_pattern.shape)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        backend = self.backend
        if backend is not None and not hasattr(registry.module(backend), "conv2d"):
            backend = "reference"
        y = rk.conv2d(x, self.conv_values, self.conv_pattern, kernel_size=3, backend=backend).relu()
        return rk.linear(y.flatten(1), self.head_values, self.head_pattern, backend=self.backend)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))), reason="inductor needs a C++ compiler")
def test_inductor_compiles_a_network_forward_and_backward(backend: str) -> None:
    """Inductor, unlike the eager tracer, relies on the strides that the shape functions promise."""
    network = Network(backend)
    x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    inputs = [x, *network.parameters()]
    expected = torch.autograd.grad(network(x).square().sum(), inputs)
    got = torch.autograd.grad(torch.compile(network, fullgraph=True)(x).square().sum(), inputs)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_an_exported_program_gives_the_same_result_at_every_batch_size(backend: str) -> None:
    batch = torch.export.Dim("batch", min=2)
    network, x = Network(backend), torch.randn(7, 3, 6, 6)
    program = torch.export.export(network, (torch.randn(2, 3, 6, 6),), dynamic_shapes={"x": {0: batch}})
    assert torch.equal(program.module()(x), Network(backend)(x))


def test_a_program_of_every_batch_size_needs_no_backend_s_name() -> None:
    """Predicted costs are not compared with a batch that is not known: that would bound it."""
    network, batch = Network(None), torch.export.Dim("batch")
    program = torch.export.export(network, (torch.randn(4, 3, 6, 6),), dynamic_shapes={"x": {0: batch}}).module()
    for count in (1, 2, 9, 50):
        x = torch.randn(count, 3, 6, 6)
        torch.testing.assert_close(program(x), network(x))


@pytest.mark.usefixtures("fresh_compiler")
def test_a_dynamic_batch_size_is_compiled_once_without_a_backend_s_name(operator: str) -> None:
    operands = SMALL[operator].operands(torch.float32)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(small_call(operator, operands, None), fullgraph=True, dynamic=True, backend=counter)
    compiled(torch.randn(19, *operands.x.shape[1:]), operands.values, operands.bias)
    once = counter.frame_count
    compiled(torch.randn(1900, *operands.x.shape[1:]), operands.values, operands.bias)
    assert counter.frame_count == once


def test_exporting_leaves_patterns_that_eager_calls_can_use(backend: str) -> None:
    network = Network(backend)
    torch.export.export(network, (torch.randn(2, 3, 6, 6),))
    for pattern in (network.conv_pattern, network.head_pattern):
        expected = rk.SparsePattern.from_mask(pattern.mask())
        for got, wanted in zip(pattern.by_column(), expected.by_column(), strict=True):
            assert type(got) is Tensor and torch.equal(got, wanted)


def test_a_pattern_first_built_in_inference_mode_serves_training(operator: str, backend: str) -> None:
    operands = SMALL[operator].operands(torch.float32)
    with torch.inference_mode():
        patterns = tuple(rk.SparsePattern.from_mask(each.mask()) for each in operands.patterns)
        served = replace(operands, patterns=patterns)
        SMALL[operator].call(served, backend)
        patterns[0].by_column()
    for got, expected in zip(
        with_gradients(small_call(operator, served, backend), served, operands.dy),
        with_gradients(small_call(operator, operands, backend), operands, operands.dy),
        strict=True,
    ):
        assert torch.equal(got, expected)


def without_data(call: Callable[[], object]) -> None:
    """Run ``call`` as an exporter does, on a pattern that is real."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        call()


def transformed(call: Callable[[], object]) -> None:
    """Run ``call`` inside a function that torch.func differentiates."""

    def function(x: Tensor) -> Tensor:
        call()
        return x.sum()

    torch.func.grad(function)(torch.ones(1))


FOLLOWED = pytest.mark.parametrize("followed", [without_data, transformed])
DERIVED: dict[str, Callable[[rk.SparsePattern], Sequence[Tensor]]] = {
    "column order": lambda pattern: pattern.by_column(),
    "16-bit index": lambda pattern: cpu.index(pattern, with_columns=True, geometry=None),
    "mask words": lambda pattern: (pattern.words(),),
    "no words": cpu._no_words,
    "compact form": plans.compact,
    "group": lambda pattern: PatternGroup.of([pattern, pattern]).index(with_columns=True),
}


@FOLLOWED
@pytest.mark.parametrize("derived", DERIVED.values(), ids=DERIVED)
def test_what_is_derived_while_torch_follows_serves_no_later_call(
    derived: Callable[[rk.SparsePattern], Sequence[Tensor]], followed: Callable[[Callable[[], object]], None]
) -> None:
    pattern, fresh = (SMALL["linear"].operands(torch.float32).pattern for _ in range(2))
    followed(lambda: derived(pattern))
    for got, expected in zip(derived(pattern), derived(fresh), strict=True):
        assert type(got) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(got)
        assert torch.equal(got, expected)


def test_what_is_derived_while_a_cuda_graph_is_captured_serves_no_later_call(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operands = SMALL[operator].operands(torch.float32)
    for module in (dispatch, tracing):
        monkeypatch.setattr(module, "is_captured", lambda index: True)
    SMALL[operator].call(operands, "dense")
    assert not operands.pattern.remembers("by column") and not operands.pattern.groups
    assert not operands.pattern.derived("resolved", dict)


def test_what_serves_later_calls_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may read it on another stream of a GPU."""
    waited: list[Tensor] = []
    monkeypatch.setattr(csr, "settle", waited.append)
    pattern = SMALL["linear"].operands(torch.float32).pattern
    for _ in range(2):
        pattern.by_column(), PatternGroup.of([pattern, pattern])
    assert len(waited) == 3 and waited[0] is waited[1] is pattern.col


def test_numbers_derived_in_a_function_transform_are_not_remembered() -> None:
    """They do not show what they were read off."""
    pattern = SMALL["linear"].operands(torch.float32).pattern
    transformed(lambda: pattern.derived("numbers", lambda: (1, 2)))
    assert not pattern.remembers("numbers")
    assert pattern.derived("numbers", lambda: (3, 4)) == pattern.derived("numbers", lambda: (5, 6)) == (3, 4)
