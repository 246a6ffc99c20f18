"""Nyström attention as a plain function, where jax.nn.dot_product_attention stood."""

import jax
import jax.numpy as jnp

import nystrom

keys = jax.random.split(jax.random.key(0), 3)
# Tokens that change slowly, as those of a text or a signal do: neighbours resemble one another.
steps = (jax.random.normal(each, (2, 2048, 4, 32)) for each in keys)
query, key, value = (0.1 * jnp.cumsum(step, axis=1) for step in steps)
lengths = jnp.array([2048, 1500])
is_real = jnp.arange(2048) < lengths[:, None]  # False: padding


@jax.jit
def loss(query, key, value):
    out = nystrom.nystrom_attention(query, key, value, mask=is_real, num_landmarks=64)
    return jnp.mean(out**2)


print(f"loss {loss(query, key, value):.5f}")
gradient = jax.grad(loss)(query, key, value)
print(f"gradient of padding is zero: {bool(jnp.all(gradient[1, 1500:] == 0))}")

# How near exact attention it is depends on the tokens; independent random ones are the worst.
exact = nystrom.softmax_attention(query, key, value, mask=is_real)
for num_landmarks in (4, 16, 64):
    out = nystrom.nystrom_attention(query, key, value, mask=is_real, num_landmarks=num_landmarks)
    error = jnp.linalg.norm(out - exact) / jnp.linalg.norm(exact)
    print(f"{num_landmarks:4} landmarks: relative error {error:.3f}")
