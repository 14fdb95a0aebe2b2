"""Stands for xformers' attention: torch's."""

from torch.nn.functional import scaled_dot_product_attention


def memory_efficient_attention(query, key, value, attn_bias=None, op=None):
    return scaled_dot_product_attention(query, key, value, attn_bias)
