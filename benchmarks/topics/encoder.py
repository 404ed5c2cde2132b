"""I-JEPA's encoder, ViT-Ti/16 at 224, batch 16, beside transformers' own class with the same weights

Forward alone as in judging, and forward with the gradients of all weights. Ours in bf16 is under autocast.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import Comparison, Contenders, count_products, products, relative_distance
from benchmarks.topics.step import TINY_224, Setting
from torchjepa.nn import ViT
from torchjepa.nn.positions import sincos_positions

_NAMES = {
    "patch_embed": "embeddings.patch_embeddings.projection",
    "blocks": "layers",
    "attn.proj": "attention.o_proj",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}


def transformers_encoder(vit: ViT, setting: Setting) -> nn.Module:
    """`transformers`' I-JEPA with our weights.

    Args:
        vit: ours.
        setting: its sizes.
    """
    from transformers import IJepaConfig, IJepaModel

    config = IJepaConfig(
        hidden_size=setting.dim,
        num_hidden_layers=setting.depth,
        num_attention_heads=setting.num_heads,
        intermediate_size=4 * setting.dim,
        image_size=setting.image_size,
        patch_size=setting.patch_size,
        layer_norm_eps=1e-6,
        attn_implementation="sdpa",
    )
    network = IJepaModel(config, add_pooling_layer=False)
    own = network.state_dict()
    own["embeddings.position_embeddings"] = sincos_positions(setting.grid, setting.dim).float()[None]
    for name, value in vit.state_dict().items():
        for ours, theirs in _NAMES.items():
            name = name.replace(ours, theirs)
        if "attn.qkv" in name:
            for part, rows in zip("qkv", value.chunk(3)):
                own[name.replace("attn.qkv", f"attention.{part}_proj")] = rows
        else:
            name = "layernorm" + name.removeprefix("norm") if name.startswith("norm.") else name
            own[name] = value.view_as(own[name])
    network.load_state_dict(own)
    return network


def tokens_and_gradients(
    network: nn.Module, x: Tensor, *, backward: bool, autocast: bool = False
) -> tuple[Tensor, ...]:
    """One call: tokens, and with `backward` the gradient of the input's embedding, which comes through all layers."""
    with torch.set_grad_enabled(backward):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            tokens = network(x)
        tokens = tokens if isinstance(tokens, Tensor) else tokens.last_hidden_state
        if not backward:
            return (tokens,)
        named = dict(network.named_parameters())
        embedding = next(name for name in named if name.endswith(("patch_embed.weight", "projection.weight")))
        wanted = [named.pop(embedding), *named.values()]
        pattern = torch.linspace(-1, 1, tokens.shape[-1], dtype=tokens.dtype).expand_as(tokens)
        return tokens, *torch.autograd.grad(tokens, wanted, pattern, allow_unused=True)


def build(backward: bool, autocast: bool) -> Contenders:
    vit = TINY_224.encoder()
    other, x = transformers_encoder(vit, TINY_224), TINY_224.images()
    ours = partial(tokens_and_gradients, vit, x, backward=backward, autocast=autocast)
    theirs = partial(tokens_and_gradients, other, x, backward=backward)
    deviation = max(relative_distance([a.flatten()], [b.flatten()]) for a, b in zip(ours()[:2], theirs()[:2]))
    return Contenders(ours, theirs, products(count_products(ours)), deviation)


def comparisons() -> Iterator[Comparison]:
    for backward in (False, True):
        what = "forward and backward" if backward else "forward"
        yield Comparison(
            f"{what}, float32 both",
            "transformers",
            partial(build, backward, False),
            goal=1.05,
            tolerance=1e-4,
            bar=0.9,
            pairs=7,
        )
        yield Comparison(
            f"{what}, ours bf16, theirs float32",
            "transformers",
            partial(build, backward, True),
            goal=2.0,
            tolerance=5e-2,
        )
