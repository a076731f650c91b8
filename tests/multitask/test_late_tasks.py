"""What helps the last tasks of a full network: signs of their own, a signal of full size, a share of every input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import rsn2
from networks import assert_same, snapshot
from rsn2.nn import MultitaskConv2d, MultitaskLinear
from rsn2.selection import largest_by_column

LOSS = nn.functional.cross_entropy


def digits(count: int = 256) -> tuple[Tensor, Tensor]:
    """Non-negative inputs, a quarter of them always 0, as pixels are; the largest of the first four is the class."""
    x = torch.rand(count, 32, generator=torch.Generator().manual_seed(0))
    x[:, 24:] = 0
    return x, x[:, :4].argmax(1)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(32, 64), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    return rsn2.convert(nn.Sequential(*layers, nn.Linear(64, 4)), per_task=["10"]).eval()


def silent_share(model: nn.Module, task: str) -> float:
    """Share of a task's weights, of all layers, that get no gradient from any of its data when its training begins."""
    x, target = digits()
    with rsn2.use_task(model, task):
        LOSS(model(x), target).backward()
    layers = [layer for layer in model.modules() if isinstance(layer, rsn2.nn.MultitaskLayer)]
    gradients = torch.cat([layer.values[str(layer.slots[task])].grad for layer in layers])
    model.zero_grad()
    return float((gradients == 0).float().mean())


@pytest.mark.filterwarnings("ignore:task")
def test_the_last_of_five_tasks_has_gradients_with_flip_and_columns_and_none_in_the_paper_s_form() -> None:
    shares = []
    for options in ({}, {"flip": True, "scope": "column", "rescale": "fan_in"}):
        model = network()
        for task in range(5):
            rsn2.allocate(model, f"t{task}", 0.2, LOSS, [digits()], **options)
        shares.append(silent_share(model, "t4"))
    assert shares[0] > 0.95
    assert shares[1] < 0.85
    assert all(bool(p.grad is None) for p in model.parameters())


def test_flip_multiplies_rows_and_biases_by_signs_of_the_task_s_own() -> None:
    drawn = []
    for task in ("a", "b"):
        model = nn.Sequential(MultitaskLinear(7, 64), MultitaskConv2d(2, 64, 3))
        rsn2.allocate(model, task, 1.0, criterion="magnitude", flip=True)
        for layer in model:
            weight = layer.dense_weight(task)
            signs = (weight / layer.pool).flatten(1)
            assert torch.equal(signs.abs(), torch.ones_like(signs))
            assert torch.equal(signs, signs[:, :1].expand_as(signs)), "one sign for a row"
            assert torch.equal(layer.biases["0"], layer.initial_bias * signs[:, 0])
            drawn.append(signs[:, 0])
    assert all(16 < int((signs > 0).sum()) < 48 for signs in drawn)
    assert len({tuple(signs.tolist()) for signs in drawn}) == 4, "another draw for each task and layer"


def test_flip_depends_on_seed_task_and_layer_and_leaves_the_pool() -> None:
    models = [rsn2.convert(nn.Sequential(nn.Linear(7, 64))) for _ in range(3)]
    for model in models:
        model.load_state_dict(models[0].state_dict())
    pool = models[0][0].pool.clone()
    for model, seed in zip(models, (0, 0, 1), strict=True):
        generator = torch.get_rng_state()
        rsn2.allocate(model, "a", 0.5, criterion="magnitude", flip=True, seed=seed)
        assert torch.equal(torch.get_rng_state(), generator)
        assert torch.equal(model[0].pool, pool)
    assert_same(snapshot(models[0]), snapshot(models[1]))
    assert not torch.equal(models[0][0].dense_weight("a"), models[2][0].dense_weight("a"))


def test_with_fan_in_the_candidates_carry_a_signal_of_full_size() -> None:
    """The gradient is that of the dense network with each row's free weights times sqrt(columns / free)."""
    x, target = digits()
    torch.manual_seed(0)
    model = rsn2.convert(nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 4)), per_task=["2"])
    layer = model[0]
    taken = torch.rand(48, 32) < 0.5
    taken[5] = True
    layer.add_task("old", taken, 0.5)
    model[2].add_task("old")
    scale = torch.tensor([math.sqrt(32 / max(int(row.sum()), 1)) for row in ~taken])
    weight = (layer.pool * ~taken * scale.unsqueeze(1)).requires_grad_()
    hidden = torch.relu(nn.functional.linear(x, weight, layer.initial_bias))
    gradient = torch.autograd.grad(LOSS(model[2].template(hidden), target), weight)[0].abs()
    rsn2.allocate(model, "new", 0.2, LOSS, [(x, target)], rescale="fan_in")
    mask = layer.owners.mask(1)
    assert gradient[mask].min() >= gradient[~mask & ~taken].max() * (1 - 1e-5)
    owned = torch.tensor([math.sqrt(32 / max(int(row.sum()), 1)) for row in mask])
    torch.testing.assert_close(layer.dense_weight("new"), layer.pool * mask * owned.unsqueeze(1))


@pytest.mark.parametrize("shape", [(1000, 784), (10, 37), (7, 5), (3, 100), (256, 256)], ids=str)
@pytest.mark.parametrize("densities", [[0.2] * 5, [0.1, 0.25, 0.65], [1 / 3] * 3], ids=str)
def test_by_column_every_input_gives_every_task_its_share(shape: tuple[int, int], densities: list[float]) -> None:
    rows, cols = shape
    model = nn.Sequential(MultitaskLinear(cols, rows))
    for number, density in enumerate(densities):
        count = rsn2.allocate(model, f"t{number}", density, criterion="magnitude", scope="column")["0"]
        assert abs(count - density * rows * cols) <= 1.5
        by_column = model[0].owners.mask(number).sum(0)
        assert bool(((by_column - density * rows).abs() < 1 + 1e-6).all())
    assert not bool(model[0].owners.free().any()), "densities that add to 1 fill every column"


def test_by_column_takes_what_full_columns_cannot_give_from_the_others() -> None:
    model = nn.Sequential(MultitaskLinear(10, 20))
    first = torch.zeros(20, 10, dtype=torch.bool)
    first[:, :5] = True
    model[0].add_task("old", first, 0.5)
    assert rsn2.allocate(model, "new", 0.5, criterion="magnitude", scope="column") == {"0": 100}


def test_by_column_works_in_a_convolution() -> None:
    model = nn.Sequential(MultitaskConv2d(4, 20, 3, groups=2))
    rsn2.allocate(model, "a", 0.25, criterion="magnitude", scope="column")
    assert model[0].owners.mask(0).sum(0).tolist() == [5] * 18


@given(st.integers(1, 30), st.integers(1, 9), st.data())
def test_the_largest_of_each_column_ties_to_the_lower_row(rows: int, cols: int, data: st.DataObject) -> None:
    def draw(low: int, high: int) -> Tensor:
        size = rows * cols
        return torch.tensor(data.draw(st.lists(st.integers(low, high), min_size=size, max_size=size))).view(rows, cols)

    levels, free = draw(0, 3), draw(0, 1).bool()
    counts = data.draw(st.lists(st.integers(0, rows + 2), min_size=cols, max_size=cols))
    chosen = largest_by_column(levels.float(), free, torch.tensor(counts))
    for column, count in enumerate(counts):
        ranked = sorted(free[:, column].nonzero().flatten().tolist(), key=lambda row: (-int(levels[row, column]), row))
        assert chosen[:, column].nonzero().flatten().tolist() == sorted(ranked[:count])


def test_columns_and_blocks_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="granularity: the scope 'column' claims single weights"):
        rsn2.allocate(network(), "a", 0.2, criterion="magnitude", scope="column", granularity=(4, 4))
    with pytest.raises(ValueError, match="flip: expected one of"):
        rsn2.allocate(network(), "a", 0.2, criterion="magnitude", flip="yes")  # type: ignore[arg-type]
