"""The library's public functions on small arrays: tokens 12 x 2 x 4, and filters 2 x 3."""

import jax
import numpy as np
from inputs import mask_with, normal

import nystrom

MASK = mask_with(9, 12, "holes")
SMALL = normal(0, 12, 2, 4), normal(1, 2, 3)


PUBLIC = {
    "nystrom": lambda x, f: nystrom.nystrom_attention(x, x, x, mask=MASK, num_landmarks=4),
    "unmasked": lambda x, f: nystrom.nystrom_attention(x, x, x, num_landmarks=5),
    "chebyshev": lambda x, f: nystrom.nystrom_attention(x, x, x, num_landmarks=4, pinv="chebyshev"),
    "softmax": lambda x, f: nystrom.softmax_attention(x, x, x, mask=MASK),
    "causal": lambda x, f: nystrom.softmax_attention(x, x, x, is_causal=True),
    "linear": lambda x, f: nystrom.linear_attention(x, x, x, mask=MASK),
    "linformer": lambda x, f: nystrom.linformer_attention(
        x, x, x, mask=MASK, projection=np.ones((2, 3, 12), np.float32)
    ),
    "performer": lambda x, f: nystrom.performer_attention(
        x, x, x, mask=MASK, projection=nystrom.orthogonal_features(8, 4)
    ),
    "favor+": lambda x, f: nystrom.performer_attention(
        x, x, x, projection=nystrom.orthogonal_features(8, 4), feature_kernel="softmax"
    ),
    "reformer": lambda x, f: nystrom.reformer_attention(
        x, x, x, mask=MASK, rotations=nystrom.random_rotations(2, 4, 3), bucket_size=4
    ),
    "none": lambda x, f: nystrom.identity_attention(x, x, x, mask=MASK),
    "convolution": lambda x, f: nystrom.depthwise_convolution(x, f, MASK),
    "means": lambda x, f: nystrom.segment_means(x, 5, MASK)[0],
    "pinv": lambda x, f: nystrom.iterative_pinv(jax.nn.softmax(x[:4, 0]), 8),
    "factors": lambda x, f: nystrom.nystrom_factors(x, x, mask=MASK, num_landmarks=4).f,
}
