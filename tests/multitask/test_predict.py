"""What `predict` and `evaluate` promise."""

import pytest
import torch
from torch import Tensor

from classifiers import LOSS, TRAIN, network
from rsn2.training import evaluate, predict


def test_predict_and_evaluate_name_what_is_of_another_type() -> None:
    model = network("a")
    with pytest.raises(TypeError, match=r"^x: expected a tensor\. Got ndarray"):
        predict(model, "a", TRAIN[0].numpy())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^batch_size: expected an int\. Got 2\.5"):
        predict(model, "a", TRAIN[0], batch_size=2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^batch_size: "):
        evaluate(model, "a", TRAIN, loss=LOSS, batch_size=True)


def test_predict_gives_the_outputs_of_eval_mode_in_order() -> None:
    model = network("a").train()
    whole = predict(model, "a", TRAIN[0])
    assert whole.shape == (130, 3)
    assert not whole.requires_grad
    torch.testing.assert_close(predict(model, "a", TRAIN[0], batch_size=7), whole)
    assert predict(model, "a", TRAIN[0][:0]).shape == (0, 3)
    with pytest.raises(ValueError, match=r"^batch_size: "):
        predict(model, "a", TRAIN[0], batch_size=0)


def test_evaluate_weights_the_loss_by_samples_and_calls_metrics_once() -> None:
    model = network("a")
    calls = []

    def worst(outputs: Tensor, target: Tensor) -> float:
        calls.append(len(target))
        return LOSS(outputs, target, reduction="none").max().item()

    result = evaluate(model, "a", TRAIN, loss=LOSS, metrics={"worst": worst}, batch_size=50)
    outputs = predict(model, "a", TRAIN[0])
    assert calls == [130]
    assert result["loss"] == pytest.approx(LOSS(outputs, TRAIN[1]).item())
    assert result["worst"] == pytest.approx(LOSS(outputs, TRAIN[1], reduction="none").max().item())


def test_evaluate_needs_something_to_compute_and_samples() -> None:
    model = network("a")
    with pytest.raises(ValueError, match=r"^loss, metrics: "):
        evaluate(model, "a", TRAIN)
    with pytest.raises(ValueError, match=r"^loss, metrics: "):
        evaluate(model, "a", TRAIN, metrics={"loss": lambda *_: 0.0})
    with pytest.raises(ValueError, match=r"^data: "):
        evaluate(model, "a", [], loss=LOSS)
