"""A task that runs through some of the layers has nothing in the others, and leaves all of them to other tasks."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rsn2
from networks import assert_same, snapshot
from rsn2.checkpoint import describe
from rsn2.ownership import frozen_slots, own_tensors
from rsn2.tasks import slots_of

LOSS = nn.functional.cross_entropy
LAYERS = {
    "digits": ["image", "hidden.*", "head"],
    "letters": ["image", "hidden.*", "head"],
    "news": ["text", "hidden.*", "head"],
}
ADAMW = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)


class Plain(nn.Module):
    """An input layer for images and one for rows of numbers, and layers behind them that all tasks run through."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Conv2d(1, 4, 3)
        self.text = nn.Linear(10, 64)
        self.hidden = nn.Sequential(nn.Linear(64, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 20, bias=False))
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.image(x).flatten(1) if x.ndim == 4 else self.text(x)
        return self.head(self.hidden(features.relu()))


def samples(task: str, count: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(task))
    shape = (10,) if task == "news" else (1, 6, 6)
    return torch.randn(count, *shape, generator=generator), torch.randint(3, (count,), generator=generator)


def allocate(model: nn.Module, task: str, density: float = 0.3, **options: object) -> dict[str, int]:
    arguments = {"layers": LAYERS.get(task), **options}
    return rsn2.allocate(model, task, density, LOSS, [samples(task)], **arguments)  # type: ignore[arg-type]


def network(*tasks: str) -> nn.Module:
    model = rsn2.convert(Plain())
    for task in tasks:
        allocate(model, task)
    return model


def answers(model: nn.Module, *tasks: str) -> dict[str, Tensor]:
    """All that the tasks answer with, and what they answer."""
    found = {
        f"{task}.{name}": each.detach().clone() for task in tasks for name, each in own_tensors(model, task).items()
    }
    return found | {task: rsn2.predict(model, task, samples(task)[0]) for task in tasks}


def test_a_task_has_nothing_in_the_layers_that_are_not_named() -> None:
    model = network("digits")
    before = snapshot(model.image)
    counts = allocate(model, "news")
    assert counts == {"text": 192, "hidden.0": 461, "hidden.3": 144, "head": 18}
    assert [name for name, _, _ in slots_of(model, "news")] == list(counts)
    assert_same(before, snapshot(model.image))
    assert model.image.slots == {"digits": 0} and model.text.slots == {"news": 0} and model.head.slots["news"] == 1
    assert model.text.densities == {0: 0.3}
    assert set(rsn2.tasks(model)) == {"digits", "news"}


def test_its_choice_is_that_of_a_network_without_the_other_layers() -> None:
    model = network("news")
    alone = Plain()
    del alone.image
    rsn2.convert(alone)
    allocate(alone, "news", layers=None)
    for name, layer, slot in slots_of(model, "news"):
        assert torch.equal(layer.owners.mask(slot), alone.get_submodule(name).owners.mask(0)), name


def test_a_layer_that_a_task_does_not_use_can_be_given_wholly_to_another() -> None:
    model = rsn2.convert(Plain())
    allocate(model, "digits", 1.0, layers=["image", "hidden.0", "head"], criterion="magnitude")
    counts = allocate(model, "news", 1.0, layers=["text", "hidden.3"], criterion="magnitude")
    assert counts == {"text": 640, "hidden.3": 480}
    assert all(not layer.owners.free().any() for _, layer, _ in slots_of(model, ["digits", "news"]))
    before = snapshot(model)
    with pytest.raises(rsn2.AllocationError, match=r"0\.1 is more than the 0 that \['digits'\] leave in layer 'image'"):
        allocate(model, "letters", 0.1)
    assert_same(before, snapshot(model))


def test_the_global_scope_counts_the_positions_of_the_named_layers() -> None:
    counts = allocate(rsn2.convert(Plain()), "news", 0.25, scope="global")
    assert sum(counts.values()) == round(0.25 * (10 * 64 + 64 * 24 + 24 * 20 + 20 * 3))
    blocks = allocate(rsn2.convert(Plain()), "news", 0.25, scope="global", granularity=(4, 2), criterion="random")
    assert abs(sum(blocks.values()) - sum(counts.values())) <= 4


def test_global_counts_that_do_not_fit_the_named_layers_are_refused() -> None:
    model = rsn2.convert(Plain())
    for name, layer in (("hidden.3", model.hidden[3]), ("head", model.head)):
        layer.pool.mul_(1e3 if name == "head" else 1)
    # All of the head goes to the first task, though it asked for half of both layers.
    options = {"layers": ["hidden.3", "head"], "criterion": "magnitude", "scope": "global"}
    assert allocate(model, "digits", 0.5, **options)["head"] == 60
    before = snapshot(model)
    with pytest.raises(rsn2.AllocationError, match=r"0\.5 of its layers is 30 positions, and 0 of 60 are free"):
        allocate(model, "news", 0.5, **{**options, "layers": ["head"]})
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": ["txt"]}, ValueError, r"layers: no multitask layer is named 'txt'. There are \['image', 'text'"),
        ({"layers": ["text", 3]}, ValueError, "layers: no multitask layer is named 3"),
        ({"layers": "text"}, ValueError, "layers: expected a sequence of names. Got 'text'"),
        ({"layers": []}, ValueError, "layers: expected at least one name, or None for all layers. Got none"),
        ({"layers": None}, rsn2.AllocationError, "layer 'image' takes no part in the loss of batch 0.*leave it out of"),
        ({"layers": ["text", "hidden.0"]}, rsn2.TaskError, r"'news' has nothing allocated here.* \(20, 24\)"),
        (
            {"share": {"digits": ["hidden.*", "i*"]}},
            ValueError,
            r"share\['digits'\]: expected some of the task's layers, \['text', .*\]. Got 'image' too",
        ),
        ({"share": {"digits": ["text"]}}, rsn2.TaskError, "'digits', with which 'news' is to share layer 'text'"),
        (
            {"layers": ["text", "hidden.0"], "share": {"digits": ["hidden.0"]}},
            rsn2.TaskError,
            "'news' has nothing allocated here",
        ),
    ],
)
def test_what_cannot_be_is_named_and_nothing_changes(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    model = network("digits")
    before = snapshot(model)
    with pytest.raises(error, match=message):
        allocate(model, "news", **options)
    assert_same(before, snapshot(model))
    assert rsn2.tasks(model) == ["digits"] and model.hidden[1].tasks == ("digits",)
    assert allocate(model, "news")["text"] == 192, "the name is still free"


def test_a_network_without_multitask_layers_has_none_to_name() -> None:
    model = rsn2.convert(nn.Sequential(nn.Linear(10, 3)), per_task=["0"])
    with pytest.raises(ValueError, match=r"layers: no multitask layer is named '\*'. There are \[\]"):
        allocate(model, "news", layers=["*"])
    with pytest.raises(rsn2.TaskError, match=r"'news' has nothing allocated in \['0'\]"):
        rsn2.parameters(model, "news")
    assert allocate(model, "news", layers=None) == {}
    assert len(rsn2.parameters(model, "news")) == 2


def test_running_a_layer_that_is_not_the_tasks_is_an_error() -> None:
    model = network("digits", "news")
    with rsn2.use_task(model, "news"), pytest.raises(rsn2.TaskError, match=r"'news'.*MultitaskConv2d.*\['digits'\]"):
        model(samples("digits")[0])
    with pytest.raises(rsn2.TaskError, match="'news' has nothing allocated here"):
        model.image.dense_weight("news")


def test_a_task_that_was_never_allocated_is_still_found_out() -> None:
    model = network("digits", "news")
    for use in (rsn2.parameters, own_tensors, lambda *both: rsn2.use_task(*both).__enter__()):
        with pytest.raises(
            rsn2.TaskError, match=r"'letters' has nothing allocated in \['image', 'text', .*'hidden.1'\]"
        ):
            use(model, "letters")
    with pytest.raises(rsn2.TaskError, match="task 'news' is allocated already, in layer 'text'"):
        allocate(model, "news", layers=["image"])


def test_parameters_and_tensors_are_of_the_tasks_own_layers() -> None:
    model = network("digits", "news")
    image = {id(parameter) for parameter in model.image.parameters()}
    assert not image & {id(parameter) for parameter in rsn2.parameters(model, "news")}
    assert image < {id(parameter) for parameter in rsn2.parameters(model, ["news", "digits"])}
    assert set(own_tensors(model, "news")) == {
        "text.values.0",
        "text.biases.0",
        "hidden.0.values.1",
        "hidden.0.biases.1",
        "hidden.1.by_task.task_news.weight",
        "hidden.1.by_task.task_news.bias",
        "hidden.3.values.1",
        "head.values.1",
        "head.biases.1",
    }
    both = [{id(tensor) for tensor in own_tensors(model, task).values()} for task in ("digits", "news")]
    assert not both[0] & both[1]
    assert both[0] | both[1] == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_training_in_turn_changes_no_bit_of_another_task() -> None:
    model = rsn2.convert(Plain())
    tasks = ("digits", "news", "letters")
    before: dict[str, Tensor] = {}
    for number, task in enumerate(tasks):
        allocate(model, task)
        untrained = answers(model, task)
        rsn2.fit(model, task, samples(task), loss=LOSS, epochs=3, batch_size=8, optimizer=ADAMW)
        trained = answers(model, task)
        assert all(not torch.equal(untrained[name], trained[name]) for name in trained), "all of it was trained"
        assert_same(before, answers(model, *tasks[:number]))
        before |= trained


def test_training_together_ends_in_the_bits_of_training_each() -> None:
    tasks = ("digits", "news")
    model, each = network(*tasks), network(*tasks)
    options = {"loss": LOSS, "epochs": 3, "batch_size": 8, "optimizer": ADAMW}
    rsn2.fit_together(model, {task: samples(task) for task in tasks}, **options)
    for task in tasks:
        rsn2.fit(each, task, samples(task), **options)
    assert_same(snapshot(each), snapshot(model))


@pytest.mark.parametrize("finalized", [False, True])
def test_a_checkpoint_and_a_state_dict_keep_who_uses_which_layer(tmp_path: Path, finalized: bool) -> None:
    model = network("digits", "news")
    rsn2.fit(model, "news", samples("news"), loss=LOSS, epochs=1)
    if finalized:
        rsn2.finalize(model)
    rsn2.save(model, tmp_path / "net.safetensors")
    again = rsn2.load(tmp_path / "net.safetensors", Plain())
    fresh = network()
    fresh.load_state_dict(model.state_dict())
    for other in (again, fresh):
        assert_same(snapshot(model), snapshot(other))
        assert_same(answers(model, "digits", "news"), answers(other, "digits", "news"))
        assert rsn2.tasks(other) == rsn2.tasks(model)
        assert other.image.slots == {"digits": 0} and other.text.slots == {"news": 0}
    there, here = describe(tmp_path / "net.safetensors"), rsn2.report(model)
    assert there.tasks == here.tasks and there.nbytes == here.nbytes
    assert [layer.owned for layer in there.layers] == [layer.owned for layer in here.layers]
    if not finalized:
        assert allocate(again, "letters") == allocate(model, "letters")
        assert_same(snapshot(model), snapshot(again))


@pytest.mark.parametrize("finalized", [False, True])
def test_a_layer_that_no_task_uses_is_kept_as_it_is(tmp_path: Path, finalized: bool) -> None:
    model = network("news")
    if finalized:
        rsn2.finalize(model)
    rsn2.save(model, tmp_path / "net.safetensors")
    again = rsn2.load(tmp_path / "net.safetensors", Plain())
    assert_same(snapshot(model), snapshot(again))
    assert again.image.slots == {} and (again.image.pool is None) == finalized
    assert rsn2.report(again).layers[0].free == again.image.owners.numel


def test_the_report_leaves_out_what_a_task_does_not_use() -> None:
    report = rsn2.report(network("digits", "news"))
    image, text, *others = report.layers
    assert image.owned == {"digits": 11} and text.owned == {"news": 192}
    assert image.density("news") == 0 and image.free == 25
    assert all(set(layer.owned) == {"digits", "news"} for layer in others)
    row = next(line for line in str(report).splitlines() if line.startswith("│ image"))
    assert [cell.strip() for cell in row.split("│")[3:6]] == ["11 (0.306)", "-", "0.694"]


def test_layers_are_shared_among_tasks_that_run_through_different_ones() -> None:
    model = network("digits")
    share = {"digits": ["hidden.*"]}
    counts = allocate(model, "news", share=share)
    assert list(counts) == ["text", "hidden.0", "hidden.3", "head"]
    assert model.hidden[0].holders(0) == ("digits", "news")
    assert frozen_slots(model, "news") == {"hidden.0": ("digits",), "hidden.3": ("digits",)}
    assert frozen_slots(model, ["digits", "news"]) == {}
    before = answers(model, "digits")
    with pytest.warns(UserWarning, match=r"fit does not train \['hidden.0', 'hidden.3'\]"):
        rsn2.fit(model, "news", samples("news"), loss=LOSS, epochs=2, optimizer=ADAMW)
    assert_same(before, answers(model, "digits"))
    allocate(model, "letters")
    other = answers(model, "letters")
    tasks = ("digits", "news")
    before = answers(model, *tasks)
    rsn2.fit_together(model, {task: samples(task) for task in tasks}, loss=LOSS, epochs=2, optimizer=ADAMW)
    assert_same(other, answers(model, "letters"))
    assert all(not torch.equal(tensor, before[name]) for name, tensor in answers(model, *tasks).items())


def test_a_warm_up_trains_the_tasks_own_layers(tmp_path: Path) -> None:
    model = network("digits")
    before = snapshot(model)
    options = {"loss": LOSS, "epochs": 2, "layers": LAYERS["news"], "resume": tmp_path / "warm"}
    start = rsn2.warm_up(model, "news", samples("news"), **options)
    assert set(start.weights) == {"text", "hidden.0", "hidden.3", "head"}
    assert_same(before, snapshot(model))
    assert_same(start.weights, rsn2.warm_up(model, "news", samples("news"), **options).weights)
    with pytest.raises(rsn2.CheckpointError, match="another tensors"):
        rsn2.warm_up(model, "news", samples("news"), **{**options, "layers": ["*"]})
    with pytest.raises(ValueError, match=r"start: expected a weight .* for layer 'image'\. Got none"):
        allocate(model, "news", layers=["*"], start=start)
    allocate(model, "news", start=start)
    for name, layer, slot in slots_of(model, "news"):
        assert torch.equal(layer.dense_weight("news"), start.weights[name] * layer.owners.mask(slot))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": ["txt"]}, ValueError, "layers: no multitask layer is named 'txt'"),
        ({"share": {"digits": ["image"]}}, ValueError, "expected some of the task's layers"),
        ({"layers": ["text", "hidden.0"]}, rsn2.TaskError, "'news' has nothing allocated here"),
    ],
)
def test_a_warm_up_of_other_layers_is_refused_and_nothing_changes(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    model = network("digits")
    before = snapshot(model)
    arguments = {"layers": LAYERS["news"], **options}
    with pytest.raises(error, match=message):
        rsn2.warm_up(model, "news", samples("news"), loss=LOSS, epochs=1, **arguments)  # type: ignore[arg-type]
    assert_same(before, snapshot(model))


def test_a_resumed_fit_goes_on_whatever_happens_in_layers_of_others(tmp_path: Path) -> None:
    options = {"loss": LOSS, "batch_size": 8, "resume": tmp_path / "fit"}
    model, expected = network("digits"), network("digits")
    rsn2.fit(model, "digits", samples("digits"), epochs=1, **options)
    allocate(model, "news")
    rsn2.fit(model, "digits", samples("digits"), epochs=3, **options)
    rsn2.fit(expected, "digits", samples("digits"), epochs=3, loss=LOSS, batch_size=8)
    assert_same(answers(expected, "digits"), answers(model, "digits"))


def test_a_fit_of_tasks_in_swapped_layers_is_not_resumed(tmp_path: Path) -> None:
    def swapped(first: str, second: str) -> nn.Module:
        model = rsn2.convert(nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}))
        rsn2.allocate(model, first, 1.0, criterion="magnitude", layers=["a"])
        rsn2.allocate(model, second, 1.0, criterion="magnitude", layers=["b"])
        return model

    # Tensors and positions are the same; who uses them is not.
    options = {"loss": LOSS, "epochs": 0, "resume": tmp_path / "fit"}
    rsn2.fit_together(swapped("one", "two"), {"one": [], "two": []}, **options)
    with pytest.raises(rsn2.CheckpointError, match="another allocation"):
        rsn2.fit_together(swapped("two", "one"), {"one": [], "two": []}, **options)
