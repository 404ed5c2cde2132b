"""A transformer block on one sequence, token by token and head by head: the oracle of what attends to what."""

import math

import torch


def turn_matrix(place, head_dim, pairing="correct", base=10000.0):
    """The linear map of one head's channels that rotary positions do at (t, h, w), entry by entry."""
    share = 2 * (head_dim // 3 // 2)
    half = share // 2
    out = torch.eye(head_dim, dtype=torch.float64)
    for axis in range(3):
        for channel in range(share):
            rank = channel % half if pairing == "released" else channel // 2
            angle = place[axis] * base ** (-rank / half)
            row = axis * share + channel
            out[row, row] = math.cos(angle)
            out[row, row + 1 if channel % 2 == 0 else row - 1] = (-1) ** (channel + 1) * math.sin(angle)
    return out


def place_of(token, grid):
    return token // (grid.h * grid.w), token // grid.w % grid.h, token % grid.w


def slow_block(block, tokens, sees, turns=None):
    """The pre-norm block on `[n, d]`, where query i sees key j if `sees(i, j)`, both turned if asked."""
    n, dim = tokens.shape
    q, k, v = block.attn.qkv(block.norm1(tokens)).chunk(3, dim=-1)
    heads = []
    for channels in torch.arange(dim).chunk(block.attn.num_heads):
        queries, keys = q[:, channels], k[:, channels]
        if turns is not None:
            queries, keys = (torch.stack([r @ x for r, x in zip(turns, part)]) for part in (queries, keys))
        rows = []
        for i in range(n):
            visible = [j for j in range(n) if sees(i, j)]
            weights = (keys[visible] @ queries[i] / math.sqrt(len(channels))).exp()
            rows.append(weights / weights.sum() @ v[visible][:, channels])
        heads.append(torch.stack(rows))
    tokens = tokens + block.attn.proj(torch.cat(heads, dim=-1))
    return tokens + block.mlp(block.norm2(tokens)[None])[0]


def same_with_gradients(fast, slow, wanted):
    """Values and the gradients of a random direction with respect to `wanted`."""
    torch.testing.assert_close(fast, slow)
    direction = torch.randn_like(fast)
    of_fast, of_slow = (
        torch.autograd.grad((out * direction).sum(), wanted, materialize_grads=True) for out in (fast, slow)
    )
    for ours, theirs in zip(of_fast, of_slow):
        torch.testing.assert_close(ours, theirs)
