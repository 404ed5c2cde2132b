"""V-JEPA and V-JEPA 2 sample by sample and head by head in float64 NumPy: the oracle of their training step."""

import numpy as np
from scipy.special import erf


def layer_norm(x, scale=1.0, shift=0.0, eps=1e-6):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps) * scale + shift


def normed(w, name, x):
    return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"])


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attention(w, name, x, num_heads, turns):
    n, dim = x.shape
    q, k, v = np.split(linear(w, f"{name}.qkv", x), 3, axis=1)
    out = np.zeros((n, dim))
    for head in range(num_heads):
        e = dim // num_heads
        channels = slice(head * e, (head + 1) * e)
        queries, keys = q[:, channels], k[:, channels]
        if turns is not None:
            queries, keys = (
                np.stack([turn @ each for turn, each in zip(turns, part)]) for part in (queries, keys)
            )
        for i in range(n):
            weights = np.exp(keys @ queries[i] / np.sqrt(e))
            out[i, channels] = weights / weights.sum() @ v[:, channels]
    return linear(w, f"{name}.proj", out)


def blocks(w, x, num_heads, turns):
    depth = len({name.split(".")[1] for name in w if name.startswith("blocks.")})
    for i in range(depth):
        x = x + attention(w, f"blocks.{i}.attn", normed(w, f"blocks.{i}.norm1", x), num_heads, turns)
        hidden = linear(w, f"blocks.{i}.mlp.fc1", normed(w, f"blocks.{i}.norm2", x))
        x = x + linear(w, f"blocks.{i}.mlp.fc2", hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))))
    return normed(w, "norm", x)


class Positions:
    """A table that is added to tokens, or matrices that turn queries and keys."""

    def __init__(self, table=None, turns=None):
        self.table, self.turns = table, turns

    def add(self, x, ids):
        return x if self.table is None else x + self.table[ids]

    def turn(self, ids):
        return None if self.turns is None else self.turns[ids]


def encode(w, clip, ids, patch, positions, num_heads=2):
    """Tokens of the patches `ids` of a clip `[c, t, h, w]`."""
    pt, ph, pw = patch
    rows, columns = clip.shape[2] // ph, clip.shape[3] // pw
    tokens = []
    for i in ids:
        t, row, column = i // (rows * columns) * pt, i // columns % rows * ph, i % columns * pw
        pixels = clip[:, t : t + pt, row : row + ph, column : column + pw]
        tokens.append(linear(w, "patch_embed", pixels.reshape(-1)))
    return blocks(w, positions.add(np.stack(tokens), ids), num_heads, positions.turn(ids))


def predict(w, context, context_ids, target_ids, positions, mask_token, num_heads=2):
    seen = positions.add(linear(w, "embed", context), context_ids)
    asked = positions.add(np.repeat(w["mask_token"][mask_token], len(target_ids), axis=0), target_ids)
    turns = positions.turn(np.concatenate([context_ids, target_ids]))
    out = blocks(w, np.concatenate([seen, asked]), num_heads, turns)
    return linear(w, "proj", out[len(context_ids) :])


def masked_loss(encoder, predictor, targets, clips, masks, mask_tokens, patch, positions):
    """Mean |z - h| within a mask, then over the masks.

    `targets` are all normalised target tokens `[b, n, d]`, `masks` pairs of context and target ids `[b, ...]`, and
    `positions` those of encoder and predictor.
    """
    means = []
    for (context_ids, target_ids), mask_token in zip(masks, mask_tokens):
        errors = []
        for clip, seen, asked, wanted in zip(clips, context_ids, target_ids, targets):
            context = encode(encoder, clip, seen, patch, positions[0])
            z = predict(predictor, context, seen, asked, positions[1], mask_token)
            errors.append(np.abs(z - wanted[asked]))
        means.append(np.mean(errors))
    return np.mean(means)
