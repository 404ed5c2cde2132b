"""Small learners and batches for the tests of this folder."""

import torch

from torchjepa.models import IJEPA
from torchjepa.nn import Predictor, ViT
from torchjepa.types import Batch, Masks


class RandomHalf:
    """Five visible tokens, two target blocks of two."""

    def __call__(self, grid, batch_size, generator):
        order = torch.rand(batch_size, grid.num_tokens, generator=generator).argsort(1)
        blocks = order[:, 5:9].reshape(batch_size, 2, 2)
        return Masks(order[:, :5].sort(1).values, blocks.sort(2).values)


def small_ijepa(depth=1, **changes):
    encoder = ViT(patch_size=4, embed_dim=16, depth=depth, num_heads=2)
    predictor = Predictor(encoder_dim=16, embed_dim=8, depth=1, num_heads=2)
    return IJEPA(encoder, predictor, **({"mask": RandomHalf()} | changes))


def images(b=6, size=(12, 16), num_views=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = tuple(torch.randn(b, 3, *size, generator=generator) for _ in range(num_views))
    return Batch(views, torch.arange(b), torch.full((b,), -1))
