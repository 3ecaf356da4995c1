"""The Transformer without gradients, for acting and judging: the same numbers as its modules give, in fewer operations.

One token of a small network is so little work that starting its operations takes longer than the operations. So no
modules are called here, scaling and mask go along with a product, and keys and values are laid out once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 64  # rows of scores, up to which one operation is faster than the five that it consists of
SHORT = 8192  # numbers, up to which the plain way to GELU is the faster one
Memory = list[tuple[Tensor, Tensor]]  # keys and values (B, heads, tokens, size) of each layer
Network = Any  # a PolicyNetwork, which imports this file
Weights = tuple[tuple[Any, ...], ...]  # of a layer, see `Layer.weights`


def softmax(scores: Tensor) -> Tensor:
    """Over the last dimension, without gradient. PyTorch's own takes seven times as long on a CPU where rows are many
    and short, as those of attention to a dozen tokens are."""
    plain = scores.device.type == "cpu" and scores.dtype == torch.float32  # others would be rounded at each step
    if not plain or scores.numel() <= FEW * scores.shape[-1]:
        return scores.softmax(-1)
    found = (scores - scores.amax(-1, keepdim=True)).exp_()
    return found.div_(found.sum(-1, keepdim=True))


def gelu(x: Tensor) -> Tensor:
    """x (n, width). What is contiguous on a CPU goes to oneDNN, which takes longer to begin than a token's numbers do;
    transposed it does not."""
    if x.device.type != "cpu" or x.numel() > SHORT:
        return F.gelu(x)
    return F.gelu(x.view(2, -1).t()).t().view(x.shape)


def beyond(x: Tensor, attended: Tensor, weights: Weights) -> Tensor:
    """A layer's output from its input x and what its heads have read, both (n, width)."""
    _, _, (out, out_bias), norm, (wide, wide_bias), (narrow, narrow_bias) = weights
    x = torch.addmm(out_bias, attended, out) + x
    hidden = gelu(torch.addmm(wide_bias, torch.layer_norm(x, *norm), wide))
    return torch.addmm(narrow_bias, hidden, narrow) + x


@torch.no_grad()
def remember(network: Network, tokens: Tensor) -> Memory:
    """`PolicyNetwork.remember` of tokens (B, P, width). Keys and values are laid out as they are read: all of a head's
    tokens beside each other."""
    memory: Memory = []
    rows, places, width = tokens.shape
    heads, x = network.config.heads, tokens.flatten(0, 1)
    shape = (rows, places, -1, heads, width // heads)
    *layers, last = (layer.weights() for layer in network.layers)
    none = None
    for weights in layers:
        norm, (qkv, bias), *_ = weights
        found = torch.addmm(bias, torch.layer_norm(x, *norm), qkv).view(shape).permute(2, 0, 3, 1, 4).contiguous()
        memory.append((found[1], found[2]))
        queries, keys, values = found.flatten(1, 2)  # (B * heads, P, size)
        none = queries.new_zeros(1, 1, 1) if none is None else none
        scores = torch.baddbmm(none, queries, keys.transpose(1, 2), beta=0, alpha=(width // heads) ** -0.5)
        attended = torch.bmm(softmax(scores).to(values.dtype), values).view(rows, heads, places, -1)
        x = beyond(x, attended.transpose(1, 2).reshape(-1, width), weights)
    norm, (qkv, bias), *_ = last  # whose own output nobody needs
    found = torch.addmm(bias[width:], torch.layer_norm(x, *norm), qkv[:, width:])
    keys, values = found.view(shape).permute(2, 0, 3, 1, 4).contiguous()
    return [*memory, (keys, values)]


class Decoding:
    """The next action's dimensions, first come first: `step` after `step`, each token computed once (key-value cache).

    Knows of nothing but weights: what they are under autocast, and on any device, they are here."""

    @torch.no_grad()
    def __init__(self, network: Network, memory: Memory, dims: int) -> None:
        """memory: as `PolicyNetwork.encode` gives it; dims: how many steps there will be at most."""
        self.network, self.place = network, 0
        rows, heads, seen, size = memory[0][0].shape
        self.rows, self.width, self.shape, self.scale = rows, heads * size, (rows, 3, heads, size), size**-0.5
        later = memory[0][0].new_full((dims, seen + dims), -torch.inf).triu_(seen + 1)  # what is not there yet
        self.masks = later[:, None, None].unbind()
        self.layers = []
        for layer, (keys, values) in zip(network.layers, memory, strict=True):
            kept = keys.new_zeros(3, rows, heads, seen + dims, size)  # queries, of which only the steps' own, too
            kept[1, :, :, :seen], kept[2, :, :, :seen] = keys, values
            own = kept[:, :, :, seen:].unbind(3)  # (3, B, heads, size) of each step
            queries, keys, values = kept.flatten(1, 2)  # (B * heads, tokens, size)
            asked = queries[:, seen:].split(1, dim=1)
            self.layers.append((own, asked, keys.transpose(1, 2), values, layer.weights()))

    @torch.no_grad()
    def step(self, previous: Tensor | None = None) -> Tensor:
        """Hidden states (B, width) of the next dimension. previous: bins (B,) of the one before it; none of the
        first."""
        network, place, mask = self.network, self.place, self.masks[self.place]
        self.place += 1
        x = network.dimensions[place].expand(self.rows, -1)
        if previous is not None:
            x = F.embedding(previous + network.config.bins * (place - 1), network.actions.weight) + x
        for own, asked, keys, values, weights in self.layers:
            norm, (qkv, bias), *_ = weights
            found = torch.addmm(bias, torch.layer_norm(x, *norm), qkv)
            own[place].copy_(found.view(self.shape).transpose(0, 1))
            attention = softmax(torch.baddbmm(mask, asked[place], keys, alpha=self.scale))
            x = beyond(x, torch.bmm(attention.to(values.dtype), values).view(self.rows, self.width), weights)
        return normed(network, x)


@torch.no_grad()
def first(network: Network, memory: Memory) -> Tensor:
    """What `Decoding`'s first step gives, (B, width), without laying the memory out for more."""
    rows, heads, seen, size = memory[0][0].shape
    x = network.dimensions[0].expand(rows, -1)
    for layer, past in zip(network.layers, memory, strict=True):
        weights = layer.weights()
        norm, (qkv, bias), *_ = weights
        found = torch.addmm(bias, torch.layer_norm(x, *norm), qkv).view(rows, 3, heads, size)
        queries, key, value = (part.reshape(rows * heads, 1, size) for part in found.unbind(1))
        keys, values = (part.reshape(rows * heads, seen, size) for part in past)
        queries = queries * size**-0.5
        scores = torch.cat([torch.bmm(queries, keys.transpose(1, 2)), (queries * key).sum(-1, keepdim=True)], dim=-1)
        attention = softmax(scores).to(values.dtype)
        attended = torch.bmm(attention[..., :seen], values).addcmul_(attention[..., seen:], value)
        x = beyond(x, attended.view(rows, heads * size), weights)
    return normed(network, x)


def normed(network: Network, x: Tensor) -> Tensor:
    norm = network.norm
    return torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
