"""Weights of the official code and of transformers by our names, written by hand for the tests of the networks."""

from pathlib import Path

import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parents[1] / "fixtures" / "official"
# Official names of the parts that are called otherwise, in the order of replacing.
OFFICIAL = {
    "module.": "",
    "backbone.": "",
    "predictor_": "",
    "patch_embed.proj.": "patch_embed.",
    "action_encoder.": "action_embed.",
    "state_encoder.": "state_embed.",
    "extrinsics_encoder.": "extrinsics_embed.",
    "query_tokens": "queries",
    "cross_attention_block.xattn.": "cross.",
    "cross_attention_block.": "cross.",
}
TRANSFORMERS = {
    "embeddings.patch_embeddings.proj.": "patch_embed.",
    "embeddings.predictor_embeddings.": "embed.",
    "embeddings.mask_tokens": "mask_token",
    "cross_attention_layer.cross_attn.": "cross.",
    "cross_attention_layer.": "cross.",
    "self_attention_layers.": "blocks.",
    "self_attn.out_proj.": "attn.proj.",
    "self_attn.": "attn.",
    "layer.": "blocks.",
    "attention.": "attn.",
    "layer_norm": "norm",
    "layernorm.": "norm.",
    "query_tokens": "queries",
    "q_proj.": "query.",
    "k_proj.": "key.",
    "v_proj.": "value.",
}


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def outputs(name):
    """Inputs and outputs of the official code."""
    return load_file(FOLDER / f"{name}_io.safetensors")


def weights(file, part):
    """Tensors of one network of an official file by our names, in our shapes, and its position table if it has one."""
    state = torch.load(FOLDER / file, weights_only=True)[part]
    named = renamed(state[0] if isinstance(state, list) else state, OFFICIAL)
    table = named.pop("pos_embed", None)
    tokens = [named.pop(name) for name in sorted(named) if name.startswith("mask_tokens.")]
    return (named | {"mask_token": torch.cat(tokens)} if tokens else named), table


def from_transformers(values):
    """Tensors by our names, in our shapes: queries, keys and values are one; those of cross-attention are two."""
    named = renamed(values, TRANSFORMERS)
    for query in [name for name in named if ".query." in name]:
        q, k, v = (named.pop(query.replace("query", part)) for part in ("query", "key", "value"))
        if query.startswith("cross.") or ".cross." in query:
            named |= {query.replace("query", "q"): q, query.replace("query", "kv"): torch.cat([k, v])}
        else:
            named[query.replace("query", "qkv")] = torch.cat([q, k, v])
    if "mask_token" in named:
        named["mask_token"] = named["mask_token"].squeeze(1)
    return named


def renamed(values, table):
    named = {}
    for name, value in values.items():
        for theirs, ours in table.items():
            name = name.replace(theirs, ours)
        named[name] = value.flatten(1) if name == "patch_embed.weight" else value
    return named


def gradients_close(ours, theirs, tolerance=1e-5):
    """The gradients of a network against those of its original by transformers, parameter for parameter."""
    wanted = from_transformers({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], atol=tolerance, rtol=1e-4, msg=name)
