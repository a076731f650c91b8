"""MultitaskConv1d and MultitaskConv3d compute what nn.Conv1d and nn.Conv3d do with a task's expanded weight."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rsn2
from networks import assert_same, snapshot
from rsn2.convert import SHARED_FORMS
from rsn2.nn import MultitaskConv1d, MultitaskConv2d, MultitaskConv3d

LINES = [
    {"kernel_size": 3},
    {"kernel_size": 5, "stride": 2, "padding": 2},
    {"kernel_size": 3, "dilation": 2, "groups": 2, "bias": False},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 1},
]
VOLUMES = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2, 1), "stride": (2, 1, 2), "padding": (2, 0, 1)},
    {"kernel_size": (2, 3, 3), "dilation": (3, 1, 2), "groups": 2, "bias": False, "padding": (1, 2, 0)},
    {"kernel_size": (4, 3, 2), "padding": "same"},
    {"kernel_size": 3, "padding": "valid", "groups": 4, "stride": (1, 2, 1)},
    {"kernel_size": 3, "padding": (1, 2, 1), "padding_mode": "circular"},
    {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)},
    {"kernel_size": 1, "stride": (3, 1, 1)},
]
CASES = [(nn.Conv1d, (17,), each) for each in LINES] + [(nn.Conv3d, (6, 5, 7), each) for each in VOLUMES]


@pytest.mark.parametrize(("form", "size", "options"), CASES, ids=str)
@pytest.mark.parametrize("batch", [(3,), (), (0,)], ids=["batched", "single", "empty"])
def test_output_and_gradients_are_torch_s(
    form: type[nn.Conv1d | nn.Conv3d], size: tuple[int, ...], options: dict[str, object], batch: tuple[int, ...]
) -> None:
    if batch == (0,) and options.get("padding_mode") == "circular":
        pytest.skip("torch pads no empty batch circularly")
    torch.manual_seed(0)
    dense = form(4, 8, **options).double()  # type: ignore[arg-type]
    sparse = SHARED_FORMS[form].from_dense(dense)  # type: ignore[arg-type]
    rsn2.allocate(sparse, "t", 0.4, criterion="random")
    with torch.no_grad():
        dense.weight.copy_(sparse.dense_weight("t"))
    x = torch.randn(*batch, 4, *size).double()
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with rsn2.use_task(sparse, "t"):
        found, expected = sparse(inputs[0]), dense(inputs[1])
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous()
    for output in (found, expected):
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    mask = sparse.owners.mask(0).view_as(dense.weight)
    torch.testing.assert_close(sparse.values["0"].grad, dense.weight.grad[mask])


@pytest.mark.parametrize("x", [torch.zeros(2, 3, 6, 6, 6), torch.zeros(3, 3, 3), torch.zeros(6, 6, 6, 6)], ids=str)
def test_a_volume_of_another_shape_is_named(x: Tensor) -> None:
    layer = MultitaskConv3d(4, 8, 3)
    rsn2.allocate(layer, "t", 0.4, criterion="random")
    with rsn2.use_task(layer, "t"), pytest.raises(ValueError, match=r"^x: expected shape \[N, 4, D, H, W\]"):
        layer(x)


def test_images_in_images_are_refused() -> None:
    layer = MultitaskConv2d(4, 8, 3)
    rsn2.allocate(layer, "t", 0.4, criterion="random")
    with rsn2.use_task(layer, "t"), pytest.raises(ValueError, match=r"^x: expected shape \[N, 4, H, W\]"):
        layer(torch.zeros(2, 3, 4, 6, 6))


def test_a_volume_of_too_few_slices_is_named() -> None:
    layer = MultitaskConv3d(4, 8, 3, dilation=2, padding=1)
    rsn2.allocate(layer, "t", 0.4, criterion="random")
    with rsn2.use_task(layer, "t"), pytest.raises(ValueError, match=r"^x: its 2 slices and 1 around them"):
        layer(torch.zeros(1, 4, 2, 9, 9))


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


def test_a_network_for_volumes_allocates_trains_and_comes_back(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv3d(1, 4, 3, padding="same"),
            nn.BatchNorm3d(4),
            nn.ReLU(),
            nn.MaxPool3d(2),
            nn.Flatten(),
            nn.Linear(32, 3),
        )

    model = rsn2.convert(build())
    assert type(model[0]) is MultitaskConv3d
    data = torch.randn(20, 1, 4, 4, 4), torch.randint(3, (20,))
    loss = nn.functional.cross_entropy
    assert rsn2.allocate(model, "a", 0.25, loss, [data]) == {"0": 27, "5": 24}
    rsn2.allocate(model, "b", 0.25, loss, [data])
    rsn2.fit(model, "a", data, loss=loss, epochs=2)
    rsn2.save(model, tmp_path / "net.safetensors")
    again = rsn2.load(tmp_path / "net.safetensors", build())
    assert_same(snapshot(model), snapshot(again))
    with rsn2.use_task(again.eval(), "a"):
        assert torch.equal(rsn2.extract(again, "a")(data[0]), again(data[0]))
