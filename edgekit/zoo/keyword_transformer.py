"""Keyword Transformer: Berg, O'Connor and Cruz, "Keyword Transformer: A Self-Attention Model for Keyword Spotting", 2021.

KWT-1 of table 1: 98 steps of 40 cepstral coefficients are the words of a small vision transformer whose layers normalize behind
their sums; its class token gives the outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgekit.zoo.initialization import he_normal


class Attention(nn.Module):
    """Multi-head self-attention over (batch, steps, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(2, (self.heads, self.size)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(2, 3) / self.size**0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Attention and a perceptron, each with a shortcut and a layer norm behind the sum: figure 1."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.narrow(F.gelu(self.wide(x))))


class KeywordTransformer(nn.Module):
    """A linear embedding of each time step, a class token, learned positions, encoder layers, one linear layer.

    Args:
        width: Of the embedding; 64 for each head in the paper.
        heads: Of the attention.
        layers: Of the encoder.
        steps: Time steps.
        coefficients: Of each.
        classes: Outputs: ten words, an unknown one, and silence.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        heads: int = 1,
        layers: int = 12,
        steps: int = 98,
        coefficients: int = 40,
        classes: int = 12,
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(coefficients, width)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, steps + 1, width))
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(layers)))
        self.classifier = nn.Linear(width, classes)
        he_normal(self)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.classifier(self.layers(x)[:, 0])
