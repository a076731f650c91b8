"""MultitaskConv1d computes what nn.Conv1d does with a task's expanded weight."""

from pathlib import Path

import pytest
import torch
from torch import nn

import rsn2
from networks import assert_same, snapshot
from rsn2.nn import MultitaskConv1d

GEOMETRIES = [
    {"kernel_size": 3},
    {"kernel_size": 5, "stride": 2, "padding": 2},
    {"kernel_size": 3, "dilation": 2, "groups": 2, "bias": False},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 1},
]


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
@pytest.mark.parametrize("batch", [(3,), ()], ids=["batched", "single"])
def test_output_and_gradients_are_torch_s(options: dict[str, object], batch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    dense = nn.Conv1d(4, 6, **options).double()  # type: ignore[arg-type]
    sparse = MultitaskConv1d.from_dense(dense)
    rsn2.allocate(sparse, "t", 0.4, criterion="random")
    with torch.no_grad():
        dense.weight.copy_(sparse.dense_weight("t"))
    x = torch.randn(*batch, 4, 17).double()
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with rsn2.use_task(sparse, "t"):
        found, expected = sparse(inputs[0]), dense(inputs[1])
    torch.testing.assert_close(found, expected)
    for output in (found, expected):
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    mask = sparse.owners.mask(0).view_as(dense.weight)
    torch.testing.assert_close(sparse.values["0"].grad, dense.weight.grad[mask])


def test_a_converted_network_allocates_trains_and_comes_back(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv1d(2, 8, 3, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))

    model = rsn2.convert(build())
    assert type(model[0]) is MultitaskConv1d
    data = torch.randn(20, 2, 10), torch.randint(3, (20,))
    loss = nn.functional.cross_entropy
    assert rsn2.allocate(model, "a", 0.25, loss, [data]) == {"0": 12, "3": 60}
    assert rsn2.allocate(model, "b", 0.25, criterion="magnitude", granularity=(4, 2))["0"] in range(8, 17)
    rsn2.fit(model, "a", data, loss=loss, epochs=1)
    rsn2.save(model, tmp_path / "net.safetensors")
    assert_same(snapshot(model), snapshot(rsn2.load(tmp_path / "net.safetensors", build())))
