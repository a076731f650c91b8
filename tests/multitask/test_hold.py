"""While one runs a network as a task: others wait, what tasks share stays, and modes are as they were asked for."""

import asyncio
import copy
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rsn2
from networks import assert_same, snapshot

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)) + 1
RUN: dict[str, Callable[[nn.Module], AbstractContextManager[None]]] = {
    "use_task": lambda model: rsn2.use_task(model, "b"),
    "use_tasks": lambda model: rsn2.use_tasks(model, ["b"] * len(X)),
}


def network() -> nn.Sequential:
    """Two tasks around a batch norm that they share, in eval mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)).eval()
    rsn2.convert(model, exclude=["1"])
    for task in "ab":
        rsn2.allocate(model, task, 0.3, criterion="random")
    return model


# Modes


@pytest.mark.parametrize("run", RUN.values(), ids=RUN)
@pytest.mark.parametrize("last", [True, False])
def test_train_called_inside_moves_no_statistics_and_counts_behind(
    run: Callable[[nn.Module], AbstractContextManager[None]], last: bool
) -> None:
    model = network()
    before = snapshot(model)
    with run(model):
        for mode in (True, False, last):
            model.train(mode)
            model(X)
            with run(model):
                model.train(mode)
                model(X)
            assert model[3].training is mode and not model[1].training
    assert_same(before, snapshot(model))
    assert [module.training for module in model.modules()] == [last] * len(list(model.modules()))
    assert model[1].train().training, "the method is the module's own again"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_inside_has_modes_of_its_own(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = network()
    with rsn2.use_task(model, "b"):
        twin = copied(model)
        twin.train()
        assert twin[1].training and not model[1].training  # type: ignore[index]
        again = copy.deepcopy(twin).eval()
        assert twin[1].training and not again[1].training  # type: ignore[index]
    assert not any(module.training for module in model.modules())
    with rsn2.use_task(twin, "b"):
        assert not twin[1].training  # type: ignore[index]
    assert all(module.training for module in twin.modules())


@pytest.mark.parametrize("training", [True, False])
def test_what_runs_in_a_mode_of_its_own_leaves_that_of_every_module(training: bool) -> None:
    model = network().train(training)
    model[3].train(not training)
    before = [module.training for module in model.modules()]
    target = torch.zeros(len(X), dtype=torch.long)
    rsn2.predict(model, "a", X)
    rsn2.predict_together(model, {"a": X, "b": X})
    with pytest.warns(UserWarning, match="all tasks share"):
        rsn2.fit(model, "a", (X, target), (X, target), loss=nn.functional.cross_entropy, epochs=1)
    with rsn2.use_task(model, "a"):
        rsn2.predict(model, "a", X)
    assert [module.training for module in model.modules()] == before


# Coroutines and threads


def test_a_coroutine_is_told_that_another_of_its_thread_runs_the_network() -> None:
    model = network()
    expected = rsn2.predict(model, "a", X)

    async def serve(task: str, seconds: float) -> Tensor:
        with rsn2.use_task(model, task), torch.no_grad():
            await asyncio.sleep(seconds)
            answer: Tensor = model(X)
            return answer

    async def both() -> list[Tensor | BaseException]:
        return await asyncio.gather(serve("a", 0.01), serve("b", 0.02), return_exceptions=True)

    first, second = asyncio.run(both())
    assert isinstance(first, Tensor) and torch.equal(first, expected)
    assert isinstance(second, RuntimeError) and "another coroutine of this thread" in str(second)
    assert model[0].active is None

    async def in_threads() -> list[Tensor]:
        return await asyncio.gather(*(asyncio.to_thread(rsn2.predict, model, task, X) for task in "ab"))

    for task, answer in zip("ab", asyncio.run(in_threads()), strict=True):
        assert torch.equal(answer, rsn2.predict(model, task, X))


def test_a_coroutine_may_enter_a_network_again() -> None:
    model = network()

    async def nested() -> Tensor:
        with rsn2.use_task(model, "b"):
            await asyncio.sleep(0)
            return rsn2.predict(model, "a", X)

    assert torch.equal(asyncio.run(nested()), rsn2.predict(model, "a", X))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: rsn2.allocate(model, "c", 0.3, criterion="random"),
        lambda model: model[0].remove_task("b"),
        lambda model: model[1].remove_task("b"),
        lambda model: model[1].add_task("c"),
        rsn2.finalize,
    ],
    ids=["allocate", "layer.remove_task", "per_task.remove_task", "add_task", "finalize"],
)
def test_a_network_is_changed_while_nobody_runs_it(change: Callable[[nn.Module], object]) -> None:
    model = rsn2.convert(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8)))
    for task in "ab":
        rsn2.allocate(model, task, 0.3, criterion="random")
    with ThreadPoolExecutor(1) as pool:
        with rsn2.use_task(model, "a"):
            waiting = pool.submit(change, model)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
            model(X)
        waiting.result(timeout=60)


def test_tasks_come_and_go_while_others_are_served() -> None:
    model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.LayerNorm(6))))
    rsn2.convert(model)
    for task in "ab":
        rsn2.allocate(model, task, 0.1, criterion="random")
    expected = {task: rsn2.predict(model, task, X) for task in "ab"}
    together = rsn2.predict_together(model, {"a": X, "b": X})
    done = False

    def serve(task: str) -> None:
        while not done:
            assert torch.equal(rsn2.predict(model, task, X), expected[task])

    def serve_together() -> None:
        while not done:
            for task, answer in rsn2.predict_together(model, {"a": X, "b": X}).items():
                torch.testing.assert_close(answer, together[task])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        with ThreadPoolExecutor(3) as pool:
            serving = [pool.submit(serve, "a"), pool.submit(serve, "b"), pool.submit(serve_together)]
            for number in range(30):
                rsn2.allocate(model, f"new{number}", 0.02, criterion="random", seed=number)
                if number % 3:
                    for part in model:
                        part.remove_task(f"new{number}")
            done = True
            for each in serving:
                each.result(timeout=60)
    finally:
        done = True
        sys.setswitchinterval(interval)


# Forward passes that are run again


def test_a_forward_pass_that_backward_runs_again_runs_as_the_task_of_its_block() -> None:
    model = network().double()
    own = rsn2.parameters(model, "a")
    with rsn2.use_task(model, "a"):
        expected = torch.autograd.grad(model(X.double()).sum(), own)
        output = checkpoint(model, X.double(), use_reentrant=False)
        found = torch.autograd.grad(output.sum(), own)
        later = checkpoint(model, X.double(), use_reentrant=False)
    torch.testing.assert_close(found, expected)
    with pytest.raises(rsn2.TaskError, match=r"^no task is active: .* backward pass .*torch\.utils\.checkpoint"):
        later.sum().backward()
