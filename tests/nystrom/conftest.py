"""Small matrices are inverted here as large ones are on a CPU, for the tests to see that form."""

from nystrom.kernels import tiled

tiled.SYMMETRIC_FROM = 1
