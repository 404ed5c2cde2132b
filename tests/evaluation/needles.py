"""Tokens among which one carries the class, where only attention can tell which."""

import torch

from torchjepa.evaluation import Tokens


def needles(num: int, *, seed: int = 0, num_tokens: int = 12, dim: int = 24, num_classes: int = 4) -> Tokens:
    """Noise, and at two random places of each sample a mark with a word.

    Beside the true mark stands the word of the class, beside the false one that of another class: the mean over tokens
    holds both and cannot say which is which.
    """
    words = torch.Generator().manual_seed(99)
    marks = torch.randn(2, dim, generator=words)
    meanings = torch.randn(num_classes, dim, generator=words)
    draw = torch.Generator().manual_seed(seed)
    x = 0.5 * torch.randn(num, num_tokens, dim, generator=draw)
    label = torch.randint(num_classes, (num,), generator=draw)
    other = (label + torch.randint(1, num_classes, (num,), generator=draw)) % num_classes
    place = torch.rand(num, num_tokens, generator=draw).argsort(dim=1)
    rows = torch.arange(num)
    x[rows, place[:, 0]] += 2 * (marks[0] + meanings[label])
    x[rows, place[:, 1]] += 2 * (marks[1] + meanings[other])
    return Tokens(x, label, rows)
