"""A Flax model whose attention is Nyström's, trained to tell two loaded coins apart."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import nystrom

LENGTH, WIDTH = 512, 32


class Model(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(2, WIDTH, rngs=rngs)
        self.position = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        attention_fn = nystrom.attention_fn(num_landmarks=32)  # the one line that differs
        self.attention = nnx.MultiHeadAttention(
            4, WIDTH, attention_fn=attention_fn, decode=False, rngs=rngs
        )
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, tokens):
        x = 4 * self.embed(tokens) + self.position(jnp.arange(LENGTH))
        x = x + self.attention(self.norm(x))
        return self.head(x.mean(axis=1))


@nnx.jit
def train_step(model, optimizer, key):
    which, throw = jax.random.split(key)
    labels = jax.random.bernoulli(which, shape=(8,)).astype(int)
    tokens = jax.random.bernoulli(throw, 0.45 + 0.1 * labels[:, None], (8, LENGTH)).astype(int)

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(tokens), labels).mean()

    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return value


model = Model(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
losses = [train_step(model, optimizer, jax.random.key(step)) for step in range(60)]
print(f"loss of the first ten steps {jnp.array(losses[:10]).mean():.3f}")
print(f"loss of the last ten steps  {jnp.array(losses[-10:]).mean():.3f}")
