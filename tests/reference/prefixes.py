"""A literal computation of models that read a prefix of keys and values before the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


def llama(model: Any, row: list[int], prefix: Tensor) -> Tensor:
    """Compute a row's logits `(tokens, vocabulary)` with a prefix `(layers, 2, L, width)` in the cache."""
    config, places = model.config, torch.arange(prefix.shape[2])[None]
    heads = (1, -1, config.num_key_value_heads, config.hidden_size // config.num_attention_heads)
    cos, sin = model.model.rotary_emb(prefix, places)
    cache = DynamicCache(config=config)
    for layer, (keys, values) in enumerate(prefix):
        turned = apply_rotary_pos_emb(
            keys.view(heads).transpose(1, 2), keys.view(heads).transpose(1, 2), cos, sin
        )[1]
        cache.update(turned, values.view(heads).transpose(1, 2), layer)
    return model(input_ids=torch.tensor([row]), past_key_values=cache).logits[0]


def t5_encoder(model: Any, row: list[int], prefix: Tensor) -> Tensor:
    """Compute the encoder's states `(tokens, d)` of a row; its keys and values follow those of the prefix."""
    encoder, config = model.encoder, model.config
    length, tokens = prefix.shape[2], len(row)
    h = encoder.embed_tokens(torch.tensor(row))
    first = encoder.block[0].layer[0].SelfAttention
    # distances from a position in the input to the positions of the prefix and of the input
    bias = first.compute_bias(length + tokens, length + tokens)[0][:, length:, :]
    for block, (own_keys, own_values) in zip(encoder.block, prefix, strict=True):
        attention, feed = block.layer[0].SelfAttention, block.layer[1]
        normed = block.layer[0].layer_norm(h)
        keys = torch.cat([own_keys, attention.k(normed)])
        values = torch.cat([own_values, attention.v(normed)])
        outputs = []
        for head in range(config.num_heads):
            part = slice(head * config.d_kv, (head + 1) * config.d_kv)
            scores = attention.q(normed)[:, part] @ keys[:, part].T + bias[head]
            weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
            outputs.append(weights @ values[:, part])
        h = h + attention.o(torch.cat(outputs, dim=-1))
        h = h + feed.DenseReluDense.wo(torch.relu(feed.DenseReluDense.wi(feed.layer_norm(h))))
    scale = encoder.final_layer_norm
    return scale.weight * h / torch.sqrt((h * h).mean(dim=-1, keepdim=True) + scale.variance_epsilon)
