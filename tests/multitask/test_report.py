"""The report's figures are the true ones, counted from the tensors."""

import torch
from torch import nn

import rsn2
from networks import allocated, samples


def test_a_layer_costs_what_format_and_density_say() -> None:
    # 16 * sum(d) + P bits per weight, for bf16 values: 5.2 for two tasks of 0.1, 19 for five of 0.2.
    for tasks, density, expected in ((2, 0.1, 5.2), (5, 0.2, 19.0)):
        model = rsn2.convert(nn.Sequential(nn.Linear(640, 500, bias=False, dtype=torch.bfloat16)))
        for number in range(tasks):
            rsn2.allocate(model, f"t{number}", density, criterion="magnitude")
        rsn2.finalize(model)
        assert rsn2.report(model).bits_per_weight == expected


def test_bytes_add_up_to_the_tensors_of_the_network() -> None:
    model = allocated("shapes", "sizes")
    report = rsn2.report(model)
    tensors = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    planes = sum(layer.owners.nbytes for layer in model.modules() if isinstance(layer, rsn2.nn.MultitaskLayer))
    templates = sum(
        tensor.nbytes
        for module in model.modules()
        if isinstance(module, rsn2.nn.PerTask) and module.template is not None
        for tensor in (*module.template.parameters(), *module.template.buffers())
    )
    assert report.nbytes + report.pool_bytes == tensors + planes - templates
    assert report.index_bytes > 0, "index structures derived so far count too"


def test_owned_and_free_add_up() -> None:
    model = allocated("shapes", "sizes", density=0.3)
    for layer in rsn2.report(model).layers:
        assert sum(layer.owned.values()) + layer.free == layer.positions
        assert layer.owned == dict.fromkeys(("shapes", "sizes"), round(0.3 * layer.positions))


def test_it_prints_layers_tasks_and_totals() -> None:
    model = allocated("shapes")
    text = str(rsn2.report(model))
    assert "40 x 32" in text and "shapes" in text and "384 (0.300)" in text and "bits per shared weight" in text


def test_a_network_without_shared_weights_is_reported_too() -> None:
    for model in (nn.Linear(2, 2), nn.Sequential(rsn2.nn.PerTask({"a": nn.Linear(2, 2)}))):
        report = rsn2.report(model)
        assert report.positions == 0 and report.bits_per_weight == 0
        assert "whole network 24 bytes" in str(report)


def test_the_backward_index_is_built_when_first_needed() -> None:
    model = allocated("shapes").eval()
    x = samples("shapes")[0]
    with rsn2.use_task(model, "shapes"), torch.no_grad():
        model(x)
    inference = rsn2.report(model).index_bytes
    with rsn2.use_task(model, "shapes"):
        model(x).sum().backward()
    assert rsn2.report(model).index_bytes > inference
