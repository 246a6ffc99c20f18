"""One sequence cut over devices: what they exchange does not grow with its length."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nystrom

jax.config.update("jax_num_cpu_devices", 4)  # where there is no accelerator: four virtual devices

mesh = jax.make_mesh((jax.device_count(),), ("sequence",), axis_types=(AxisType.Auto,))
cut = NamedSharding(mesh, PartitionSpec(None, "sequence"))
length = 4096 * jax.device_count()
keys = jax.random.split(jax.random.key(0), 3)
query, key, value = (
    jax.device_put(jax.random.normal(each, (1, length, 2, 32)), cut) for each in keys
)
attention = jax.jit(nystrom.sharded_attention(mesh, num_landmarks=64))
out = attention(query, key, value)
whole = nystrom.nystrom_attention(*jax.device_get((query, key, value)), num_landmarks=64)
print(f"{length:,} tokens over {jax.device_count()} devices, each holds", end=" ")
print(f"{out.addressable_shards[0].data.shape[1]:,}")
print(f"apart from one device's by at most {jnp.abs(jax.device_get(out) - whole).max():.1e}")
