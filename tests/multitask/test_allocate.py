"""Algorithm 1, exact: the right number of the right weights, and no change at all after an error."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rsn2
from networks import LOSS, allocated, assert_same, network, samples, snapshot
from rsn2.nn import MultitaskConv2d, MultitaskLayerNorm, MultitaskLinear
from rsn2.selection import largest
from rsn2.tasks import multitask_layers


@pytest.mark.parametrize(
    "layer",
    [
        lambda: MultitaskLinear(784, 256),
        lambda: MultitaskLinear(256, 256),
        lambda: MultitaskLinear(1000, 1000),
        lambda: MultitaskConv2d(64, 64, 3),
    ],
    ids=["784x256", "256x256", "1000x1000", "conv-64x64x3x3"],
)
def test_five_tasks_of_a_fifth_each_own_exactly_a_fifth(layer: type) -> None:
    model = nn.Sequential(layer())
    positions = model[0].owners.numel
    for number in range(5):
        rsn2.allocate(model, f"t{number}", 0.2, criterion="random", seed=number)
    counts = [model[0].owners.count(slot) for slot in range(5)]
    wanted = round(0.2 * positions)
    assert counts == [*[wanted] * 4, min(wanted, positions - 4 * wanted)]
    assert sum(counts) + int(model[0].owners.free().sum()) == positions


@given(
    rows=st.integers(1, 20),
    cols=st.integers(1, 70),
    densities=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8).map(lambda ds: [d / sum(ds) for d in ds]),
    scope=st.sampled_from(["layer", "global"]),
)
def test_densities_that_add_to_one_always_fit(rows: int, cols: int, densities: list[float], scope: str) -> None:
    model = nn.Sequential(MultitaskLinear(cols, rows), MultitaskLinear(rows, cols))
    free = 2 * rows * cols
    for number, density in enumerate(densities):
        counts = rsn2.allocate(model, f"t{number}", density, criterion="random", scope=scope, seed=number)
        if scope == "global":
            wanted = round(density * 2 * rows * cols)
            assert sum(counts.values()) == min(wanted, free)
        else:
            assert all(count <= round(density * rows * cols) for count in counts.values())
        free -= sum(counts.values())
    assert free == sum(int(layer.owners.free().sum()) for layer in model)


def reference_gradient(model: nn.Module, task: str, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Gradient for the weight of layer 2 when nothing is owned: that of the dense network."""
    layer = model[2]
    weight = layer.pool.clone().requires_grad_()
    total = torch.zeros_like(weight)
    for x, target in batches:
        hidden = torch.relu(nn.functional.linear(torch.relu(model[0].of(task)(x)), weight, layer.initial_bias))
        total += torch.autograd.grad(LOSS[task](model[5].of(task)(hidden), target), weight)[0]
    return total


def shallow(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    first = rsn2.nn.PerTask({"shapes": nn.Linear(8, 32), "sizes": nn.Linear(5, 32)})
    last = rsn2.nn.PerTask({"shapes": nn.Linear(24, 3), "sizes": nn.Linear(24, 1)})
    return rsn2.convert(nn.Sequential(first, nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Identity(), last))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("criterion", ["gradient", "gradient_x_weight", "magnitude"])
def test_the_weights_of_largest_saliency_are_chosen(criterion: str, count: int) -> None:
    model = shallow()
    batches = [samples("shapes", seed=number) for number in range(count)]
    gradient = reference_gradient(model, "shapes", batches)
    pool = model[2].pool
    saliency = {"gradient": gradient, "gradient_x_weight": gradient * pool, "magnitude": pool}[criterion].abs()
    rsn2.allocate(model, "shapes", 0.25, LOSS["shapes"], batches, criterion=criterion)
    chosen = model[2].owners.mask(0)
    assert int(chosen.sum()) == round(0.25 * pool.numel())
    assert saliency[chosen].min() >= saliency[~chosen].max()


def test_a_later_task_chooses_among_free_weights_with_the_owned_ones_at_zero() -> None:
    model = shallow()
    rsn2.allocate(model, "shapes", 0.5, LOSS["shapes"], [samples("shapes")])
    taken = model[2].owners.mask(0)
    model[2].pool.masked_fill_(taken, float("nan"))  # an owned weight that were read would poison the gradient
    model[2].pool.copy_(torch.where(taken, torch.tensor(1e6), model[2].pool))
    rsn2.allocate(model, "sizes", 0.3, LOSS["sizes"], [samples("sizes")])
    assert not bool((model[2].owners.mask(0) & model[2].owners.mask(1)).any())
    assert model[2].values["1"].abs().max() < 1, "values come from the free part of the pool"


def test_global_scope_ranks_all_layers_together() -> None:
    model = nn.Sequential(MultitaskLinear(10, 10), MultitaskLinear(10, 10))
    model[0].pool.fill_(1)
    model[1].pool.fill_(-2)
    assert rsn2.allocate(model, "a", 0.5, criterion="magnitude", scope="global") == {"0": 0, "1": 100}
    assert rsn2.allocate(model, "b", 0.3, criterion="magnitude", scope="global") == {"0": 60, "1": 0}


@given(st.integers(1, 300), st.data())
def test_ties_go_to_the_lower_position(size: int, data: st.DataObject) -> None:
    levels = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    free = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    count = data.draw(st.integers(0, sum(free)))
    ranked = sorted((position for position in range(size) if free[position]), key=lambda p: (-levels[p], p))
    expected = torch.zeros(size, dtype=torch.bool)
    expected[ranked[:count]] = True
    assert torch.equal(largest(torch.tensor(levels, dtype=torch.float32), torch.tensor(free), count), expected)


def test_the_choice_does_not_depend_on_thread_count() -> None:
    threads = torch.get_num_threads()
    try:
        masks = []
        for number in (1, 2):
            torch.set_num_threads(number)
            model = nn.Sequential(MultitaskLinear(300, 200))
            model[0].pool.copy_(torch.arange(60000).remainder(7).view(200, 300))
            rsn2.allocate(model, "a", 0.37, criterion="magnitude")
            masks.append(model[0].owners.mask(0))
        assert torch.equal(*masks)
    finally:
        torch.set_num_threads(threads)


def test_fan_in_rescaling_multiplies_each_row_once() -> None:
    plain, scaled = shallow(), shallow()
    rsn2.allocate(plain, "shapes", 0.2, LOSS["shapes"], [samples("shapes")])
    rsn2.allocate(scaled, "shapes", 0.2, LOSS["shapes"], [samples("shapes")], rescale="fan_in")
    mask = plain[2].owners.mask(0)
    assert torch.equal(mask, scaled[2].owners.mask(0))
    factor = torch.tensor([math.sqrt(32 / max(int(row.sum()), 1)) for row in mask])
    torch.testing.assert_close(scaled[2].dense_weight("shapes"), plain[2].dense_weight("shapes") * factor.unsqueeze(1))


def test_allocation_leaves_mode_gradients_and_statistics_alone() -> None:
    model = network().eval()
    rsn2.allocate(model, "shapes", 0.3, LOSS["shapes"], [samples("shapes")])
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
    model = network().train()
    rsn2.allocate(model, "shapes", 0.3, LOSS["shapes"], [samples("shapes")])
    assert int(model[3].of("shapes").num_batches_tracked) == 0


def test_a_layer_in_which_a_task_owns_nothing_is_named() -> None:
    model = nn.Sequential(MultitaskLinear(8, 8), MultitaskLinear(8, 1))
    with pytest.warns(UserWarning, match=r"task 'a' owns no weight in \['1'\]"):
        rsn2.allocate(model, "a", 0.05, criterion="random")


def test_allocation_leaves_statistics_of_given_modules_and_random_state_alone() -> None:
    own = rsn2.nn.PerTask({"a": nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5))})
    model = nn.Sequential(own, MultitaskLinear(8, 1)).train()
    state = torch.get_rng_state()
    rsn2.allocate(model, "a", 0.5, nn.functional.mse_loss, [(torch.ones(4, 8), torch.zeros(4, 1))])
    assert int(own.of("a")[0].num_batches_tracked) == 0
    assert torch.equal(torch.get_rng_state(), state)


def nan_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return output.sum() * float("nan")


def infinite_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return output.sum() * float("inf")


def detached_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), requires_grad=True)


SIZES = {"loss": LOSS["sizes"], "batches": [samples("sizes")]}


@pytest.mark.parametrize(
    ("task", "density", "arguments", "error", "message"),
    [
        ("sizes", 0, SIZES, ValueError, "density: expected a number in"),
        ("sizes", -0.1, SIZES, ValueError, "density: expected a number in"),
        ("sizes", 1.01, SIZES, ValueError, "density: expected a number in"),
        ("sizes", float("nan"), SIZES, ValueError, "density: expected a number in"),
        ("sizes", "0.1", SIZES, ValueError, "density: expected a number in"),
        ("sizes", 0.71, SIZES, rsn2.AllocationError, r"0.71 is more than the 0.7 that \['shapes'\] leave"),
        ("shapes", 0.1, SIZES, rsn2.TaskError, "'shapes' is allocated already"),
        ("unknown", 0.1, SIZES, rsn2.TaskError, "'unknown' has no module in '0'"),
        ("sizes", 0.1, SIZES | {"batches": []}, rsn2.AllocationError, "batches: expected at least one"),
        ("sizes", 0.1, SIZES | {"batches": None}, ValueError, "loss, batches: the 'gradient' criterion needs both"),
        ("sizes", 0.1, SIZES | {"loss": nan_loss}, rsn2.AllocationError, "'2': the gradient of batch 0 has NaN"),
        ("sizes", 0.1, SIZES | {"loss": infinite_loss}, rsn2.AllocationError, "the gradient of batch 0 has NaN"),
        ("sizes", 0.1, SIZES | {"loss": detached_loss}, rsn2.AllocationError, "'2' takes no part in the loss"),
        ("sizes", 0.1, SIZES | {"criterion": "best"}, ValueError, "criterion: expected one of"),
        ("sizes", 0.1, SIZES | {"scope": "row"}, ValueError, "scope: expected one of"),
        ("sizes", 0.1, SIZES | {"rescale": "yes"}, ValueError, "rescale: expected one of"),
        ("sizes", 0.1, SIZES | {"batches": [(torch.randn(3, 9), torch.randn(3, 1))]}, RuntimeError, "shapes"),
    ],
)
def test_errors_are_named_and_change_nothing(
    task: str, density: float, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    model = allocated("shapes", density=0.3)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        rsn2.allocate(model, task, density, **arguments)
    assert_same(before, snapshot(model))
    assert rsn2.tasks(model) == ["shapes"]


def test_too_few_free_positions_in_one_layer_are_named() -> None:
    model = nn.Sequential(MultitaskLinear(10, 10), MultitaskLinear(10, 10))
    model[0].pool.fill_(1)
    model[1].pool.fill_(-2)
    rsn2.allocate(model, "a", 0.4, criterion="magnitude", scope="global")
    before = snapshot(model)
    with pytest.raises(rsn2.AllocationError, match=r"0.5 of layer '1' is 50 positions, and 20 of 100 are free"):
        rsn2.allocate(model, "b", 0.5, criterion="magnitude")
    assert_same(before, snapshot(model))


def test_a_plain_network_is_told_to_convert() -> None:
    with pytest.raises(rsn2.TaskError, match=r"rsn2.convert\(model\)"):
        rsn2.allocate(nn.Linear(2, 2), "a", 0.1, criterion="random")


def test_a_task_that_no_signal_reaches_is_named_in_a_warning() -> None:
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.constant_(plain[0].bias, -100.0)
    model = rsn2.convert(plain)
    batch = [(torch.rand(16, 4), torch.randint(2, (16,)))]
    with pytest.warns(UserWarning, match=r"'dead' owns almost only weights of saliency 0 in \['0', '2'\]"):
        rsn2.allocate(model, "dead", 0.5, nn.functional.cross_entropy, batch)


@pytest.mark.parametrize(
    "arguments",
    [{"criterion": "random"}, {"criterion": "magnitude", "scope": "column"}, SIZES | {"flip": True}],
    ids=["random", "column", "flip"],
)
def test_the_default_device_makes_no_difference(arguments: dict[str, object]) -> None:
    expected, model = network(), network()
    rsn2.allocate(expected, "sizes", 0.3, **arguments)
    with torch.device("meta"):
        rsn2.allocate(model, "sizes", 0.3, **arguments)
    assert_same(snapshot(expected), snapshot(model))


def assert_nothing_of(task: str, model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    assert_same(before, snapshot(model))
    assert task not in rsn2.tasks(model)
    for layer in multitask_layers(model).values():
        assert set(layer.densities) == set(layer.owners.tasks) == set(layer.slots.values())


def test_a_warning_that_is_an_error_changes_nothing() -> None:
    model = nn.Sequential(MultitaskLinear(8, 8), MultitaskLayerNorm(8), MultitaskLinear(8, 1))
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"owns no weight in \['2'\]"):
            rsn2.allocate(model, "a", 0.05, criterion="random")
    assert_nothing_of("a", model, before)


def test_an_error_in_the_last_layer_changes_nothing_in_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = allocated("shapes")
    before = snapshot(model)

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(model[8].owners, "claim", no_memory)
    with pytest.raises(MemoryError):
        rsn2.allocate(model, "sizes", 0.3, **SIZES, share={"shapes": ["2"]})
    assert_nothing_of("sizes", model, before)
    monkeypatch.undo()
    rsn2.allocate(model, "sizes", 0.3, **SIZES)
    twin = allocated("shapes")
    rsn2.allocate(twin, "sizes", 0.3, **SIZES)
    assert_same(snapshot(twin), snapshot(model))


def test_a_compiled_network_is_the_network_it_compiles() -> None:
    """Its layers and parameters have the names that they have without, which decide what is drawn, too."""
    model = network()
    compiled = torch.compile(network())
    for each in (model, compiled):
        rsn2.allocate(each, "shapes", 0.3, criterion="random", flip=True)
    assert rsn2.named_parameters(compiled, "shapes").keys() == rsn2.named_parameters(model, "shapes").keys()
    for name, values in rsn2.named_parameters(model, "shapes").items():
        assert torch.equal(rsn2.named_parameters(compiled, "shapes")[name], values)
    assert [*multitask_layers(compiled)] == [*multitask_layers(model)]


def test_saliency_is_that_of_the_network_that_was_differentiated() -> None:
    """With rescale, rows with little left free run on larger weights, which count as they are."""
    torch.manual_seed(0)
    layer = MultitaskLinear(8, 6)
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[:3, :7] = True
    layer.add_task("first", mask, 21 / 48)
    x, target = torch.randn(16, 8), torch.randn(16, 6)
    free = ~mask
    scale = (8 / free.sum(1, keepdim=True)).sqrt()
    weight = (layer.pool.detach() * free * scale).requires_grad_()
    loss = nn.functional.mse_loss(x @ weight.t() + layer.initial_bias, target)
    (gradient,) = torch.autograd.grad(loss, weight)
    saliency = (gradient * weight).abs().detach()
    rsn2.allocate(
        layer, "second", 10 / 48, nn.functional.mse_loss, [(x, target)], criterion="gradient_x_weight", rescale="fan_in"
    )
    assert torch.equal(
        layer.owners.mask(1).flatten().nonzero()[:, 0], saliency.flatten().topk(10).indices.sort().values
    )
