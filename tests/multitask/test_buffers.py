"""Buffers: those that all tasks share stay as they are, whatever a module does to them; a task's own follow its fit."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rsn2

CE = nn.functional.cross_entropy


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def data(shift: float = 0.0, count: int = 64) -> tuple[Tensor, Tensor]:
    """Samples of three classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 8, generator=generator) + shift, torch.randint(3, (count,), generator=generator)


class Centred(nn.Module):
    """Takes the running mean from its inputs; each batch puts a new tensor into the buffer's place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class Growing(nn.Module):
    """Keeps a table that it makes larger when it has to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(4), persistent=False)
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if len(self.table) < x.shape[1]:
            self.table = torch.ones(x.shape[1])
        result: Tensor = self.inner(x * self.table[: x.shape[1]])
        return result


class Graph(nn.Module):
    """A layer over the edges of a graph, kept as a sparse matrix."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.register_buffer("adjacency", torch.eye(64).to_sparse(layout=layout))
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(torch.sparse.mm(self.adjacency, x))
        return result


class AtTheRoot(nn.Module):
    """A buffer that no submodule has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("position", torch.randn(8))
        self.hidden, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(torch.relu(self.hidden(x + self.position)))
        return result


def around(front: nn.Module) -> nn.Module:
    """A network of one task behind ``front``."""
    torch.manual_seed(0)
    model = rsn2.convert(nn.Sequential(front, nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)))
    rsn2.allocate(model, "a", 0.5, CE, [data()])
    return model


def test_a_buffer_that_its_module_replaces_is_resumed_bit_by_bit(tmp_path: Path) -> None:
    def fit(model: nn.Module, epochs: int, resume: Path | None = None) -> rsn2.History:
        return rsn2.fit(
            model, "a", data(3), data(3), loss=CE, lr=0.01, epochs=epochs, restore_best=False, resume=resume
        )

    def net() -> nn.Module:
        return around(rsn2.nn.PerTask(template=Centred()))

    whole, resumed = net(), net()
    expected = fit(whole, 4)
    fit(net(), 2, tmp_path / "fit")
    assert fit(resumed, 4, tmp_path / "fit").val_loss == expected.val_loss
    assert torch.equal(whole[0].of("a").mean, resumed[0].of("a").mean)


def test_the_best_epoch_comes_back_with_the_buffer_that_it_had() -> None:
    model = around(rsn2.nn.PerTask(template=Centred()))
    x, target = data(3)
    other = x, (target + 1) % 3  # the better it learns, the worse it is here
    history = rsn2.fit(model, "a", (x, target), other, loss=CE, lr=0.01, epochs=8)
    assert history.best_epoch is not None and history.best_epoch < 8
    assert rsn2.evaluate(model, "a", other, loss=CE)["loss"] == min(history.val_loss)


def test_a_loss_that_is_not_finite_leaves_the_running_statistics_of_before() -> None:
    model = around(nn.BatchNorm1d(8))
    rsn2.fit(model, "a", data(), loss=CE, epochs=1)
    before = {name: buffer.clone() for name, buffer in model[0].of("a").named_buffers()}
    x, target = data()
    x[5, 2] = float("inf")
    with pytest.raises(rsn2.TrainingError, match="the loss is nan"):
        rsn2.fit(model, "a", (x, target), loss=CE, epochs=1)
    for name, buffer in model[0].of("a").named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
def test_what_no_task_moves_is_no_obstacle_whatever_its_layout(layout: torch.layout) -> None:
    model = around(Graph(layout))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="Sparse")  # torch's own, on its layouts
        assert len(rsn2.fit(model, "a", data(), loss=CE, epochs=1, batch_size=64).train_loss) == 1


def test_a_table_that_grows_is_put_back_at_its_size() -> None:
    model = around(Growing())
    table = model[0].table
    assert table.shape == (4,)
    with pytest.warns(UserWarning, match=r"fit put \['0.table'\] back"):
        rsn2.fit(model, "a", data(), loss=CE, epochs=1)
    assert model[0].table is table


def test_what_validation_moves_is_put_back_too() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.inner = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                self.seen.data += 1  # leaves no version behind
            result: Tensor = self.inner(x)
            return result

    model = around(Counting())
    with pytest.warns(UserWarning, match=r"fit put \['0.seen'\] back"):
        rsn2.fit(model, "a", data(), data(), loss=CE, epochs=2)
    assert model[0].seen == 0


def test_a_compiled_network_has_its_buffers_at_the_root() -> None:
    model = rsn2.convert(AtTheRoot())
    rsn2.allocate(model, "a", 0.3, CE, [data()])
    compiled = torch.compile(model, backend="eager")
    rsn2.fit(compiled, "a", data(), loss=CE, epochs=1)
    rsn2.allocate(compiled, "b", 0.3, CE, [data()])
