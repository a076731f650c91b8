"""Embeddings are not pruned: one per task, or one for all, frozen. In the shapes of the paper's text networks."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rsn2
from networks import assert_same, snapshot
from rsn2.nn import MultitaskLinear, PerTask

WORDS, TOKENS = 10000, 128
LOSS = nn.functional.cross_entropy


def reviews(count: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(WORDS, (count, TOKENS), generator=generator), torch.randint(2, (count,), generator=generator)


def digits(count: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 784, generator=generator), torch.randint(10, (count,), generator=generator)


def several_inputs() -> nn.Sequential:
    """Images and reviews in one network: an input layer and a head of each task's own, the reviews' with embedding."""
    torch.manual_seed(0)
    words = nn.Sequential(nn.Embedding(WORDS, 2), nn.Flatten(), nn.Linear(2 * TOKENS, 40))
    return nn.Sequential(
        PerTask({"digits": nn.Linear(784, 40), "reviews": words}),
        nn.ReLU(),
        nn.Linear(40, 40),
        nn.ReLU(),
        nn.Linear(40, 40),
        nn.ReLU(),
        PerTask({"digits": nn.Linear(40, 10), "reviews": nn.Linear(40, 2)}),
    )


def test_a_task_of_words_and_one_of_pixels_live_in_one_network(tmp_path: Path) -> None:
    model = rsn2.convert(several_inputs())
    data = {"digits": digits(), "reviews": reviews()}
    for task, batch in data.items():
        rsn2.allocate(model, task, 0.2, LOSS, [batch])
    embedding = model[0].of("reviews")[0]
    assert type(embedding) is nn.Embedding
    assert any(parameter is embedding.weight for parameter in rsn2.parameters(model, "reviews"))
    before = embedding.weight.detach().clone()
    rsn2.fit(model, "digits", data["digits"], loss=LOSS, epochs=1)
    assert torch.equal(embedding.weight, before)
    rsn2.fit(model, "reviews", data["reviews"], loss=LOSS, epochs=1)
    seen = torch.zeros(WORDS, dtype=torch.bool).index_fill_(0, data["reviews"][0].unique(), True)
    assert torch.equal((embedding.weight != before).any(1), seen), "words that occur, and no others"
    rsn2.save(model, tmp_path / "net.safetensors")
    assert_same(snapshot(model), snapshot(rsn2.load(tmp_path / "net.safetensors", several_inputs())))


class Tokens(nn.Module):
    """Embeddings of tokens and of positions, added."""

    def __init__(self, vocabulary: int, length: int, width: int):
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.token(tokens) + self.position(torch.arange(tokens.shape[-1], device=tokens.device))
        return embedded


class News(nn.Module):
    """A text classifier: embeddings, one encoder layer, the mean over the tokens, two linear layers."""

    def __init__(self, vocabulary: int = 300, length: int = 24, width: int = 32, hidden: int = 1028, classes: int = 5):
        super().__init__()
        self.embed = Tokens(vocabulary, length, width)
        self.encoder = nn.TransformerEncoderLayer(width, 8, hidden, dropout=0.1, batch_first=True)
        self.fc = nn.Linear(width, 20)
        self.head = nn.Linear(20, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0)
        classes: Tensor = self.head(torch.relu(self.fc(x.mean(1))))
        return classes


def plain_news() -> nn.Module:
    torch.manual_seed(0)
    return News()


def news(count: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, 300, (count, 24), generator=generator)
    tokens[::2, 12:] = 0
    return tokens, torch.randint(5, (count,), generator=generator)


def test_only_the_feed_forward_and_later_layers_of_a_transformer_are_pruned(tmp_path: Path) -> None:
    """The paper's form: embeddings, attention and head of each task's own and dense, warmed up before the choice."""
    model = rsn2.convert(plain_news(), per_task=["embed", "encoder.self_attn", "head"])
    layers = {name for name, module in model.named_modules() if isinstance(module, MultitaskLinear)}
    assert layers == {"encoder.linear1", "encoder.linear2", "fc"}
    data = news()
    start = rsn2.warm_up(model, "news", data, loss=LOSS, epochs=2)
    counts = rsn2.allocate(model, "news", 0.1, LOSS, [data], start=start)
    assert counts == {"encoder.linear1": 3290, "encoder.linear2": 3290, "fc": 64}
    assert torch.equal(model.embed.of("news").token.weight, start.modules["embed"]["token.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = rsn2.fit(model, "news", data, loss=LOSS, epochs=5)
    assert history.train_loss[-1] < start.train_loss[0]
    rsn2.save(model, tmp_path / "net.safetensors")
    again = rsn2.load(tmp_path / "net.safetensors", plain_news())
    assert torch.equal(rsn2.predict(model, "news", data[0]), rsn2.predict(again, "news", data[0]))


def test_an_embedding_that_all_tasks_share_is_frozen_without_a_word() -> None:
    plain = plain_news()
    plain.embed.requires_grad_(False)
    model = rsn2.convert(plain, per_task=["head"])
    assert rsn2.shared_parameters(model) == {}
    before = {name: tensor.clone() for name, tensor in model.embed.state_dict().items()}
    for task in ("a", "b"):
        rsn2.allocate(model, task, 0.4, LOSS, [news()])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rsn2.fit(model, task, news(), loss=LOSS, epochs=1)
    assert_same(before, model.embed.state_dict())
    assert not any(parameter.requires_grad for parameter in model.embed.parameters())


def test_an_embedding_that_all_tasks_share_and_is_not_frozen_is_told_of() -> None:
    model = rsn2.convert(plain_news(), per_task=["head"])
    rsn2.allocate(model, "a", 0.4, LOSS, [news()])
    with pytest.warns(UserWarning, match=r"does not train what all tasks share: \['embed.position.weight', 'embed"):
        rsn2.fit(model, "a", news(), loss=LOSS, epochs=1)
