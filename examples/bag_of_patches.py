"""A bag of patch embeddings classified by a class token: multiple-instance learning.

A slide of a pathologist is tens of thousands of patches, embedded beforehand; its label is of the
whole slide. Exact attention over 30,000 patches would hold 900 million weights a head.
"""

import jax
import jax.numpy as jnp
from flax import nnx

import nystrom

NUM_PATCHES, FEATURES, WIDTH = 30_000, 384, 64


class BagClassifier(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.project = nnx.Linear(FEATURES, WIDTH, rngs=rngs)
        self.class_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 1, WIDTH)))
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nystrom.NystromSelfAttention(WIDTH, 4, num_landmarks=128, rngs=rngs)
        self.head = nnx.Linear(WIDTH, num_classes, rngs=rngs)

    @nnx.jit
    def __call__(self, patches, is_real):
        x = self.project(patches)
        first = jnp.broadcast_to(self.class_token[...], (len(x), 1, WIDTH))
        x = jnp.concatenate([first, x], axis=1)
        is_real = jnp.pad(is_real, ((0, 0), (1, 0)), constant_values=True)  # the class token too
        x = x + self.attention(self.norm(x), is_real)
        return self.head(x[:, 0])


bags = jax.random.normal(jax.random.key(0), (2, NUM_PATCHES, FEATURES))
sizes = jnp.array([NUM_PATCHES, 12_345])  # bags differ in size: the rest is padding
is_real = jnp.arange(NUM_PATCHES) < sizes[:, None]
model = BagClassifier(num_classes=3, rngs=nnx.Rngs(1))
logits = model(bags, is_real)
print("logits", logits.round(3).tolist())

alone = model(bags[1:, :12_345], is_real[1:, :12_345])
print(f"the second bag alone, without its padding: {jnp.abs(alone - logits[1:]).max():.1e} apart")
