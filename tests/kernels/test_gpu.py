"""What only a GPU can show: bits that repeat, graphs, streams, no waiting for the device, and large sizes.

    pytest tests/kernels --device cuda

The contract's own tests run there too, on operands of that device.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

import rsn2_kernels as rk
from rsn2_kernels import dispatch, plans
from rsn2_kernels.geometry import ConvGeometry
from rsn2_kernels.group import PatternGroup
from rsn2_kernels.plan import Plan

from . import cases, oracle
from .cases import Case, ConvCase, GroupedCase, LinearCase, random_mask
from .precision import assert_within_roundoff
from .test_torch_integration import index_of, rest_of

pytestmark = pytest.mark.skipif(cases.device.type != "cuda", reason="needs a GPU and --device cuda")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MEDIUM: dict[str, Case] = {
    "linear": LinearCase(257, 300, (777,), 0.1),
    "conv2d": ConvCase(4, 64, 96, (14, 15), (3, 3), padding=(1, 1), density=0.1),
    "grouped_linear": GroupedCase(5, 130, 200, (700,), 0.1, absent=(3,)),
}
LARGE = (
    LinearCase(1000, 1000, (777,), 0.1),
    LinearCase(1000, 784, (512,), 0.1, holes=True),
    LinearCase(4096, 4096, (512,), 0.05),
    LinearCase(3000, 1025, (1,), 0.2),
)
SMALL_BATCHES = (
    *(LinearCase(1000, 2049, (batch,), density) for batch in (1, 2, 3, 8, 16, 17, 64, 128) for density in (0.05, 0.25)),
    LinearCase(8192, 28672, (1,), 0.05),
    LinearCase(20, 40000, (5,), 0.1),
)
LARGE_CONVOLUTIONS = (
    ConvCase(8, 64, 128, (28, 28), (3, 3), padding=(1, 1), density=0.1),
    ConvCase(2, 256, 256, (14, 14), (3, 3), padding=(1, 1), density=0.05),
    ConvCase(4, 128, 64, (15, 17), (3, 3), (2, 2), (1, 1), groups=2, density=0.1, x_layout="channels_last"),
    ConvCase(4, 96, 80, (16, 16), (1, 1), density=0.2),
)


@pytest.fixture(autouse=True)
def as_users_run_it() -> Iterator[None]:
    """Without the deterministic mode of the contract's tests, which adds work of its own between the kernels."""
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.fixture(params=["triton", "cuda"])
def ours(request: pytest.FixtureRequest) -> str:
    """A backend with kernels of our own; skips what it cannot run, but never for want of a build."""
    if (
        "operator" in request.fixturenames
        and request.getfixturevalue("operator") == "conv2d"
        and request.param == "cuda"
    ):
        pytest.skip("it has no conv2d")
    return str(request.param)


@dataclass
class Problem:
    """A call with its operands and gradient, all of which stay where they are in memory."""

    call: Callable[[], Tensor]
    inputs: dict[str, Tensor]
    dy: Tensor
    task_of_row: Tensor | None
    differentiated: bool = True

    @property
    def moving(self) -> list[Tensor]:
        """What a step reads, and may differ from call to call."""
        return [*self.inputs.values(), self.dy, *([] if self.task_of_row is None else [self.task_of_row])]

    def step(self) -> dict[str, Tensor]:
        """Forward and backward; or forward alone."""
        if not self.differentiated:
            with torch.no_grad():
                return {"y": self.call()}
        y = self.call()
        found = torch.autograd.grad(y, list(self.inputs.values()), self.dy)
        return {"y": y.detach(), **dict(zip(self.inputs, found, strict=True))}

    def load(self, seed: int) -> None:
        """New data in place, task ids too."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for each in self.moving:
                floating = each.is_floating_point()
                each.copy_(torch.randn_like(each) if floating else each[torch.randperm(len(each), device="cuda")])


def problem(operator: str, dtype: torch.dtype, backend: str | None = "triton") -> Problem:
    """The problem of MEDIUM."""
    case = MEDIUM[operator]
    operands = case.operands(dtype)
    if not isinstance(case, GroupedCase):
        return Problem(partial(case.call, operands, backend), operands.inputs, operands.dy, None)
    task_of_row = case.task_of_row(case.batch).to("cuda")
    sizes = [each.nnz for each in operands.patterns]

    def call() -> Tensor:
        vs = operands.values.split(sizes)
        return rk.grouped_linear(operands.x, vs, operands.patterns, task_of_row, operands.bias, backend=backend)

    # The gradients of the cuda backend's grouped product are those of dense, which wait for the device.
    return Problem(call, operands.inputs, operands.dy, task_of_row, differentiated=backend != "cuda")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Fail unless the products have the same bits. Torch's own sums, of the bias, may differ in the last ones."""
    for name, each in expected.items():
        if name == "dbias":
            torch.testing.assert_close(found[name], each)
        else:
            assert torch.equal(found[name], each), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_shapes(operator: str, dtype: torch.dtype, ours: str) -> None:
    """What compute-sanitizer watches: every kernel, once."""
    case = cases.SMALL[operator]
    operands = case.operands(dtype)
    exact = oracle.products(case.function(operands.mask), operands.x, operands.values, operands.bias, operands.dy)
    _assert_exact(case.call(operands, ours), operands, exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_run_gives_the_same_bits(operator: str, dtype: torch.dtype, ours: str) -> None:
    given = problem(operator, dtype, ours)
    first = given.step()
    for _ in range(10):
        assert_same(given.step(), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_graph_that_is_replayed_on_new_data_gives_the_eager_result(
    operator: str, dtype: torch.dtype, ours: str
) -> None:
    given = problem(operator, dtype, ours)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            given.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = given.step()
    for seed in (1, 2, 3):
        given.load(seed)
        graph.replay()
        replayed = {name: each.clone() for name, each in captured.items()}
        assert_same(replayed, given.step())


@pytest.mark.parametrize("asked", ["triton", "cuda", None], ids=str)
def test_nothing_waits_for_the_device_once_the_plan_is_there(operator: str, asked: str | None) -> None:
    if asked == "cuda" and operator == "conv2d":
        pytest.skip("it has no conv2d")
    given = problem(operator, torch.bfloat16, asked)
    if asked is None and operator == "grouped_linear":
        group = PatternGroup.of(MEDIUM[operator].operands(torch.bfloat16).patterns)
        if dispatch.choose(operator, group, 700, torch.bfloat16, None) != "triton":
            pytest.skip("the dense backend waits, and so do the gradients of the cuda backend, as grouped_linear says")
    given.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        given.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_work_runs_on_the_current_stream(operator: str, dtype: torch.dtype, ours: str) -> None:
    """The operands are written late on a stream of their own: a launch on any other stream would read the old ones."""
    given = problem(operator, dtype, ours)
    given.load(1)
    new = [each.detach().clone() for each in given.moving]
    expected = given.step()
    given.load(2)
    given.step()
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        with torch.no_grad():
            for each, value in zip(given.moving, new, strict=True):
                each.copy_(value)
        found = given.step()
    stream.synchronize()
    assert_same(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_work_runs_on_the_device_of_its_operands(ours: str) -> None:
    mask = random_mask(65, 70, 0.2, 0)
    x, results = torch.randn(33, 70), []
    for device in ("cuda:0", "cuda:1"):
        pattern = rk.SparsePattern.from_mask(mask.to(device))
        values = torch.arange(pattern.nnz, device=device) / 1000
        results.append(rk.linear(x.to(device), values, pattern, backend=ours).cpu())
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_linear_products_are_exact_up_to_roundoff(case: LinearCase, dtype: torch.dtype, ours: str) -> None:
    operands = case.operands(dtype)
    # The oracle computes where its mask is.
    function = case.function(operands.mask.to("cuda"))
    exact = oracle.products(function, operands.x, operands.values, operands.bias, operands.dy)
    _assert_exact(case.call(operands, ours), operands, exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SMALL_BATCHES, ids=str)
def test_small_batches_are_exact_up_to_roundoff(case: LinearCase, dtype: torch.dtype) -> None:
    operands = case.operands(dtype)
    function = case.function(operands.mask.to("cuda"))
    exact = oracle.products(function, operands.x, operands.values, operands.bias, operands.dy)
    with torch.no_grad():
        y = case.call(operands, "cuda")
    assert_within_roundoff("y", y.to(exact["y"].value.device), exact["y"], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LARGE_CONVOLUTIONS, ids=str)
def test_large_convolutions_are_exact_up_to_roundoff(case: ConvCase, dtype: torch.dtype) -> None:
    operands = case.operands(dtype)
    exact = oracle.products(case.function(operands.mask), operands.x, operands.values, operands.bias, operands.dy)
    _assert_exact(case.call(operands, "triton"), operands, exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_grouped_products_are_exact_up_to_roundoff(dtype: torch.dtype, ours: str) -> None:
    case = GroupedCase(5, 300, 257, (640,), 0.1, absent=(2,))
    operands = case.operands(dtype)
    function = case.function(operands.mask.to("cuda"))
    exact = oracle.products(function, operands.x, operands.values, operands.bias, operands.dy)
    _assert_exact(case.call(operands, ours), operands, exact, dtype)


def _assert_exact(y: Tensor, operands: cases.Operands, exact: dict[str, oracle.Exact], dtype: torch.dtype) -> None:
    assert_within_roundoff("y", y.to(exact["y"].value.device), exact["y"], dtype)
    gradients = torch.autograd.grad(y, list(operands.inputs.values()), operands.dy)
    for name, gradient in zip(operands.inputs, gradients, strict=True):
        assert_within_roundoff(name, gradient.to(exact[name].value.device), exact[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_fused_activation_is_the_activation_of_the_result(activation: str, dtype: torch.dtype) -> None:
    linear, conv = (MEDIUM[name].operands(dtype) for name in ("linear", "conv2d"))
    function = getattr(torch.nn.functional, activation)
    with torch.no_grad():
        for call in (
            partial(rk.linear, linear.x, linear.values, linear.pattern, linear.bias, backend="triton"),
            partial(
                rk.conv2d, conv.x, conv.values, conv.pattern, conv.bias, padding=1, kernel_size=3, backend="triton"
            ),
        ):
            # Twice the default tolerance of torch: unfused, the result is rounded before the activation.
            near = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 4e-3}[dtype]
            torch.testing.assert_close(call(activation=activation), function(call()), rtol=near, atol=near)


def test_an_index_made_on_one_stream_is_read_on_another() -> None:
    """The stream that makes it is kept busy: whoever did not wait would read what was in memory before."""
    for seed in range(5):
        mask = random_mask(2048, 2048, 0.1, seed)
        busy, on_gpu = torch.randn(4096, 4096, device="cuda"), mask.to("cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                busy = busy @ busy
            made = rk.SparsePattern.from_mask(on_gpu)
            for _ in range(20):
                busy = busy @ busy
            made.by_column()
        with torch.cuda.stream(torch.cuda.Stream()):
            parts = [each.clone() for each in (made.crow, made.col, *made.by_column())]
        torch.cuda.synchronize()
        expected = rk.SparsePattern.from_mask(mask)
        for got, wanted in zip(parts, (expected.crow, expected.col, *expected.by_column()), strict=True):
            assert torch.equal(got.cpu(), wanted)


def test_an_index_made_while_a_graph_is_captured_is_left_to_the_graph() -> None:
    mask = random_mask(300, 200, 0.2, 0)
    pattern = rk.SparsePattern.from_mask(mask.to("cuda"))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = pattern.by_column()
    expected = rk.SparsePattern.from_mask(mask).by_column()
    for _ in range(2):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(pattern.by_column(), expected, strict=True))
        graph.replay()
    assert all(torch.equal(a.cpu(), b) for a, b in zip(captured, expected, strict=True))


def staircase(rows: int, cols: int, density: float, seed: int) -> Tensor:
    """A mask like those of gradients, on the CPU: the largest of an outer product with noise."""
    generator = torch.Generator().manual_seed(seed)
    row, col = (torch.rand(size, generator=generator).pow(3) for size in (rows, cols))
    score = torch.outer(row, col) * torch.rand(rows, cols, generator=generator)
    return score >= score.flatten().kthvalue(int((1 - density) * score.numel())).values


GEOMETRY = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1), 2)


@pytest.mark.parametrize("transposed", [False, True], ids=["plan", "transposed"])
@pytest.mark.parametrize("what", ["linear", "conv2d", "grouped_linear"])
def test_a_plan_made_on_the_gpu_is_the_plan_made_on_the_cpu(what: str, transposed: bool) -> None:
    masks = [staircase(384, 432, 0.1, seed) for seed in range(3)]

    def made(device: str) -> Plan:
        patterns = [rk.SparsePattern.from_mask(mask.to(device)) for mask in masks]
        weight = PatternGroup.of(patterns) if what == "grouped_linear" else patterns[0]
        return plans.plan(weight, GEOMETRY if what == "conv2d" else None, transposed)

    for name, ours, expected in zip(Plan._fields, made("cuda"), made("cpu"), strict=True):
        assert ours.device.type == "cuda" and torch.equal(ours.cpu(), expected), name


def test_both_plans_of_a_large_mask_are_those_made_on_the_cpu() -> None:
    mask = staircase(4096, 4096, 0.1, 0)
    plans.plan(rk.SparsePattern.from_mask(mask[:128].to("cuda")))
    on_gpu = mask.to("cuda")
    pattern = rk.SparsePattern.from_mask(on_gpu)
    torch.cuda.synchronize()
    start = time.perf_counter()
    made = plans.plan(pattern), plans.plan(pattern, transposed=True)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    print(f"both plans of a 4096 x 4096 mask: {seconds:.3f} s, {sum(each.nbytes for each in made)} bytes")
    on_cpu = rk.SparsePattern.from_mask(mask)
    for ours, expected in zip(made, (plans.plan(on_cpu), plans.plan(on_cpu, transposed=True)), strict=True):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("asked", ["triton", None], ids=str)
def test_nothing_owned_or_nothing_given_is_no_error(asked: str | None) -> None:
    problems: tuple[Case, ...] = (
        LinearCase(70, 90, (33,), 0.0),
        LinearCase(70, 90, (0,), 0.1),
        ConvCase(2, 16, 16, (7, 7), (3, 3), density=0.0),
        ConvCase(0, 16, 16, (7, 7), (3, 3)),
        GroupedCase(3, 70, 90, (33,), 0.0),
        GroupedCase(3, 70, 90, (0,), 0.1),
    )
    for case in problems:
        operands = case.operands(torch.bfloat16)
        y = case.call(operands, asked)
        for each in torch.autograd.grad(y, list(operands.inputs.values()), operands.dy):
            assert each.isfinite().all()


def test_task_ids_out_of_range_give_nan_and_no_error() -> None:
    given = problem("grouped_linear", torch.bfloat16)
    assert given.task_of_row is not None
    given.task_of_row[3], given.task_of_row[5] = -1, 2**40
    found = given.step()
    assert found["y"][[3, 5]].isnan().all() and not found["dx"][[3, 5]].any()
    rest = [row for row in range(700) if row not in (3, 5)]
    assert found["y"][rest].isfinite().all()


def test_opcheck_passes(operator: str) -> None:
    case = MEDIUM[operator]
    operands = case.operands(torch.float32)
    index = index_of(case, operands, "triton", with_columns=True)
    activation = () if operator == "grouped_linear" else ("none",)
    arguments = (operands.x, operands.values, operands.bias, index, *activation, *rest_of(case), "triton")
    torch.library.opcheck(getattr(torch.ops.rsn2, operator).default, arguments)


def test_inductor_compiles_a_step(operator: str) -> None:
    case = MEDIUM[operator]
    operands = case.operands(torch.float32)
    pattern, patterns = operands.pattern, operands.patterns
    sizes = [each.nnz for each in patterns]
    task_of_row = case.task_of_row(case.batch).to("cuda") if isinstance(case, GroupedCase) else None

    def function(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        if operator == "linear":
            y = rk.linear(x * 2, values, pattern, bias, backend="triton")
        elif operator == "conv2d":
            y = rk.conv2d(x * 2, values, pattern, bias, padding=1, kernel_size=3, backend="triton")
        else:
            assert task_of_row is not None
            y = rk.grouped_linear(x * 2, values.split(sizes), patterns, task_of_row, bias, backend="triton")
        return y.relu()

    inputs = list(operands.inputs.values())
    expected = function(*inputs)
    expected_gradients = torch.autograd.grad(expected, inputs, operands.dy)
    torch.compiler.reset()
    y = torch.compile(function, fullgraph=True)(*inputs)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, operands.dy), expected_gradients)
