"""Every Triton kernel compiles for the GPUs it is written for: nothing spills, and tensor cores multiply.

No GPU is needed. At the end stands what the kernels take: the largest figures of all the configurations compiled.
"""

import inspect
from collections.abc import Iterable, Iterator
from functools import cache, partial

import pytest
import torch
from torch import Tensor

import rsn2_kernels as rk
from rsn2_kernels import plan as plan_module
from rsn2_kernels import plans
from rsn2_kernels.backends import triton as backend
from rsn2_kernels.geometry import ConvGeometry
from rsn2_kernels.group import PatternGroup
from rsn2_kernels.plan import HEIGHTS, RUNS, Plan, Survey, survey_conv, survey_linear

from .cases import random_mask

if backend.interpreted:
    pytest.skip("Triton interprets its kernels in this process: it compiles none", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed here")

from triton.runtime import JITFunction

from rsn2_kernels.backends.triton import conv, expansion, gemm, layout, schedule, sddmm

from .compiling import SHARED_LIMIT, Compiled, compiled_for

CAPABILITIES = tuple(SHARED_LIMIT)
NAMES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}
SIZE = 256
"""Rows and columns of the linear weights; filters and channels of convolutions are half as many."""

LARGE, SMALL = 4096, 16
"""Batches of many blocks, and of less than one."""

ONE_BY_ONE = r"ld\.global[\w.:]*\.b16\b"
"""A load of one element of 16 bits."""

CONV = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1), 1)
REPORT: dict[tuple[str, int], list[Compiled]] = {}


@pytest.fixture(scope="module", autouse=True)
def printed_resources(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print the largest figures per kernel and capability when all tests of this file have run."""
    yield
    rows = [f"{'kernel':14} {'capability':>10} {'registers':>10} {'shared KiB':>10} {'spilled':>8} {'compiled':>8}"]
    for (name, capability), kernels in sorted(REPORT.items()):
        registers, shared, spilled = (
            max(getattr(kernel, figure) for kernel in kernels) for figure in ("registers", "shared", "spilled")
        )
        rows.append(
            f"{name:14} {capability / 10:10.1f} {registers:10} {shared / 1024:10.1f} {spilled:8} {len(set(kernels)):8}"
        )
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", *rows, sep="\n")


@pytest.fixture(params=CAPABILITIES, ids=lambda capability: f"sm{capability}")
def capability(request: pytest.FixtureRequest) -> int:
    """Compute capability times 10."""
    return int(request.param)


@pytest.fixture
def tf32() -> Iterator[None]:
    """Torch allows TF32 in its own products."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def assert_fits(kernels: Iterable[Compiled], capability: int) -> None:
    """Fail if one of the kernels keeps a register in memory, or takes more shared memory than a block may have."""
    for kernel in kernels:
        REPORT.setdefault((kernel.name, capability), []).append(kernel)
        assert kernel.spilled == 0, (
            f"{kernel.name}: {kernel.spilled} bytes in local memory, {kernel.registers} registers"
        )
        assert kernel.shared <= SHARED_LIMIT[capability], f"{kernel.name}: {kernel.shared} bytes of shared memory"


def assert_multiplies_with(kernel: Compiled, name: str, rows: int, capability: int) -> None:
    """Fail unless a kernel uses the widest instruction that tiles of so many rows and that type allow."""
    widest = {80: "mma", 90: "wgmma", 100: "tcgen05"}[capability] if rows >= 64 else "mma"
    assert kernel.matrix_instruction == ("none" if name == "fp32" else widest), kernel.name
    assert (kernel.count(r"mma[\w.:]*\.(kind::)?tf32") > 0) == (name == "tf32"), kernel.name


def assert_loads_are_wide(kernel: Compiled, elements: int, name: str, warps: int) -> None:
    """Fail unless every step of so many operand elements is loaded asynchronously, 16 bytes a thread at a time."""
    per_step = max(1, elements * NAMES[name].itemsize // (16 * 32 * warps))
    assert kernel.wide_loads >= 2 * per_step, f"{kernel.name}: {kernel.wide_loads} wide loads, {per_step} per step"
    assert kernel.count(ONE_BY_ONE) == 0, f"{kernel.name}: operand elements loaded one by one"


@cache
def linear_surveys() -> dict[str, Survey]:
    """Of a weight, of its transpose (whose values are reordered), and of the weights of two tasks."""
    pattern, group = linear_pattern(), linear_group()
    crow_t, row_t, perm = pattern.by_column()
    return {
        "forward": survey_linear(1, pattern.crow, pattern.col, SIZE),
        "transposed": survey_linear(1, crow_t, row_t, SIZE, perm),
        "grouped": survey_linear(2, group.crow, group.col, SIZE),
    }


@cache
def linear_pattern() -> rk.SparsePattern:
    return rk.SparsePattern.from_mask(random_mask(SIZE, SIZE, 0.1, 0))


@cache
def linear_group() -> PatternGroup:
    return PatternGroup.of([linear_pattern(), rk.SparsePattern.from_mask(random_mask(SIZE, SIZE, 0.2, 1))])


@cache
def linear_plan(kind: str, height: int) -> Plan:
    return Plan.build(linear_surveys()[kind], height)


@cache
def conv_pattern(channels: int) -> rk.SparsePattern:
    return rk.SparsePattern.from_mask(random_mask(channels, 9 * channels, 0.1, 0))


@cache
def conv_plan(channels: int, run: int, height: int, transposed: bool) -> Plan:
    pattern = conv_pattern(channels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "RUNS", (run,))
        survey = survey_conv(pattern.crow, pattern.col, 9 * channels, taps=9, groups=1, transposed=transposed)
    return Plan.build(survey, height)


def groups_of(batch: int) -> layout.Groups:
    """Where two tasks' rows stand, as the gradient of values asks: a compiler reads the shapes alone."""
    block = layout.ALIGNMENT
    blocks = batch // block + 2
    return layout.Groups(*(torch.zeros(length, dtype=torch.int32) for length in (blocks * block, blocks, 3)))


def images(channels: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(8, channels, 28, 28, dtype=dtype).to(memory_format=torch.channels_last)


def of_kernel(kernels: list[Compiled], name: str) -> list[Compiled]:
    return [kernel for kernel in kernels if kernel.name == name]


LINEAR = [*(("bf16", height) for height in HEIGHTS), ("fp16", 64), ("fp32", 16), ("fp32", 128)]
LINEAR_IDS = [f"{name}-H{height}" for name, height in LINEAR]


@pytest.mark.parametrize(("name", "height"), LINEAR, ids=LINEAR_IDS)
def test_products_of_windows(capability: int, name: str, height: int) -> None:
    """Large and small batches, with and without a bias, an activation and tasks; dX reads reordered values."""
    dtype = NAMES[name]
    weights = {kind: torch.empty(survey.nnz, dtype=dtype) for kind, survey in linear_surveys().items()}
    bias = torch.empty(2, SIZE, dtype=dtype)
    x = {batch: torch.empty(SIZE, batch, dtype=dtype) for batch in (LARGE, SMALL)}
    plan, transposed, grouped = (linear_plan(kind, height) for kind in ("forward", "transposed", "grouped"))
    with compiled_for(capability) as kernels:
        gemm.multiply(x[LARGE], weights["transposed"], None, transposed, SIZE, LARGE)
        gemm.multiply(x[SMALL], weights["forward"], None, plan, SIZE, SMALL)
        gemm.multiply(x[LARGE], weights["forward"], bias[0], plan, SIZE, LARGE, "gelu")
        if name != "fp32":
            gemm.multiply(x[LARGE], weights["forward"], bias[0], plan, SIZE, LARGE - 1, "relu")
        task_of_row = torch.empty(LARGE, dtype=torch.int64)
        backend._grouped(x[LARGE].t(), weights["grouped"], bias, [task_of_row], 2, grouped, SIZE, torch.nan)
    assert_fits(kernels, capability)
    products = of_kernel(kernels, "_multiply")
    assert len(products) == 5 - (name == "fp32")
    for kernel in products:
        assert_multiplies_with(kernel, name, height, capability)
    for kernel, batch in ((products[0], LARGE), (products[1], SMALL)):
        sizes = gemm.tiling(dtype, height, batch, plain=True)
        assert_loads_are_wide(kernel, sizes.depth * (height + sizes.block), name, sizes.num_warps)


@pytest.mark.parametrize(("name", "height"), LINEAR, ids=LINEAR_IDS)
def test_gradients_of_values(capability: int, name: str, height: int) -> None:
    """One part of the batch, several, and tasks, whose rows begin where only the device knows."""
    dtype = NAMES[name]
    plan, grouped = linear_plan("forward", height), linear_plan("grouped", height)
    groups = groups_of(LARGE)
    large, small, by_task = (torch.empty(SIZE, slots, dtype=dtype) for slots in (LARGE, SMALL, groups.slots))
    with compiled_for(capability) as kernels:
        sddmm.sample(large, large, linear_pattern().nnz, plan)
        sddmm.sample(small, small, linear_pattern().nnz, plan)
        sddmm.sample(by_task, by_task, linear_group().nnz, grouped, groups)
    parts_of = partial(schedule.parts_of, plan.chunks, programs=schedule.MULTIPROCESSORS)
    assert parts_of(LARGE) > 1 == parts_of(SMALL)
    assert_fits(kernels, capability)
    for kernel in kernels:
        depth, warps = (64, 8 if height >= 64 else 4) if dtype.itemsize == 2 else (16, 8 if height >= 64 else 4)
        assert_multiplies_with(kernel, name, height, capability)
        assert_loads_are_wide(kernel, depth * (height + plan.width), name, warps)


CONVOLUTIONS = [
    *(("bf16", height, run) for height in HEIGHTS for run in RUNS if run in (16, 64) and run != height),
    ("fp16", 64, 16),
    *(("fp32", height, RUNS[place % 3]) for place, height in enumerate(HEIGHTS)),
]
CONVOLUTION_IDS = [f"{name}-H{height}-run{run}" for name, height, run in CONVOLUTIONS]


@pytest.mark.parametrize(("name", "height", "run"), CONVOLUTIONS, ids=CONVOLUTION_IDS)
def test_convolutions(capability: int, name: str, height: int, run: int) -> None:
    """Pixels are the rows of the tiles, so that every height of window has the widest instruction."""
    dtype, channels = NAMES[name], SIZE // 2
    plan, transposed = (conv_plan(channels, run, height, way) for way in (False, True))
    x, values, bias = (
        images(channels, dtype),
        torch.empty(conv_pattern(channels).nnz, dtype=dtype),
        torch.empty(channels),
    )
    activation = ("none", "relu", "gelu")[RUNS.index(run)]
    with compiled_for(capability) as kernels:
        conv.convolve(x, values, bias.to(dtype), plan, channels, (28, 28), CONV, False, activation)
        if height in (run, 2 * run):
            conv.convolve(x, values, None, transposed, channels, (28, 28), CONV, True)
    assert_fits(kernels, capability)
    products = of_kernel(kernels, "_convolve")
    assert products
    sizes = conv._tiling(dtype, height)
    for kernel in products:
        assert_multiplies_with(kernel, name, sizes.block, capability)
        assert kernel.wide_loads >= 2 * run * sizes.block * dtype.itemsize // (16 * 32 * sizes.num_warps)


SAMPLED = [("bf16", 16, 64), ("bf16", 32, 16), ("bf16", 64, 32), ("bf16", 128, 64), ("fp16", 128, 16)] + [
    ("fp32", height, RUNS[place % 3]) for place, height in enumerate(HEIGHTS)
]


@pytest.mark.parametrize(("name", "height", "run"), SAMPLED, ids=[f"{n}-H{h}-run{r}" for n, h, r in SAMPLED])
def test_gradients_of_values_of_convolutions(capability: int, name: str, height: int, run: int) -> None:
    dtype, channels = NAMES[name], SIZE // 2
    x, plan = images(channels, dtype), conv_plan(channels, run, height, False)
    with compiled_for(capability) as kernels:
        conv.sample_conv(x, x, conv_pattern(channels).nnz, plan, CONV)
    assert_fits(kernels, capability)
    (kernel,) = kernels
    assert_multiplies_with(kernel, name, height, capability)
    assert kernel.count(ONE_BY_ONE) == 0, "operand elements loaded one by one"
    if capability >= 90 and dtype.itemsize == 2:
        # A chunk of 16 channels is too small for 16 bytes a thread.
        assert kernel.wide_loads + kernel.narrow_loads > 0


@pytest.mark.parametrize(
    ("name", "height"),
    [*(("bf16", height) for height in HEIGHTS), ("fp32", 64)],
    ids=[*(f"bf16-H{height}" for height in HEIGHTS), "fp32-H64"],
)
def test_convolutions_with_channels_that_are_no_whole_runs(capability: int, name: str, height: int) -> None:
    dtype, channels = NAMES[name], 40
    x, values = images(channels, dtype), torch.empty(conv_pattern(channels).nnz, dtype=dtype)
    run = RUNS[HEIGHTS.index(height) % 3]
    with compiled_for(capability) as kernels:
        conv.convolve(x, values, None, conv_plan(channels, run, height, False), channels, (28, 28), CONV, False)
        if run == height:
            conv.convolve(x, values, None, conv_plan(channels, run, height, True), channels, (28, 28), CONV, True)
            conv.sample_conv(x, x, conv_pattern(channels).nnz, conv_plan(channels, run, height, False), CONV)
    assert_fits(kernels, capability)
    for kernel in of_kernel(kernels, "_convolve"):
        assert_multiplies_with(kernel, name, conv._tiling(dtype, height).block, capability)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("height", [16, 128], ids=lambda height: f"H{height}")
def test_float32_multiplies_on_tensor_cores_where_torch_allows_tf32(capability: int, height: int) -> None:
    plan, nnz = linear_plan("forward", height), linear_pattern().nnz
    x = torch.empty(SIZE, LARGE)
    with compiled_for(capability) as kernels:
        gemm.multiply(x, torch.empty(nnz), None, plan, SIZE, LARGE)
        sddmm.sample(x, x, nnz, plan)
    assert_fits(kernels, capability)
    for kernel in kernels[1:]:
        assert_multiplies_with(kernel, "tf32", height, capability)


@pytest.mark.parametrize("allowed", [False, True], ids=["ieee", "tf32"])
@pytest.mark.parametrize("said", ["allow_tf32", "fp32_precision"])
def test_tf32_is_taken_only_where_torch_allows_it_by_either_of_its_settings(said: str, allowed: bool) -> None:
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    try:
        setattr(settings, said, allowed if said == "allow_tf32" else "tf32" if allowed else "ieee")
        assert gemm.precision(torch.float32) == ("tf32" if allowed else "ieee")
        assert gemm.precision(torch.bfloat16) == "ieee"
    finally:
        settings.fp32_precision = before


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_every_kernel_compiles_as_the_backend_calls_it(capability: int, name: str) -> None:
    dtype, pattern, group = NAMES[name], linear_pattern(), linear_group()
    filters = conv_pattern(SIZE // 2)
    values, of_group, of_filters = (torch.empty(each.nnz, dtype=dtype) for each in (pattern, group, filters))
    # Rows of different lengths; one task per row.
    x, images_ = torch.empty(200, SIZE, dtype=dtype), images(SIZE // 2, dtype)
    indices = [
        [*weight.index(True), *plans.plan_tensors(weight, geometry, True)]
        for weight, geometry in ((pattern, None), (group, None), (filters, CONV))
    ]
    by_row = [torch.zeros(200, dtype=torch.int64), *indices[1]]
    with compiled_for(capability) as kernels:
        backend.linear(x, values, None, indices[0], "gelu")
        backend.linear_dx(x, values, indices[0])
        backend.linear_dvalues(x, x, indices[0])
        backend.grouped_linear(x, of_group, torch.empty(2, SIZE, dtype=dtype), by_row, 2)
        backend.grouped_linear_dx(x, of_group, by_row, 2)
        backend.grouped_linear_dvalues(x, x, by_row, 2)
        backend.conv2d(images_, of_filters, None, indices[2], CONV, "relu")
        backend.conv2d_dx(images_, of_filters, indices[2], (28, 28), CONV)
        backend.conv2d_dvalues(images_, images_, indices[2], CONV)
        dense = backend.expand(values, pattern.crow, pattern.col, SIZE)
        backend.gather(dense, pattern.crow, pattern.col)
    assert_fits(kernels, capability)
    written = {
        kernel.__name__
        for module in (conv, expansion, gemm, layout, sddmm)
        for kernel in vars(module).values()
        if isinstance(kernel, JITFunction) and "tl.program_id" in inspect.getsource(kernel.fn)
    }
    assert {kernel.name for kernel in kernels} == written


def test_each_capability_has_a_kernel_of_its_own() -> None:
    """Triton remembers kernels per device: asked for one chip behind another, it must not hand out the first."""
    plan, nnz = linear_plan("forward", 64), linear_pattern().nnz
    x, found = torch.empty(SIZE, LARGE, dtype=torch.bfloat16), {}
    for capability in (*CAPABILITIES, CAPABILITIES[0]):
        with compiled_for(capability) as kernels:
            sddmm.sample(x, x, nnz, plan)
        assert f".target sm_{capability}" in kernels[0].ptx
        found[capability] = kernels[0].matrix_instruction
    assert found == {80: "mma", 90: "wgmma", 100: "tcgen05"}
