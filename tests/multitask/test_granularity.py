"""Whole blocks are claimed: the blocks that a slow reference chooses, as many as come nearest, to the last task."""

import json
import math
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rsn2
from networks import LOSS, allocated, assert_same, network, samples, snapshot
from rsn2.blocks import Grid
from rsn2.experiments import runner, tabular
from rsn2.experiments.config import ConfigError, read_config
from rsn2.nn import MultitaskConv2d, MultitaskLayer, MultitaskLinear

EMPTY = pytest.mark.filterwarnings("ignore:task .* owns no weight")
Blocks = dict[tuple[str, int, int, int, int], list[int]]


def blocks_of(name: str, layer: MultitaskLayer, granularity: tuple[int, int]) -> Blocks:
    """Positions of each block, by name of layer, group, block row, block column and tap."""
    groups = layer.groups if isinstance(layer, MultitaskConv2d) else 1
    taps = math.prod(layer.weight_shape[2:])
    rows, cols = layer.owners.shape
    blocks = defaultdict(list)
    for row in range(rows):
        for col in range(cols):
            group, filter_ = divmod(row, rows // groups)
            channel, tap = divmod(col, taps)
            blocks[name, group, filter_ // granularity[0], channel // granularity[1], tap].append(row * cols + col)
    return blocks


def expected_masks(
    layers: dict[str, MultitaskLayer],
    saliencies: dict[str, Tensor],
    density: float,
    granularity: tuple[int, int],
    scope: str,
) -> dict[str, Tensor]:
    """What `allocate` must claim, position by position."""
    masks = {name: torch.zeros(layer.owners.shape, dtype=torch.bool) for name, layer in layers.items()}
    for names in [list(layers)] if scope == "global" else [[name] for name in layers]:
        ranking = []
        for number, name in enumerate(names):
            free, saliency = layers[name].owners.free().flatten().tolist(), saliencies[name].flatten().tolist()
            for positions in blocks_of(name, layers[name], granularity).values():
                left = [position for position in positions if free[position]]
                if left:
                    total = math.fsum(saliency[position] for position in left)
                    ranking.append((-total, number, positions[0], name, left))
        wanted = round(density * sum(layers[name].owners.numel for name in names))
        wanted = min(wanted, sum(len(left) for *_, left in ranking))
        count = 0
        for *_, name, left in sorted(ranking):
            if abs(count + len(left) - wanted) > abs(count - wanted):
                break
            count += len(left)
            masks[name].view(-1)[left] = True
    return masks


def conv(groups: int, channels: int, filters: int, kernel: tuple[int, int]) -> nn.Module:
    return MultitaskConv2d(groups * channels, groups * filters, kernel, groups=groups)


LINEAR = st.builds(MultitaskLinear, st.integers(1, 23), st.integers(1, 17))
CONV = st.builds(
    conv, st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.tuples(st.integers(1, 3), st.integers(1, 3))
)
GRANULARITY = st.tuples(st.integers(1, 6), st.integers(1, 6))


@EMPTY
@settings(max_examples=100)
@given(
    layers=st.lists(LINEAR | CONV, min_size=1, max_size=3),
    granularity=GRANULARITY,
    scope=st.sampled_from(["layer", "global"]),
    before=st.sampled_from([0.0, 0.1, 0.4]),
    densities=st.lists(st.floats(0.05, 0.3), min_size=1, max_size=2),
    levels=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 1000),
)
def test_the_blocks_of_a_slow_reference_are_claimed(
    layers: list[nn.Module],
    granularity: tuple[int, int],
    scope: str,
    before: float,
    densities: list[float],
    levels: int | None,
    seed: int,
) -> None:
    model = nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        if levels is None:
            layer.pool.normal_(generator=generator)
        else:  # whole numbers, so that sums tie
            layer.pool.copy_(torch.randint(levels, layer.pool.shape, generator=generator))
    if before:  # a task of single weights, which leaves blocks partly owned
        rsn2.allocate(model, "single", before, criterion="random", scope=scope, seed=seed)
    named = {str(number): layer for number, layer in enumerate(layers)}
    saliencies = {name: layer.pool.abs() for name, layer in named.items()}
    for number, density in enumerate(densities):
        expected = expected_masks(named, saliencies, density, granularity, scope)
        counts = rsn2.allocate(
            model, f"t{number}", density, criterion="magnitude", scope=scope, granularity=granularity
        )
        for name, layer in named.items():
            assert torch.equal(layer.owners.mask(layer.slot(f"t{number}")), expected[name]), (name, layer, number)
            assert counts[name] == int(expected[name].sum())


def test_a_block_of_a_convolution_is_filters_by_channels_of_one_tap() -> None:
    model = nn.Sequential(MultitaskConv2d(4, 4, 3, groups=2, bias=False))
    weight = model[0].pool.fill_(1e-3)
    weight[0, 1, 1, 2] = 5  # filter 0, which is in the first group's only row of blocks; channels 0 and 1 of the group
    assert rsn2.allocate(model, "a", 4 / 72, criterion="magnitude", granularity=(16, 2)) == {"0": 4}
    claimed = model[0].owners.mask(0).view(4, 2, 3, 3)
    assert claimed.nonzero().tolist() == [[0, 0, 1, 2], [0, 1, 1, 2], [1, 0, 1, 2], [1, 1, 1, 2]]


def test_a_block_larger_than_the_layer_is_the_layer() -> None:
    grid = Grid.of(MultitaskLinear(7, 5), (10**12, 10**12))
    assert (grid.shape, grid.largest) == ((1, 1, 1, 1), 35)
    model = nn.Sequential(MultitaskLinear(7, 5))
    with pytest.warns(UserWarning, match=r"owns no weight in \['0'\].* Blocks smaller than \(64, 64\) may fit"):
        rsn2.allocate(model, "a", 0.4, criterion="magnitude", granularity=(64, 64))
    assert rsn2.allocate(model, "b", 0.6, criterion="magnitude", granularity=(64, 64)) == {"0": 35}


@EMPTY
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_one_by_one_is_the_same_as_none(scope: str) -> None:
    masks = []
    for granularity in (None, (1, 1), [1, 1]):
        model = network().double()
        # Global scope compares single weights in float32, in which all of these are 1.
        model[5].pool.copy_(1 + 1e-12 * torch.arange(1280, dtype=torch.float64).view(32, 40))
        for task in ("shapes", "sizes"):
            rsn2.allocate(model, task, 0.3, criterion="magnitude", scope=scope, granularity=granularity)
        masks.append(snapshot(model))
    assert_same(masks[0], masks[1])
    assert_same(masks[0], masks[2])


@pytest.mark.parametrize("criterion", ["gradient", "gradient_x_weight", "magnitude", "random"])
@pytest.mark.parametrize("rescale", [None, "fan_in"])
def test_every_criterion_sums_over_blocks(criterion: str, rescale: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Tensor] = {}
    compute = rsn2.allocate.__globals__["saliencies"]

    def watched(*args: object, **options: object) -> dict[str, Tensor]:
        seen.update(compute(*args, **options))
        return seen

    monkeypatch.setitem(rsn2.allocate.__globals__, "saliencies", watched)
    model, single = network(), network()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MultitaskLayer)}
    options = {"criterion": criterion, "rescale": rescale, "seed": 3}
    batches = [samples("shapes")]
    rsn2.allocate(single, "shapes", 0.3, LOSS["shapes"], batches, **options)
    rsn2.allocate(model, "shapes", 0.3, LOSS["shapes"], batches, granularity=(4, 3), **options)
    fresh = {name: module for name, module in network().named_modules() if isinstance(module, MultitaskLayer)}
    expected = expected_masks(fresh, seen, 0.3, (4, 3), "layer")
    for name, layer in layers.items():
        mask = layer.owners.mask(0)
        assert torch.equal(mask, expected[name])
        assert not torch.equal(mask, single.get_submodule(name).owners.mask(0)), "blocks choose otherwise"
        scale = (mask.shape[1] / mask.sum(1).clamp(min=1)).sqrt() if rescale else torch.ones(len(mask))
        values = fresh[name].pool.flatten(1) * mask * scale.unsqueeze(1)
        torch.testing.assert_close(layer.dense_weight("shapes").flatten(1), values)


FIFTHS = {
    "1000x1000": lambda: [MultitaskLinear(1000, 1000)],
    "784x1000x10": lambda: [MultitaskLinear(784, 1000), MultitaskLinear(1000, 333)],
    "conv": lambda: [MultitaskConv2d(6, 40, 3), MultitaskConv2d(40, 50, (3, 2), groups=2), MultitaskLinear(200, 130)],
    "100x100": lambda: [MultitaskLinear(100, 100), MultitaskLinear(37, 91)],
}


@EMPTY
@pytest.mark.parametrize("build", FIFTHS.values(), ids=FIFTHS)
@pytest.mark.parametrize("granularity", [(16, 16), (64, 64), (3, 50)])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_five_tasks_of_a_fifth_fit_and_stay_within_half_a_block(
    build: type, granularity: tuple[int, int], scope: str
) -> None:
    model = nn.Sequential(*build())
    names = [str(number) for number in range(len(model))]
    blocks = [Grid.of(layer, granularity).largest for layer in model]
    sizes = [layer.owners.numel for layer in model]
    owned = []
    for number in range(5):
        free = [int(layer.owners.free().sum()) for layer in model]
        counts = rsn2.allocate(
            model, f"t{number}", 0.2, criterion="random", scope=scope, seed=number, granularity=granularity
        )
        owned.append([counts[name] for name in names])
        if scope == "global":
            assert abs(sum(counts.values()) - min(round(0.2 * sum(sizes)), sum(free))) <= max(blocks) / 2
        else:
            for name, size, left, block in zip(names, sizes, free, blocks, strict=True):
                assert abs(counts[name] - min(round(0.2 * size), left)) <= block / 2
    left = [int(layer.owners.free().sum()) for layer in model]
    assert [sum(each) for each in zip(*owned, left, strict=True)] == sizes
    for layer in model:  # with one granularity a block has one owner
        grid = Grid.of(layer, granularity)
        for slot in range(5):
            mask = layer.owners.mask(slot)
            touched = grid.spread(grid.sums(mask.long()) > 0)
            assert torch.equal(touched, mask)


@EMPTY
@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    granularity=GRANULARITY,
    densities=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8).map(lambda ds: [d / sum(ds) for d in ds]),
    scope=st.sampled_from(["layer", "global"]),
)
def test_densities_that_add_to_one_always_fit(
    rows: int, cols: int, granularity: tuple[int, int], densities: list[float], scope: str
) -> None:
    model = nn.Sequential(MultitaskLinear(cols, rows), MultitaskLinear(rows, cols))
    for number, density in enumerate(densities):
        rsn2.allocate(
            model, f"t{number}", density, criterion="random", scope=scope, seed=number, granularity=granularity
        )


def test_single_weights_after_blocks_are_told_what_is_left() -> None:
    model = nn.Sequential(MultitaskLinear(100, 100))
    for number in range(4):
        counts = rsn2.allocate(model, f"t{number}", 0.2, criterion="random", seed=number, granularity=(16, 16))
        assert counts == {"0": 2048}, "8 blocks come nearer to 2000 than 7"
    left = 10000 - 4 * 2048
    before = snapshot(model)
    with pytest.raises(rsn2.AllocationError, match=rf"0.2 of layer '0' is 2000 positions, and {left} of 10000 are"):
        rsn2.allocate(model, "last", 0.2, criterion="random")
    assert_same(before, snapshot(model))
    assert rsn2.allocate(model, "last", 0.2, criterion="random", granularity=(16, 16)) == {"0": left}


@EMPTY
def test_too_few_free_positions_for_blocks_are_named() -> None:
    model = nn.Sequential(MultitaskLinear(40, 40), MultitaskLinear(40, 40))
    model[0].pool.fill_(1)
    model[1].pool.fill_(-2)
    rsn2.allocate(model, "a", 0.4, criterion="magnitude", scope="global", granularity=(4, 4))
    before = snapshot(model)
    with pytest.raises(rsn2.AllocationError, match=r"0.22 of layer '1' is 352 positions, and 320 of 1600 are free"):
        rsn2.allocate(model, "b", 0.22, criterion="magnitude", granularity=(4, 4))
    assert_same(before, snapshot(model))


@EMPTY
def test_global_scope_ranks_the_blocks_of_all_layers_together() -> None:
    model = nn.Sequential(MultitaskLinear(12, 8), MultitaskLinear(12, 8))
    model[0].pool.fill_(1)
    model[1].pool.fill_(-2)
    options = {"criterion": "magnitude", "scope": "global", "granularity": (4, 6)}
    assert rsn2.allocate(model, "a", 0.5, **options) == {"0": 0, "1": 96}
    assert rsn2.allocate(model, "b", 0.25, **options) == {"0": 48, "1": 0}
    assert model[0].owners.mask(1)[:4].all(), "ties go to the lower block"


def many_magnitudes(rows: int, cols: int) -> Tensor:
    """Values whose float64 sums depend on the order of the additions."""
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)).double().mul_(8).exp_()


def sum_by_halves(values: list[float]) -> float:
    while len(values) > 1:
        rest = len(values) // 2
        first, last = values[: len(values) - rest], values[len(values) - rest :]
        values = [a + b for a, b in zip(first, last, strict=False)] + first[rest:]
    return values[0]


@pytest.mark.parametrize("granularity", [(16, 16), (7, 11), (1, 30), (33, 1)])
def test_the_sum_of_a_block_is_the_same_additions_everywhere(granularity: tuple[int, int]) -> None:
    height, width = granularity
    values = many_magnitudes(4 * height, 3 * width)
    expected = [
        sum_by_halves([sum_by_halves(row) for row in block.tolist()])
        for rows in values.split(height)
        for block in rows.split(width, dim=1)
    ]
    assert Grid.of(MultitaskLinear(3 * width, 4 * height), granularity).sums(values).tolist() == expected


def test_the_choice_of_blocks_does_not_depend_on_thread_count() -> None:
    threads = torch.get_num_threads()
    values = many_magnitudes(600, 700)
    grid = Grid.of(MultitaskLinear(700, 600), (64, 48))
    try:
        sums = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            sums.append(grid.sums(values))
        assert all(torch.equal(sums[0], each) for each in sums)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_choice_of_blocks_is_the_same_on_a_gpu() -> None:
    model = nn.Sequential(MultitaskConv2d(20, 50, 3), MultitaskLinear(300, 130))
    other = nn.Sequential(MultitaskConv2d(20, 50, 3), MultitaskLinear(300, 130))
    other.load_state_dict(model.state_dict())
    other.cuda()
    for task in "ab":
        for each in (model, other):
            rsn2.allocate(each, task, 0.3, criterion="magnitude", scope="global", granularity=(16, 16))
        for here, there in zip(model, other, strict=True):
            assert torch.equal(here.owners.mask(here.slot(task)), there.owners.mask(there.slot(task)).cpu())


@pytest.mark.parametrize(
    "granularity", [16, (16,), (16, 16, 16), (0, 16), (16, -1), (16.0, 16), (True, 16), "16", {16, 8}, (None, 1), []]
)
def test_a_bad_granularity_is_named_and_changes_nothing(granularity: object) -> None:
    model = allocated("shapes", density=0.3)
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"granularity: expected None or \(rows, columns\), two ints of at least 1\. Got"
    ):
        rsn2.allocate(model, "sizes", 0.1, LOSS["sizes"], [samples("sizes")], granularity=granularity)
    assert_same(before, snapshot(model))
    assert rsn2.tasks(model) == ["shapes"]


def test_a_network_of_blocks_is_saved_loaded_and_reported(tmp_path: Path) -> None:
    model = network()
    for task in ("shapes", "sizes"):
        rsn2.allocate(model, task, 0.4, LOSS[task], [samples(task)], granularity=(8, 4))
    rsn2.save(model, tmp_path / "net.safetensors")
    loaded = rsn2.load(tmp_path / "net.safetensors", network(seed=1))
    assert_same(snapshot(model), snapshot(loaded))
    shares = [[layer.owned for layer in rsn2.report(each).layers] for each in (model, loaded)]
    assert shares[0] == shares[1]


def test_a_configuration_may_name_a_granularity(config: Path) -> None:
    assert read_config(config).allocation.granularity is None
    config.write_text(config.read_text().replace("[[tasks]]", "[allocation]\ngranularity = [8, 4]\n[[tasks]]", 1))
    experiment = tabular.experiment(read_config(config))
    assert experiment.allocation.granularity == (8, 4)
    runner.run(experiment, config.parent / "run", controls=False)
    report = json.loads((config.parent / "run" / "report.json").read_text())
    assert report["allocation"]["granularity"] == [8, 4]
    state = json.loads((config.parent / "run" / "run.json").read_text())
    assert state["settings"]["allocation"]["granularity"] == [8, 4]
    model = rsn2.load(config.parent / "run" / "net.safetensors", experiment.build())
    for layer in model.modules():
        if isinstance(layer, MultitaskLayer):
            grid, mask = Grid.of(layer, (8, 4)), layer.owners.mask(layer.slot("shapes"))
            assert torch.equal(grid.spread(grid.sums(mask.long()) > 0), mask)


@pytest.mark.parametrize("text", ["8", "[8]", "[8, 4, 2]", "[8, 0]", "[8, 4.0]", "[8, true]", '"8x4"'])
def test_a_bad_granularity_in_a_configuration_is_named(config: Path, text: str) -> None:
    config.write_text(config.read_text().replace("[[tasks]]", f"[allocation]\ngranularity = {text}\n[[tasks]]", 1))
    with pytest.raises(ConfigError, match=r"\[allocation\] granularity: expected \[rows, columns\], two ints of at"):
        read_config(config)
