"""The letters that stand for array dimensions, and the array types of public signatures.

| letter | dimension                                                            |
|--------|----------------------------------------------------------------------|
| *B     | any number of batch dimensions, none included                        |
| N      | query positions (tokens)                                             |
| M      | key and value positions; M = N in self-attention                     |
| L      | landmarks (the paper's m)                                            |
| H      | heads of the queries                                                 |
| G      | heads of keys and values; H a multiple of G, mostly G = H            |
| D      | features of one head's queries and keys                              |
| E      | features of one head's values; mostly E = D                          |
| C      | features of a token in the encoder (width), C = H * D                |
| K      | taps of the depthwise convolution; of models, chosen places          |
| F      | features of the kernel of linear attention and Performer             |
| P      | what Linformer projects keys to, Reformer a token for its hash       |
| R      | rows that are asked for; Reformer's rounds of hashing                |
| V      | ids of a vocabulary                                                  |

The same letters, in lower case, name the dimensions in einsum strings.
"""

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

Array = jax.Array | np.ndarray

__all__ = ["Array", "Bool", "Float", "Int"]
