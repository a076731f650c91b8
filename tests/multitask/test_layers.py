"""Multitask layers compute what the dense layer with the task's weights computes, and say what is wrong."""

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import rsn2
from networks import LOSS, allocated, assert_same, network, plain_network, samples, snapshot
from rsn2.nn import MultitaskConv2d, MultitaskLinear, PerTask


def claim(layer: rsn2.nn.MultitaskLayer, task: str, density: float, seed: int = 0) -> None:
    mask = torch.rand(layer.owners.shape, generator=torch.Generator().manual_seed(seed)) < density
    layer.add_task(task, mask & layer.owners.free(), density)
    layer.active = task


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (7,), (2, 3)])
def test_linear_equals_dense_linear_on_the_tasks_weight(bias: bool, leading: tuple[int, ...]) -> None:
    layer = MultitaskLinear(65, 30, bias=bias, dtype=torch.float64)
    for number, task in enumerate(("a", "b")):
        claim(layer, task, 0.3, seed=number)
    x = torch.randn(*leading, 65, dtype=torch.float64)
    for task in ("a", "b"):
        layer.active = task
        own_bias = layer.biases[str(layer.slot(task))] if bias else None
        torch.testing.assert_close(layer(x), F.linear(x, layer.dense_weight(task), own_bias))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"padding": "valid", "bias": False},
        {"padding": 2, "padding_mode": "circular"},
        {"padding": (1, 2), "padding_mode": "reflect", "stride": (2, 1)},
        {"groups": 2, "padding": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel_size", [3, (2, 3), 1])
def test_conv2d_equals_torchs_with_every_option(options: dict[str, object], kernel_size: int | tuple[int, int]) -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(4, 6, kernel_size, dtype=torch.float64, **options)
    layer = MultitaskConv2d.from_dense(dense)
    claim(layer, "a", 0.4)
    with torch.no_grad():
        dense.weight.copy_(layer.dense_weight("a"))
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense(x))


def test_layers_start_as_torch_starts_them() -> None:
    torch.manual_seed(3)
    dense = nn.Linear(20, 10)
    torch.manual_seed(3)
    layer = MultitaskLinear(20, 10)
    assert torch.equal(layer.pool, dense.weight) and torch.equal(layer.initial_bias, dense.bias)


def test_a_deep_network_keeps_the_scale_of_its_dense_form() -> None:
    # Fan-in counted over all tasks instead of the layer's own columns once gave an output of 1.7e-14 here.
    torch.manual_seed(0)
    plain = nn.Sequential(*(part for _ in range(6) for part in (nn.Linear(200, 200), nn.ReLU())), nn.Linear(200, 10))
    x = torch.randn(64, 200)
    expected = plain(x).std().item()
    model = rsn2.convert(plain)
    rsn2.allocate(model, "a", 1.0, criterion="magnitude")
    with rsn2.use_task(model, "a"):
        assert model(x).std().item() == pytest.approx(expected, rel=1e-3)


def test_each_task_runs_its_own_norm_and_head() -> None:
    model = allocated("shapes", "sizes").train()
    norm = model[3]
    assert isinstance(norm, PerTask) and set(norm.tasks) == {"shapes", "sizes"}
    before = norm.of("sizes").running_mean.clone()
    with rsn2.use_task(model, "shapes"):
        assert model(samples("shapes")[0]).shape == (32, 3)
    assert torch.equal(norm.of("sizes").running_mean, before)
    assert not torch.equal(norm.of("shapes").running_mean, before)


def test_per_task_norms_equal_torchs() -> None:
    x = torch.randn(4, 6, 5, 5)
    for multitask, plain, given in (
        (rsn2.nn.MultitaskBatchNorm2d(6), nn.BatchNorm2d(6), x),
        (rsn2.nn.MultitaskBatchNorm1d(6), nn.BatchNorm1d(6), x[..., 0]),
        (rsn2.nn.MultitaskLayerNorm(5), nn.LayerNorm(5), x),
    ):
        multitask.add_task("a")
        multitask.active = "a"
        assert torch.equal(multitask(given), plain(given))
        assert all(parameter.requires_grad for parameter in multitask.of("a").parameters())


def test_use_task_restores_what_was_active_even_after_an_error() -> None:
    model = allocated("shapes", "sizes")
    with rsn2.use_task(model, "shapes"):
        with pytest.raises(RuntimeError, match="boom"), rsn2.use_task(model, "sizes"):
            raise RuntimeError("boom")
        assert model(samples("shapes")[0]).shape == (32, 3)
    with pytest.raises(rsn2.TaskError, match="no task is active"):
        model(samples("shapes")[0])


def test_unknown_and_unallocated_tasks_are_named() -> None:
    model = allocated("shapes")
    with pytest.raises(rsn2.TaskError, match=r"'nothing'.*nothing allocated.*shapes"), rsn2.use_task(model, "nothing"):
        pass
    with pytest.raises(rsn2.TaskError, match=r"'sizes' has nothing allocated in \['2', '5', '8', '3', '6'\]"):
        rsn2.parameters(model, "sizes")
    with pytest.raises(rsn2.TaskError, match="nothing allocated here"):
        model[2].slot("sizes")


@pytest.mark.parametrize("name", ["", "a.b", "a b", 3, None])
def test_task_names_that_cannot_be_parameter_names_are_refused(name: object) -> None:
    model = network()
    with pytest.raises(ValueError, match="task: expected a name"):
        rsn2.allocate(model, name, 0.1, criterion="random")
    assert rsn2.tasks(model) == []


def test_torch_compiles_a_layer_as_one_graph() -> None:
    torch.manual_seed(0)
    layer = MultitaskLinear(40, 24)
    claim(layer, "a", 0.3)
    conv = MultitaskConv2d(3, 4, 3, padding=1)
    claim(conv, "a", 0.3)
    for module, x in ((layer, torch.randn(6, 40)), (conv, torch.randn(2, 3, 8, 8))):
        x.requires_grad_()
        compiled = torch.compile(module, fullgraph=True)
        compiled(x).square().sum().backward()
        got = [x.grad, *(parameter.grad for parameter in module.parameters())]
        x.grad = None
        module.zero_grad()
        module(x).square().sum().backward()
        want = [x.grad, *(parameter.grad for parameter in module.parameters())]
        for value, expected in zip(got, want, strict=True):
            torch.testing.assert_close(value, expected)


def test_a_network_follows_to_and_deepcopy() -> None:
    model = allocated("shapes", "sizes")
    twin = copy.deepcopy(model)
    model.double()
    x = samples("shapes")[0]
    model.eval()
    twin.eval()
    with rsn2.use_task(model, "shapes"), rsn2.use_task(twin, "shapes"):
        torch.testing.assert_close(model(x.double()).float(), twin(x))
    twin.to("meta")
    assert twin[2].owners.device.type == "meta" and twin[2].owners.count(0) == model[2].owners.count(0)


def test_per_task_takes_modules_or_a_template_not_both() -> None:
    for arguments in ({}, {"modules": {"a": nn.Identity()}, "template": nn.Identity()}):
        with pytest.raises(ValueError, match="PerTask: expected either"):
            PerTask(**arguments)
    fixed = PerTask({"a": nn.Identity()})
    with pytest.raises(rsn2.TaskError, match="no template"):
        fixed.add_task("b")
    with pytest.raises(rsn2.TaskError, match="already"):
        fixed.add_task("a")


def test_a_task_that_was_not_known_brings_its_own_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    heads = PerTask({})
    model = rsn2.convert(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), heads)).eval()
    with pytest.raises(rsn2.TaskError, match=r"no module in '2', .* add_task\('shapes', module\)"):
        rsn2.allocate(model, "shapes", 0.3, criterion="random")
    for task, size in (("shapes", 3), ("others", 7)):
        heads.add_task(task, nn.Linear(16, size))
        assert not heads.of(task).training
        rsn2.allocate(model, task, 0.3, LOSS["shapes"], [samples("shapes")])
        rsn2.fit(model, task, samples("shapes"), loss=LOSS["shapes"], epochs=1)
        assert rsn2.predict(model, task, samples("shapes")[0]).shape[1] == size
    rsn2.save(model, tmp_path / "net.safetensors")
    known = PerTask({"shapes": nn.Linear(16, 3), "others": nn.Linear(16, 7)})
    again = rsn2.load(tmp_path / "net.safetensors", nn.Sequential(nn.Linear(8, 16), nn.ReLU(), known))
    x = samples("shapes")[0]
    for task in ("shapes", "others"):
        assert torch.equal(rsn2.predict(again, task, x), rsn2.predict(model, task, x))


def test_a_module_that_cannot_be_a_tasks_own_is_refused() -> None:
    head = nn.Linear(4, 2)
    part = PerTask({"a": head})
    for module, error, message in (
        (nn.Sequential(head), ValueError, "module: those of 'a' and 'b' share a tensor"),
        (rsn2.convert(nn.Linear(4, 2)), ValueError, "module: expected ordinary modules"),
        (3, TypeError, r"module: expected a module\. Got int"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            part.add_task("b", module)
    assert part.tasks == ("a",)
    with pytest.raises(TypeError, match=r"^modules: expected a module\. Got int"):
        PerTask({"a": 3})
    with pytest.raises(rsn2.TaskError, match="task 'b' has no module here"):
        part.remove_task("b")
    with_template = PerTask(template=nn.Linear(4, 2))
    with_template.add_task("a", head)
    with_template.add_task("b")
    assert with_template.of("a") is head and with_template.of("b") is not head


def test_what_one_task_keeps_for_itself_holds_no_layer_of_all_tasks() -> None:
    shared = rsn2.convert(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    for part in (shared, nn.Sequential(shared[0]), shared[1]):
        with pytest.raises(ValueError, match="modules: expected ordinary modules"):
            PerTask({"a": part})
        with pytest.raises(ValueError, match="template: expected ordinary modules"):
            PerTask(template=part)


def test_threads_that_run_different_tasks_of_one_network_do_not_mix() -> None:
    model = allocated("shapes", "sizes").eval()
    inputs = {task: samples(task)[0] for task in ("shapes", "sizes")}
    expected = {task: rsn2.predict(model, task, x) for task, x in inputs.items()}

    def run(task: str) -> bool:
        return all(torch.equal(rsn2.predict(model, task, inputs[task]), expected[task]) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, ["shapes", "sizes"] * 2))
    assert model[2].active is None and not model.training


def test_threads_wait_for_parts_of_a_network_and_not_for_copies() -> None:
    model = rsn2.convert(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))))
    for task in ("a", "b"):
        rsn2.allocate(model, task, 0.5, criterion="magnitude")
    twin = copy.deepcopy(model)

    def active(part: nn.Module) -> str:
        with rsn2.use_task(part, "b"):
            return next(layer.active for layer in part.modules() if isinstance(layer, MultitaskLinear))

    with ThreadPoolExecutor(2) as pool:
        for held, wanted in ((model, model[1]), (model[1], model)):
            with rsn2.use_task(held, "a"):
                waiting = pool.submit(active, wanted)
                assert pool.submit(active, twin).result(timeout=60) == "b"
                with pytest.raises(TimeoutError):
                    waiting.result(timeout=0.2)
                with rsn2.use_task(model, "a"):  # who waits holds nothing
                    assert model[0].active == model[1][0].active == "a"
            assert waiting.result(timeout=60) == "b"
    assert model[0].active is None and model[1][0].active is None


def test_a_loaded_network_compiles_as_one_graph(tmp_path: Path) -> None:
    model = allocated("shapes", "sizes").eval()
    rsn2.save(model, tmp_path / "net.safetensors")
    loaded = rsn2.load(tmp_path / "net.safetensors", plain_network()).eval()
    compiled = torch.compile(loaded, fullgraph=True, backend="aot_eager")
    for task in ("shapes", "sizes"):
        x = samples(task)[0]
        with rsn2.use_task(loaded, task):
            torch.testing.assert_close(compiled(x), rsn2.predict(model, task, x))


def test_tasks_cannot_be_given_the_same_module() -> None:
    head = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="'a' and 'b' share a tensor"):
        PerTask({"a": head, "b": head})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_fan_in_rescaling_keeps_the_dtype(dtype: torch.dtype) -> None:
    model = rsn2.convert(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype))
    rsn2.allocate(model, "a", 0.5, criterion="magnitude", rescale="fan_in")
    with rsn2.use_task(model, "a"):
        assert model(torch.randn(3, 16, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial": torch.ones(3, 4)}, r"initial: expected shape \(4, 3\)\. Got \(3, 4\)"),
        ({"bias": torch.ones(3)}, r"bias: expected shape \(4,\)\. Got \(3,\)"),
        ({"scale": torch.ones(5, dtype=torch.float64)}, r"scale: expected shape \(4,\)\. Got \(5,\)"),
        ({"mask": torch.ones(3, 4, dtype=torch.bool)}, r"mask: expected shape \(4, 3\)\. Got \(3, 4\)"),
        ({"mask": torch.ones(4, 3)}, "mask: expected a non-empty bool tensor"),
        ({"mask": torch.ones(4, 3, dtype=torch.bool)}, r"mask: position \(0, 0\) is owned by task 0"),
    ],
    ids=["initial", "bias", "scale", "mask shape", "mask dtype", "overlap"],
)
def test_a_task_that_cannot_be_added_changes_nothing(arguments: dict[str, torch.Tensor], message: str) -> None:
    layer = MultitaskLinear(3, 4)
    claim(layer, "a", 0.5)
    before = snapshot(layer)
    with pytest.raises(ValueError, match=message):
        layer.add_task("b", **{"mask": layer.owners.free(), "density": 0.5, **arguments})
    assert_same(before, snapshot(layer))
    assert layer.slots == {"a": 0} and layer.densities == {0: 0.5} and layer.owners.tasks == (0,)


def test_a_removed_task_leaves_the_layer_as_it_was() -> None:
    layer, expected = MultitaskLinear(30, 20), MultitaskLinear(30, 20)
    expected.load_state_dict(layer.state_dict())
    claim(layer, "a", 0.3)
    claim(expected, "a", 0.3)
    claim(layer, "b", 0.3, seed=1)
    layer.share_task("c", "b")
    layer.remove_task("b")
    assert layer.slots == {"a": 0, "c": 1} and layer.owners.count(1) == layer.values["1"].shape[0]
    layer.remove_task("c")
    assert_same(snapshot(expected), snapshot(layer))
    assert layer.slots == {"a": 0} and layer.densities == {0: 0.3} and layer.owners.tasks == (0,)
    claim(layer, "d", 0.4, seed=2)
    claim(expected, "d", 0.4, seed=2)
    assert torch.equal(layer.dense_weight("d"), expected.dense_weight("d"))
    with pytest.raises(rsn2.TaskError, match="nothing allocated here"):
        layer.remove_task("b")


def test_what_is_frozen_in_a_template_is_frozen_in_its_copies() -> None:
    template = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    template[0].requires_grad_(False)
    part = PerTask(template=template)
    part.add_task("a")
    assert [each.requires_grad for each in part.of("a").parameters()] == [False, False, True, True]
    assert not any(each.requires_grad for each in part.template.parameters())
    assert [each.requires_grad for each in template.parameters()] == [False, False, True, True]
    copy.deepcopy(part).add_task("b")


def test_loading_keeps_the_order_of_tasks_in_per_task_modules() -> None:
    names = [f"t{number * 7 % 10}" for number in range(10)]
    norm, fresh = rsn2.nn.MultitaskLayerNorm(4), rsn2.nn.MultitaskLayerNorm(4)
    for name in names:
        norm.add_task(name)
    for name in ("other", *sorted(names)[:5]):
        fresh.add_task(name)
    fresh.load_state_dict(norm.state_dict())
    assert list(fresh.tasks) == rsn2.tasks(fresh) == names
    assert list(fresh.state_dict()) == list(norm.state_dict())


def small(*tasks: str) -> nn.Module:
    """Two linear layers, allocated at random."""
    torch.manual_seed(0)
    model = rsn2.convert(nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5)))
    for task in tasks:
        rsn2.allocate(model, task, 0.3, criterion="random")
    return model


@pytest.mark.parametrize("tasks", [(), ("a", "b")], ids=["without tasks", "with tasks"])
def test_a_network_without_data_takes_over_what_is_assigned_to_it(tasks: tuple[str, ...]) -> None:
    source, x = small("a", "b"), torch.randn(4, 12)
    taken = small(*tasks).to("meta")
    taken.load_state_dict(source.state_dict(), assign=True)
    for task in ("a", "b"):
        with rsn2.use_task(source, task), rsn2.use_task(taken, task):
            assert torch.equal(taken(x), source(x))
    assert sum(rsn2.allocate(taken, "c", 0.1, criterion="random").values()) == round(0.1 * 108) + round(0.1 * 45)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:DeprecationWarning")
def test_torch_traces_a_network() -> None:
    model, x = small("a").eval(), torch.randn(30, 12)
    with rsn2.use_task(model, "a"), torch.no_grad():
        model(x[:2])
        traced = torch.jit.trace(model, x[:2])
        torch.testing.assert_close(traced(x), model(x))


def test_a_compiled_block_runs_again_in_its_backward_pass() -> None:
    model, x = small("a"), torch.randn(4, 12, requires_grad=True)
    torch.compiler.reset()
    block = torch.compile(model, backend="aot_eager", fullgraph=True)
    with rsn2.use_task(model, "a"):
        for _ in range(2):
            (found,) = torch.autograd.grad(checkpoint(block, x, use_reentrant=False).sum(), x)
            (expected,) = torch.autograd.grad(model(x).sum(), x)
            torch.testing.assert_close(found, expected)


def test_the_report_counts_while_others_use_the_network() -> None:
    model, stop = small("a", "b"), threading.Event()

    def serve() -> None:
        while not stop.is_set():
            for layer in model[::2]:
                layer._patterns.clear()
            rsn2.predict_together(model, {"a": torch.randn(2, 12), "b": torch.randn(1, 12)})

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for _ in range(300):
            assert rsn2.report(model).nbytes > 0
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("shape", [(12,), (2, 4, 8), (2, 3, 4, 8)])
def test_sequences_of_other_shapes_are_refused_in_their_own_words(shape: tuple[int, ...]) -> None:
    layer = rsn2.nn.MultitaskConv1d(3, 4, 3)
    rsn2.allocate(layer, "a", 0.5, criterion="random")
    with (
        rsn2.use_task(layer, "a"),
        pytest.raises(ValueError, match=r"^x: expected shape \[N, 3, L\] or \[3, L\]\. Got"),
    ):
        layer(torch.randn(shape))
