"""The networks of the paper's experiments; each task has its own head, and its own input layers where shapes differ."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rsn2.nn import PerTask

PADDING = 0
"""The word number of what is no word."""


def drawn(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What ``build`` makes, initialised as the paper's framework, Keras, does by default.

    Weights are uniform in +-sqrt(6 / (fan in + fan out)) (Glorot and Bengio 2010) and biases 0, embeddings uniform in
    +-0.05. Torch's own initial weights are smaller by a factor of 1.7 in a square layer, which six layers in a row
    multiply. The global generator goes on as before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.MultiheadAttention):
                for weight in module.in_proj_weight.chunk(3):
                    nn.init.xavier_uniform_(weight)
            elif isinstance(module, nn.Embedding):
                nn.init.uniform_(module.weight, -0.05, 0.05)
    return model


def heads(features: int, outputs: Mapping[str, int]) -> PerTask:
    """A linear layer for each task: task -> number of outputs."""
    return PerTask({task: nn.Linear(features, count) for task, count in outputs.items()})


class FullyConnected(nn.Module):
    """Six layers of 1000 units with ReLU, then the task's head (the paper's sections 3.2 and 3.4).

    Inputs of each width have a first layer of their own, ``first.<width>``; the other five are ``hidden.0`` to
    ``hidden.4``.

    Args:
        widths: of the inputs, flattened.
        outputs: task -> number of outputs.
        before: task -> what its inputs go through first, such as an embedding; it is the task's own.
    """

    def __init__(
        self,
        widths: Sequence[int],
        outputs: Mapping[str, int],
        before: Mapping[str, nn.Module] | None = None,
        units: int = 1000,
        layers: int = 6,
    ):
        super().__init__()
        self.first = nn.ModuleDict({str(width): nn.Linear(width, units) for width in widths})
        self.hidden = nn.ModuleList(nn.Linear(units, units) for _ in range(layers - 1))
        self.head = heads(units, outputs)
        self.before: nn.Module = nn.Identity()
        if before:
            self.before = PerTask({task: before.get(task, nn.Identity()) for task in outputs})

    def forward(self, x: Tensor) -> Tensor:
        """``[n, ...]`` of the active task to ``[n, outputs]``."""
        x = self.before(x).flatten(1)
        x = F.relu(self.first[str(x.shape[1])](x))
        for layer in self.hidden:
            x = F.relu(layer(x))
        out: Tensor = self.head(x)
        return out


class Permutation(nn.Module):
    """The pixels of an image in another order, drawn from ``seed``; 0 leaves them as they are."""

    order: Tensor

    def __init__(self, pixels: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(pixels, generator=generator, device="cpu")
        self.register_buffer("order", drawn if seed else torch.arange(pixels))

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[n, ...]`` to ``[n, pixels]``."""
        return x.flatten(1)[:, self.order]


class Jitter(nn.Module):
    """While the network trains, each image as it might have been taken, too: moved by chance, one way or the other.

    With probability 1/2 left is right as well. What comes into sight beyond an edge continues the edge.

    Args:
        turn: radians at most.
        zoom: share by which it is larger or smaller at most.
        shift: share of its side by which it is moved at most, along each side.
    """

    def __init__(self, turn: float, zoom: float, shift: float):
        super().__init__()
        self.turn, self.zoom, self.shift = turn, zoom, shift

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[n, channels, height, width]`` to such."""
        if not self.training:
            return x
        turn, zoom, right, down, side = torch.rand(5, len(x), device=x.device) * 2 - 1
        angle, scale, mirror = self.turn * turn, 1 + self.zoom * zoom, side.sign()
        cos, sin = scale * angle.cos(), scale * angle.sin()
        # Where each pixel comes from; a side is 2 long.
        rows = (mirror * cos, -sin, 2 * self.shift * right), (mirror * sin, cos, 2 * self.shift * down)
        origins = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
        grid = F.affine_grid(origins, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


class Convolutional(nn.Module):
    """Blocks of two 3 x 3 convolutions and a maximum over 2 x 2, then fully connected layers, all with ReLU; a head.

    Args:
        image: channels and side of the input.
        filters: of each block.
        padding: of each convolution; 1 keeps the shape.
        units: of each fully connected layer.
        outputs: task -> number of outputs.
        before: what images go through first, such as :class:`Jitter`.
    """

    def __init__(
        self,
        image: tuple[int, int],
        filters: Sequence[int],
        padding: int,
        units: Sequence[int],
        outputs: Mapping[str, int],
        before: nn.Module | None = None,
    ):
        super().__init__()
        channels, side = image
        self.before = before or nn.Identity()
        blocks: list[nn.Module] = []
        for count in filters:
            for inputs in (channels, count):
                blocks += [nn.Conv2d(inputs, count, 3, padding=padding), nn.ReLU()]
            blocks.append(nn.MaxPool2d(2))
            channels, side = count, (side + 4 * (padding - 1)) // 2
        self.convolutions = nn.Sequential(*blocks)
        sizes = (channels * side * side, *units)
        self.connected = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.head = heads(units[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[n, channels, side, side]`` to ``[n, outputs]`` of the active task."""
        x = self.convolutions(self.before(x)).flatten(1)
        for layer in self.connected:
            x = F.relu(layer(x))
        out: Tensor = self.head(x)
        return out


class Words(nn.Module):
    """Vectors of words and of their places in a text, added: each ``[n]`` to ``[n, size]``."""

    def __init__(self, words: int, length: int, size: int):
        super().__init__()
        self.word = nn.Embedding(words, size)
        self.place = nn.Embedding(length, size)

    def forward(self, word: Tensor, place: Tensor) -> Tensor:
        """The vectors of words by their numbers."""
        total: Tensor = self.word(word) + self.place(place)
        return total


class Transformer(nn.Module):
    """One encoder layer over words; the mean over a text's words goes to the output layer.

    On a CPU texts run in groups of similar length, each cut behind its longest, since padding is most of what is there.
    A GPU takes all of them at once: many calls of as many lengths keep its host busier than padding keeps it.

    Args:
        task: whose embeddings these are; they are not pruned.
        words, length, size: numbers of words and places, size of their vectors.
        attention_heads, feed_forward, dropout: of the encoder layer.
        outputs: number of classes.
        group: texts that run together on a CPU.
    """

    def __init__(
        self,
        task: str,
        words: int,
        length: int,
        size: int,
        attention_heads: int,
        feed_forward: int,
        dropout: float,
        outputs: int,
        group: int = 8,
    ):
        super().__init__()
        self.words = PerTask({task: Words(words, length, size)})
        self.encoder = nn.TransformerEncoderLayer(size, attention_heads, feed_forward, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(size, outputs)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Word numbers ``[n, length]``, padded at the end, to ``[n, outputs]``."""
        lengths, order = (x != PADDING).sum(1).clamp(min=1).sort()
        place = torch.arange(x.shape[1], device=x.device).expand_as(x)
        there = place < lengths.unsqueeze(1)
        # All words of the batch at once: a look-up has a gradient as large as all embeddings.
        texts = list(self.words(x[order][there], place[there]).split(lengths.tolist()))
        group = self.group if x.device.type == "cpu" else len(texts)
        parts = [self._means(texts[first : first + group]) for first in range(0, len(texts), group)]
        out: Tensor = self.output(self.dropout(torch.cat(parts)[order.argsort()]))
        return out

    def _means(self, texts: list[Tensor]) -> Tensor:
        """The mean vector of each text, ``[n, size]``, of its words' vectors ``[length, size]``."""
        vectors = pad_sequence(texts, batch_first=True)
        lengths = torch.tensor([len(text) for text in texts], device=vectors.device).unsqueeze(1)
        padding = torch.arange(vectors.shape[1], device=vectors.device) >= lengths
        encoded: Tensor = self.encoder(vectors, src_key_padding_mask=padding)
        return encoded.masked_fill(padding.unsqueeze(2), 0.0).sum(1) / lengths
