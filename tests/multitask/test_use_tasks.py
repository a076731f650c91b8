"""A batch of many tasks: every sample is answered as its own task's network would, and gradients stay with its task."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rsn2
from networks import LOSS, allocated, assert_same, samples, snapshot
from rsn2.nn import MultitaskLinear, PerTask

TASKS = ("a", "b", "c")
BATCH = ["b", "a", "b", "c", "a", "b", "c"]


def linears() -> nn.Module:
    """Linear layers with a norm of each task's own; one layer has no bias."""
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.LayerNorm(24), nn.Linear(24, 10, bias=False))


def convolutions() -> nn.Module:
    """Convolutions of one and two dimensions between linear layers."""
    return nn.Sequential(
        nn.Linear(12, 32),
        nn.BatchNorm1d(32),
        nn.Unflatten(1, (2, 4, 4)),
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Conv1d(4, 3, 3),
        nn.Flatten(),
        nn.Linear(42, 10),
    )


def encoder() -> nn.Module:
    """A transformer encoder over sequences."""
    layer = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (linears, (12,)),
    "linear over sequences": (linears, (2, 3, 12)),
    "convolutions": (convolutions, (12,)),
    "encoder": (encoder, (5, 12)),
}


def network(plain: Callable[[], nn.Module], tasks: tuple[str, ...] = TASKS) -> nn.Module:
    """The network in float64 with these tasks, each with another seed."""
    torch.manual_seed(0)
    model = rsn2.convert(plain().double())
    for number, task in enumerate(tasks):
        rsn2.allocate(model, task, 0.25, criterion="random", seed=number)
    return model.eval()


def batch(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """A sample for each of BATCH."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(BATCH), *shape, generator=generator, dtype=torch.float64)


def task_by_task(model: nn.Module, x: Tensor, tasks: list[str]) -> Tensor:
    """The same outputs from a forward pass per sample."""
    outputs = []
    for sample, task in zip(x.split(1), tasks, strict=True):
        with rsn2.use_task(model, task):
            outputs.append(model(sample))
    return torch.cat(outputs)


@pytest.mark.parametrize("finalized", [False, True])
@pytest.mark.parametrize(("plain", "shape"), NETWORKS.values(), ids=NETWORKS)
def test_every_sample_is_answered_as_its_task(
    plain: Callable[[], nn.Module], shape: tuple[int, ...], finalized: bool
) -> None:
    model = network(plain)
    if finalized:
        rsn2.finalize(model)
    x = batch(shape)
    expected = task_by_task(model, x, BATCH).detach()
    for tasks, order in ((BATCH, list(range(7))), (sorted(BATCH), [1, 4, 0, 2, 5, 3, 6])):
        with rsn2.use_tasks(model, tasks):
            torch.testing.assert_close(model(x[order]).detach(), expected[order])
            with torch.no_grad():
                torch.testing.assert_close(model(x[order]), expected[order])


@pytest.mark.parametrize(("plain", "shape"), NETWORKS.values(), ids=NETWORKS)
def test_gradients_are_those_of_each_task_alone(plain: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = network(plain, (*TASKS, "absent"))
    x = batch(shape)
    inputs = [x.requires_grad_(), *rsn2.parameters(model, TASKS)]
    outputs = task_by_task(model, x, BATCH)
    dy = torch.randn_like(outputs)
    expected = torch.autograd.grad(outputs, inputs, dy)
    with rsn2.use_tasks(model, BATCH):
        found = torch.autograd.grad(model(x), inputs, dy, retain_graph=True)
        model(x).backward(dy)
    torch.testing.assert_close(found, expected)
    assert all(parameter.grad is None for parameter in rsn2.parameters(model, "absent")), "no zeros for an optimizer"


def test_batch_norm_takes_statistics_of_each_tasks_samples() -> None:
    model = network(convolutions).train()
    twin = copy.deepcopy(model)
    x = batch((12,))
    with rsn2.use_tasks(model, BATCH):
        found = model(x)
    for task in TASKS:
        mine = [number for number, each in enumerate(BATCH) if each == task]
        with rsn2.use_task(twin, task):
            torch.testing.assert_close(found[mine], twin(x[mine]))
    for name, after in snapshot(twin).items():
        torch.testing.assert_close(snapshot(model)[name], after, msg=name)


def test_tasks_may_share_a_slot() -> None:
    model = rsn2.convert(linears().double())
    rsn2.allocate(model, "a", 0.25, criterion="random", seed=0)
    rsn2.allocate(model, "b", 0.25, criterion="random", seed=1, share={"a": ["0"]})
    rsn2.allocate(model, "c", 0.25, criterion="random", seed=2)
    x = batch((12,))
    expected = task_by_task(model, x, BATCH)
    for _ in ("as it is", "finalized"):
        with rsn2.use_tasks(model, BATCH), torch.no_grad():
            torch.testing.assert_close(model(x), expected)
        rsn2.finalize(model)


class TestInputsOfEachTasksOwn:
    """Networks whose tasks have input layers and heads of other sizes."""

    ORDER = ("sizes", "shapes", "sizes")

    def test_inputs_and_outputs_by_task(self) -> None:
        model = allocated("shapes", "sizes").eval()
        x = {"shapes": samples("shapes", 1)[0], "sizes": samples("sizes", 2)[0]}
        with rsn2.use_tasks(model, self.ORDER):
            found = model(x)
        assert list(found) == ["sizes", "shapes"]
        for task, output in found.items():
            with rsn2.use_task(model, task):
                torch.testing.assert_close(output, model(x[task]))

    def test_a_dict_that_does_not_hold_the_samples_is_refused(self) -> None:
        model = allocated("shapes", "sizes").eval()
        with rsn2.use_tasks(model, self.ORDER):
            for x in ({"sizes": samples("sizes", 2)[0]}, {"sizes": samples("sizes", 2)[0], "shapes": torch.ones(2, 8)}):
                with pytest.raises(
                    ValueError, match=r"^x: expected samples of \{'sizes': 2, 'shapes': 1\}.*Got \{'siz"
                ):
                    model(x)

    def test_predict_together_gives_what_predict_does(self) -> None:
        model = allocated("shapes", "sizes").train()
        before = snapshot(model)
        x = {"shapes": samples("shapes", 11)[0], "sizes": samples("sizes", 4)[0]}
        for batch_size in (3, 512):
            found = rsn2.predict_together(model, x, batch_size)
            assert list(found) == ["shapes", "sizes"]
            for task, output in found.items():
                assert not output.requires_grad
                torch.testing.assert_close(output, rsn2.predict(model, task, x[task]))
        assert model.training
        assert_same(before, snapshot(model))


def test_predict_together_joins_what_is_of_one_shape() -> None:
    model = network(linears)
    x = {task: batch((12,), seed) for seed, task in enumerate(TASKS)}
    found = rsn2.predict_together(model, x, batch_size=4)
    for task in TASKS:
        torch.testing.assert_close(found[task], rsn2.predict(model, task, x[task]))


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        (torch.ones(2, 12), TypeError, "inputs: expected a dict"),
        ({"a": [1.0]}, TypeError, "inputs: expected a dict"),
        ({}, ValueError, "inputs: expected samples of at least one task. Got none"),
        ({"a": torch.ones(1, 12), "b": torch.ones(0, 12)}, ValueError, r"inputs: .*Got none of \['b'\]"),
        ({"x": torch.ones(1, 12)}, rsn2.TaskError, "task 'x' has nothing allocated"),
    ],
)
def test_predict_together_names_what_is_wrong(inputs: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{text}"):
        rsn2.predict_together(network(linears), inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("finalized", [False, True])
def test_a_pass_changes_nothing_and_shares_no_memory(finalized: bool, tmp_path: Path) -> None:
    model = network(linears)
    if finalized:
        rsn2.finalize(model)
    tensors = {name: (tensor, tensor.data_ptr()) for name, tensor in model.named_parameters()}
    before = snapshot(model)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode(), rsn2.use_tasks(model, BATCH):
            model(batch((12,)))
    assert_same(before, snapshot(model))
    after = {name: (tensor, tensor.data_ptr()) for name, tensor in model.named_parameters()}
    assert all(after[name][0] is tensor and after[name][1] == place for name, (tensor, place) in tensors.items())
    rsn2.save(model, tmp_path / "net.safetensors")
    again = rsn2.load(tmp_path / "net.safetensors", linears().double())
    with torch.no_grad():
        for other in (again, copy.deepcopy(model)):
            with rsn2.use_tasks(model, BATCH), rsn2.use_tasks(other, BATCH):
                assert torch.equal(other(batch((12,))), model(batch((12,))))


def test_a_mixture_first_used_in_inference_mode_serves_training() -> None:
    model = network(linears)
    with rsn2.use_tasks(model, BATCH):
        with torch.inference_mode():
            expected = model(batch((12,))).clone()
        found = model(batch((12,)))
        found.sum().backward()
    assert torch.equal(found, expected)
    with torch.inference_mode(), rsn2.use_tasks(model, BATCH), torch.inference_mode(mode=False):
        model(batch((12,))).sum().backward()


@pytest.mark.parametrize("grad", [False, True])
def test_one_index_serves_every_mixture_and_is_counted(grad: bool) -> None:
    model = network(linears, ("a", "b", "c", "absent"))
    x = batch((12,))
    with torch.set_grad_enabled(grad):
        sizes = []
        for tasks in (BATCH, BATCH[::-1], ["b"] * 7, sorted(BATCH)):
            with rsn2.use_tasks(model, tasks):
                model(x)
            sizes.append(rsn2.report(model).index_bytes)
    first, *rest = (len(pattern.groups) for pattern in model[0]._patterns.values())  # type: ignore[index,union-attr]
    assert first == 1 and not any(rest)
    patterns = sum(pattern.nbytes for layer in (model[0], model[3]) for pattern in layer._patterns.values())  # type: ignore[index,union-attr]
    assert sizes == sizes[:1] * 4 and sizes[0] > patterns


def test_a_task_that_joins_or_leaves_is_answered_as_itself() -> None:
    model = network(linears)
    x = batch((12,))
    with torch.no_grad():
        for change in (lambda: rsn2.allocate(model, "d", 0.2, criterion="random"), lambda: model[0].remove_task("a")):  # type: ignore[index,union-attr]
            with rsn2.use_tasks(model, ["b", "c"]):
                model(x[:2])
            change()
            with rsn2.use_tasks(model, ["d", "b", "c"]):
                torch.testing.assert_close(model(x[:3]), task_by_task(model, x[:3], ["d", "b", "c"]))


def test_tasks_that_own_nothing_in_a_layer_give_its_bias() -> None:
    layer = MultitaskLinear(6, 4, dtype=torch.float64)
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[1, :2] = True
    for task, mask in zip(TASKS, masks, strict=True):
        layer.add_task(task, mask, 0.0)
    x = torch.randn(7, 6, dtype=torch.float64)
    with rsn2.use_tasks(layer, BATCH), torch.no_grad():
        found = layer(x)
        torch.testing.assert_close(found, task_by_task(layer, x, BATCH))
    assert torch.equal(found[1], layer.biases["0"])


def test_samples_may_be_single_numbers() -> None:
    embeddings = PerTask(template=nn.Embedding(10, 3))
    for task in TASKS:
        embeddings.add_task(task)
    ids = torch.tensor([3, 1, 4, 1, 5, 9, 2])
    with rsn2.use_tasks(embeddings, BATCH):
        found = embeddings(ids)
    assert torch.equal(found, task_by_task(embeddings, ids, BATCH))


def test_what_was_active_is_active_again() -> None:
    model = network(linears)
    x = batch((12,))
    with rsn2.use_task(model, "c"):
        expected = model(x)
        with pytest.raises(ValueError, match=r"^x: expected 7"), rsn2.use_tasks(model, BATCH):
            model(x[:3])
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ("tasks", "error", "text"),
    [
        ("a", TypeError, "task_of_sample: expected a sequence of names. Got str"),
        (torch.tensor([0]), TypeError, "task_of_sample: expected a sequence of names. Got Tensor"),
        ([], ValueError, "task_of_sample: expected a task for each sample"),
        ([0, 1], TypeError, "task_of_sample: expected a sequence of names. Got one with a int"),
        ([["a"]], TypeError, "task_of_sample: expected a sequence of names. Got one with a list"),
        (["a", "x"], rsn2.TaskError, "task 'x' has nothing allocated"),
    ],
)
def test_bad_tasks_are_named(tasks: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{text}"), rsn2.use_tasks(network(linears), tasks):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize(("plain", "shape"), list(NETWORKS.values())[:3], ids=list(NETWORKS)[:3])
def test_a_batch_of_another_size_is_refused(plain: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = network(plain)
    message = r"^x: expected 7 samples along the first dimension, as tasks were given for\. Got shape \(6, "
    with rsn2.use_tasks(model, BATCH), pytest.raises(ValueError, match=message):
        model(batch(shape)[:6])


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv1d(4, 4, 1)], ids=["linear", "convolution"])
def test_only_per_task_modules_take_samples_by_task(layer: nn.Module) -> None:
    model = rsn2.convert(nn.Sequential(layer))
    for task in ("a", "b"):
        rsn2.allocate(model, task, 0.5, criterion="random")
    with pytest.raises(TypeError, match=r"^x: expected a tensor of all samples; .*PerTask.* Got dict"):
        rsn2.predict_together(model, {"a": torch.ones(2, 4), "b": torch.ones(2, 5, 4)})


def test_a_network_that_answers_with_something_else_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x}

    for head, what in ((Pair(), "tuple"), (Named(), "dict")):
        model = nn.Sequential(network(linears), head)
        with pytest.raises(TypeError, match=rf"^model: expected one tensor, or a dict of \['a', 'b'\]\. Got {what}"):
            rsn2.predict_together(model, {"a": batch((12,)), "b": batch((12,))})


def test_a_linear_layer_wants_features() -> None:
    layer = rsn2.convert(nn.Linear(7, 4))
    rsn2.allocate(layer, "a", 0.5, criterion="random")
    with (
        rsn2.use_tasks(layer, ["a"] * 7),
        pytest.raises(ValueError, match=r"^x: expected shape \[samples, \.\.\., 7\]"),
    ):
        layer(torch.ones(7))


def test_samples_that_do_not_come_first_are_refused() -> None:
    layer = nn.TransformerEncoderLayer(12, 3, 16)
    model = network(lambda: nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
    with (
        pytest.raises(rsn2.TaskError, match=r"^layers\.0\.self_attn: expected batch_first=True"),
        rsn2.use_tasks(model, BATCH),
    ):
        pass


def test_per_task_modules_get_their_samples_of_each_argument_and_give_tensors_of_them() -> None:
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(0)

    part = PerTask(template=nn.Bilinear(2, 2, 2))
    for task in TASKS:
        part.add_task(task)
    x = torch.randn(7, 2)
    with rsn2.use_tasks(part, BATCH):
        both = part(x, x + 1)
        with pytest.raises(ValueError, match=r"^PerTask: .* batches without names\. Got a tensor as input2"):
            part(x, input2=x)
        with pytest.raises(ValueError, match=r"^x: expected 7 samples"):
            part(x, x[:5])
        with pytest.raises(rsn2.TaskError, match=r"^each sample has a task"):
            _ = part.current
    for number, task in enumerate(BATCH):
        torch.testing.assert_close(both[number], part.of(task)(x[number], x[number] + 1))
    sums = PerTask({"a": Sums(), "b": Sums()})
    with (
        rsn2.use_tasks(sums, ["a", "b", "a"]),
        pytest.raises(ValueError, match=r"^task 'a': expected a tensor with 2 samples .* Got \(5,\)\."),
    ):
        sums(torch.ones(3, 5))


@pytest.mark.parametrize("own", ["0.self_attn", "0"])
def test_each_task_may_have_attention_of_its_own_in_a_batch_of_many(own: str) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = rsn2.convert(nn.Sequential(layer, nn.Linear(8, 8)), per_task=[own])
    for seed, task in enumerate(TASKS):
        torch.manual_seed(seed)
        model[0].get_submodule(own.removeprefix("0").removeprefix(".")).add_task(
            task, nn.MultiheadAttention(8, 2, batch_first=True) if own != "0" else copy.deepcopy(layer)
        )
        rsn2.allocate(model, task, 0.3, criterion="random", seed=seed)
    batch = {task: torch.randn(2, 5, 8) for task in TASKS}
    for task, found in rsn2.predict_together(model, batch).items():
        torch.testing.assert_close(found, rsn2.predict(model, task, batch[task]))


def test_a_network_of_a_batch_of_many_tasks_learns() -> None:
    model = allocated("shapes", "sizes")
    optimizer = torch.optim.Adam(rsn2.parameters(model, ("shapes", "sizes")), lr=0.01)
    data = {task: samples(task, 16) for task in LOSS}
    tasks = [task for task in data for _ in range(16)]
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with rsn2.use_tasks(model, tasks):
            outputs = model({task: x for task, (x, _) in data.items()})
        loss = torch.stack([LOSS[task](outputs[task], target) for task, (_, target) in data.items()]).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
