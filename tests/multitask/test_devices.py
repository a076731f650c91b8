"""A network from conversion to file, on the CPU, and on a GPU where one is: for `make gpu-check` too."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rsn2
from classifiers import LOSS, OPTIMIZERS, network, samples

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


def predictions(model: nn.Module, task: str, x: Tensor) -> Tensor:
    """What the network says of x as one of its tasks."""
    with rsn2.use_task(model.eval(), task), torch.no_grad():
        found: Tensor = model(x)
    return found


@pytest.mark.parametrize("device", DEVICES)
def test_tasks_are_allocated_trained_kept_and_saved(device: str, tmp_path: Path) -> None:
    model = network().to(device)
    x, y = (each.to(device) for each in samples(600))
    batches = [(x[start : start + 100], y[start : start + 100]) for start in range(0, 500, 100)]
    held_out = x[500:]
    rsn2.allocate(model, "first", 0.3, LOSS, batches[:1])
    before = predictions(model, "first", held_out)
    rsn2.fit(model, "first", batches, loss=LOSS, optimizer=OPTIMIZERS["adam"], epochs=20, progress=False)
    trained = predictions(model, "first", held_out)
    assert (trained.argmax(1) == y[500:]).float().mean() > (before.argmax(1) == y[500:]).float().mean() + 0.2

    rsn2.allocate(model, "second", 0.3, LOSS, [(held_out, 2 - y[500:])], granularity=(4, 4))
    turned = [(a, 2 - b) for a, b in batches]
    rsn2.fit(model, "second", turned, loss=LOSS, optimizer=OPTIMIZERS["adamw"], epochs=5, progress=False)
    assert torch.equal(predictions(model, "first", held_out), trained), "not a bit of it has changed"

    rsn2.finalize(model)
    mixed = rsn2.predict_together(model, {"second": held_out, "first": held_out[:30]})
    for task, found in mixed.items():
        torch.testing.assert_close(found, predictions(model, task, held_out)[: len(found)], rtol=1e-3, atol=1e-4)
    rsn2.save(model, tmp_path / "net.safetensors")
    again = rsn2.load(tmp_path / "net.safetensors", network().to(device))
    for task in ("first", "second"):
        assert torch.equal(predictions(again, task, held_out), predictions(model, task, held_out))
    assert all(each.device.type == device for each in rsn2.parameters(again, "first"))
