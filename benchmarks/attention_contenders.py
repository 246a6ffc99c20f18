"""The attentions that `benchmarks/attention.py` times: ours, eq. 9 as written, and PyTorch's.

The PyTorch Nyström peers are the installed packages' own modules with their projections set
aside: the linear layers are replaced by ones that return the queries, keys and values given.
All start from tokens B N (H D) in memory, as a projection leaves them, and return such tokens.
"""

from functools import partial

import numpy as np

BATCH, HEADS, DEPTH = 1, 8, 64
OURS, PLAIN, JAX_EXACT = "ours", "eq. 9 in JAX", "exact, JAX"
HUGGING_FACE, LUCIDRAINS, TORCH_EXACT = "transformers", "nystrom-attention", "exact, PyTorch"
NYSTROM = (OURS, PLAIN, HUGGING_FACE, LUCIDRAINS)
TORCH_NYSTROM = (HUGGING_FACE, LUCIDRAINS)
EXACT = (JAX_EXACT, TORCH_EXACT)


def make_inputs(length, heads=HEADS):
    """Query, key, value and the output's cotangent, each B N H D, float32."""
    rng = np.random.default_rng(length)
    shape = BATCH, length, heads, DEPTH
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(4)]


def make(name, inputs, num_landmarks, backward):
    """A function of nothing that computes the output, or with `backward` also the gradients.

    What it returns has been computed: [out] or [out, d_query, d_key, d_value] of the framework.
    """
    if name in (*TORCH_NYSTROM, TORCH_EXACT):
        return _torch(name, inputs, num_landmarks, backward)
    return jax_call(_jax_function(name, num_landmarks), inputs, backward)


def to_numpy(name, results):
    """What `make`'s function returned, as NumPy arrays B N H D."""
    if name == LUCIDRAINS and len(results) > 1:
        results = [results[0], *results[1].chunk(3, dim=-1)]
    return [np.asarray(x).reshape(BATCH, x.shape[1], -1, DEPTH) for x in results]


def plain(query, key, value, num_landmarks, shared_scale=False):
    """Eq. 9 of Xiong et al. 2021 as anyone would write it down, N a multiple of num_landmarks.

    Products of tokens are in their dtype, what is summed, A and its inverse in float32 (or
    float64). With `shared_scale` eq. 8's norms are the largest over all heads, as in
    nystrom-attention.
    """
    import jax
    import jax.numpy as jnp

    dtype, wide = query.dtype, jnp.promote_types(query.dtype, jnp.float32)
    depth = query.shape[-1]
    product = partial(jnp.matmul, preferred_element_type=wide)
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    query = query / np.sqrt(depth).astype(dtype)
    q_landmarks, k_landmarks = (
        x.reshape(*x.shape[:2], num_landmarks, -1, depth).mean(axis=3, dtype=wide)
        for x in (query, key)
    )
    narrow_q, narrow_k = q_landmarks.astype(dtype), k_landmarks.astype(dtype)
    f = jax.nn.softmax(product(query, jnp.swapaxes(narrow_k, -1, -2))).astype(dtype)
    a = jax.nn.softmax(q_landmarks @ jnp.swapaxes(k_landmarks, -1, -2))
    g = jax.nn.softmax(product(narrow_q, jnp.swapaxes(key, -1, -2))).astype(dtype)
    axes = None if shared_scale else (-2, -1)
    norm = a.sum(axis=-2, keepdims=True).max(axes, keepdims=True)
    norm *= a.sum(axis=-1, keepdims=True).max(axes, keepdims=True)
    z = jnp.swapaxes(a, -1, -2) / norm
    eye = jnp.eye(num_landmarks, dtype=a.dtype)
    for _ in range(6):
        az = a @ z
        z = z / 4 @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
    out = product(f, (z @ product(g, value)).astype(dtype)).astype(dtype)
    return jnp.swapaxes(out, 1, 2)


def reference(inputs, num_landmarks):
    """Output and gradients of `plain` in float64, NumPy arrays B N H D."""
    import jax

    with jax.enable_x64(True):
        inputs = [x.astype(np.float64) for x in inputs]
        attention = partial(plain, num_landmarks=num_landmarks)
        return to_numpy(PLAIN, jax_call(attention, inputs, backward=True)())


def _jax_function(name, num_landmarks):
    import jax

    import nystrom

    return {
        OURS: partial(nystrom.nystrom_attention, num_landmarks=num_landmarks),
        PLAIN: partial(plain, num_landmarks=num_landmarks),
        "shared scale": partial(plain, num_landmarks=num_landmarks, shared_scale=True),
        JAX_EXACT: jax.nn.dot_product_attention,
    }[name]


def forward_and_backward(attention, query, key, value, d_out):
    """Output of an attention in JAX, and the three gradients."""
    import jax

    out, pull_back = jax.vjp(attention, query, key, value)
    return [out, *pull_back(d_out)]


def jax_call(attention, inputs, backward):
    """What `make` returns, for any attention (query, key, value) in JAX."""
    import jax

    def forward(query, key, value):
        return [attention(query, key, value)]

    function = partial(forward_and_backward, attention) if backward else forward
    arrays = jax.block_until_ready([jax.device_put(x) for x in inputs[: 4 if backward else 3]])
    compiled = jax.jit(function).lower(*arrays).compile()
    return lambda: jax.block_until_ready(compiled(*arrays))


def _torch(name, inputs, num_landmarks, backward):
    import torch

    length = inputs[0].shape[1]
    *tokens, d_out = (torch.from_numpy(x).reshape(BATCH, length, -1) for x in inputs)
    if name == LUCIDRAINS:
        tokens = [torch.cat(tokens, dim=-1)]  # what its one projection returns
    tokens = [x.requires_grad_(backward) for x in tokens]
    attention = torch_attention(name, length, num_landmarks, HEADS, DEPTH)

    def forward():
        with torch.no_grad():
            return [attention(*tokens)]

    def forward_and_backward():
        out = attention(*tokens)
        return [out.detach(), *torch.autograd.grad(out, tokens, d_out)]

    return forward_and_backward if backward else forward


def torch_attention(name, length, num_landmarks, heads, depth):
    """A PyTorch attention of tokens B N (H D): query, key and value, LUCIDRAINS' concatenated."""
    return {
        HUGGING_FACE: partial(_hugging_face, length, num_landmarks),
        LUCIDRAINS: partial(_lucidrains, num_landmarks),
        TORCH_EXACT: lambda heads, depth: partial(_torch_exact, depth=depth),
    }[name](heads, depth)


def _hugging_face(length, num_landmarks, heads, depth):
    from torch import nn
    from transformers.models.nystromformer import NystromformerConfig, modeling_nystromformer

    config = NystromformerConfig(
        hidden_size=heads * depth,
        num_attention_heads=heads,
        num_landmarks=num_landmarks,
        segment_means_seq_len=length,
    )
    module = modeling_nystromformer.NystromformerSelfAttention(config)
    # The config can't say either: no skip convolution, and eq. 8 per matrix at the same cost.
    module.conv_kernel_size, module.init_option = None, "exact"

    def attention(*tokens):
        for layer, x in zip(("query", "key", "value"), tokens, strict=True):
            setattr(module, layer, _Given(x))
        return module(tokens[0])[0]

    class _Given(nn.Module):
        def __init__(self, x):
            super().__init__()
            self.given = [x]

        def forward(self, _):
            return self.given[0]

    return attention


def _lucidrains(num_landmarks, heads, depth):
    from nystrom_attention import NystromAttention
    from torch import nn

    module = NystromAttention(
        dim=heads * depth,
        dim_head=depth,
        heads=heads,
        num_landmarks=num_landmarks,
        residual=False,
    )
    module.to_qkv = nn.Identity()  # given the concatenated tokens, of which it sees B and N only
    module.to_out = nn.Identity()
    return module


def _torch_exact(*tokens, depth):
    from torch.nn.functional import scaled_dot_product_attention

    heads = (x.unflatten(-1, (-1, depth)).transpose(1, 2) for x in tokens)
    return scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
