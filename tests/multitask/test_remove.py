"""remove takes one task out of a network, and no bit of another."""

import threading

import pytest
import torch
from torch import nn

import rsn2
from networks import LOSS, allocated, assert_same, samples, snapshot
from rsn2.tasks import multitask_layers


def test_a_removed_task_leaves_the_others_as_they_were_and_its_weights_free() -> None:
    model, alone = allocated("shapes", "sizes"), allocated("shapes")
    before = rsn2.predict(model, "shapes", samples("shapes")[0])
    rsn2.remove(model, "sizes")
    assert rsn2.tasks(model) == ["shapes"]
    assert torch.equal(rsn2.predict(model, "shapes", samples("shapes")[0]), before)
    for name, layer in multitask_layers(model).items():
        assert torch.equal(layer.owners.free(), multitask_layers(alone)[name].owners.free()), name
    assert not any(module.tasks == ("sizes",) for module in model.modules() if isinstance(module, rsn2.nn.PerTask))
    with pytest.raises(rsn2.TaskError, match=r"task 'sizes' has nothing allocated"), rsn2.use_task(model, "sizes"):
        pass


def test_a_task_that_comes_again_gets_what_it_had_at_first() -> None:
    model = allocated("shapes", "sizes")
    own = [module.of("sizes") for module in model if isinstance(module, rsn2.nn.PerTask)]
    expected = snapshot(model)
    rsn2.remove(model, "sizes")
    missing = [module for module in model if isinstance(module, rsn2.nn.PerTask) and module.template is None]
    with pytest.raises(rsn2.TaskError, match="has no module in '0'"):
        rsn2.allocate(model, "sizes", 0.3, LOSS["sizes"], [samples("sizes")])
    for module in missing:
        module.add_task("sizes", own.pop(0) if module is model[0] else own[-1])
    rsn2.allocate(model, "sizes", 0.3, LOSS["sizes"], [samples("sizes")])
    assert_same(snapshot(model), expected)


def test_a_slot_that_others_share_stays_theirs() -> None:
    model = rsn2.convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    rsn2.allocate(model, "a", 0.3, criterion="magnitude")
    rsn2.allocate(model, "b", 0.3, criterion="magnitude", share={"a": ["0"]})
    before = rsn2.predict(model, "b", torch.eye(4))
    rsn2.remove(model, "a")
    assert torch.equal(rsn2.predict(model, "b", torch.eye(4)), before)
    assert model[0].owners.count(model[0].slot("b")) == round(0.3 * 16)
    assert bool((model[2].owners.mask(model[2].slot("b")) | model[2].owners.free()).all())


def test_what_is_not_there_is_not_removed_and_nothing_changes() -> None:
    model = allocated("shapes")
    before = snapshot(model)
    with pytest.raises(rsn2.TaskError, match="task 'sizes' has nothing allocated"):
        rsn2.remove(model, "sizes")
    with pytest.raises(TypeError, match="task: expected the name of one task"):
        rsn2.remove(model, ["shapes"])  # type: ignore[arg-type]
    assert_same(snapshot(model), before)


def test_removing_waits_until_nobody_runs_the_network() -> None:
    model = allocated("shapes", "sizes")
    thread = threading.Thread(target=rsn2.remove, args=(model, "sizes"))
    with rsn2.use_task(model, "sizes"):
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and rsn2.tasks(model) == ["shapes", "sizes"]
    thread.join(60)
    assert rsn2.tasks(model) == ["shapes"]
