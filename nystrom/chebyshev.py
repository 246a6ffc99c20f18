"""A pseudo-inverse in half the products of eq. 7: three steps with coefficients of their own."""

import jax
import numpy as np

from nystrom.array_typing import Array, Float
from nystrom.numerics import accumulator
from nystrom.pinv import check_square, identity_like, initial_scale, matmul

NUM_STEPS = 3
LEAST = (5**NUM_STEPS / (13 / 4) ** 6) ** 2  # l_0, the least eigenvalue of c A A^T fully inverted
T5 = (0, 5, 0, -20, 0, 16)  # the Chebyshev polynomial of degree 5, lowest power first


def chebyshev_pinv(a: Float[Array, "*B L L"]) -> Float[jax.Array, "*B L L"]:
    """Pseudo-inverse of each matrix by three steps of four products: 12, where eq. 7 takes 24.

    Like eq. 7 it starts from eq. 8's Z_0 = c A^T, and each step multiplies Z by a polynomial q of
    Y = A Z, whose eigenvalues t become t q(t). Eq. 7 takes one q of degree 3 six times, which pulls
    a t near 1 on to 1 fast and multiplies a small one by 13/4. But before each step we know an
    interval [l, h] that holds every t that began in [l_0, 1], and of all polynomials of degree 5
    without a constant term the one nearest to 1 all over it is

        t q(t) = 1 - T5(x) / T5(x_0),   x = (h + l - 2 t) / (h - l),   x_0 = (h + l) / (h - l),

    T5 being the Chebyshev polynomial. It takes the interval to 1 -+ 1 / T5(x_0), which is the next
    step's. As a polynomial in X = x_0 I - 2 Y / (h - l), q is (T5(x_0) - T5(X)) / (x_0 - X) times a
    number: with Y, X^2, one more and Z q, four products.

    Three steps multiply a small t by 125 / sqrt(l_0). Eq. 7's six multiply it by (13/4)^6 = 1,178,
    and so regularise: inverting smaller singular values better makes F A^+ G worse where few
    landmarks stand for many tokens. l_0 is set for the same factor, 0.0113; every t from there on
    ends within 1e-11 of 1. The two are then nearly one function of A: t = 1e-3 ends at 0.70 (eq. 7:
    0.69), and their residuals |A Z A - A| differ by a few per cent, ours being the smaller.

    Runs in float32 at the highest matmul precision (float64 for float64); returns a's dtype.

    Raises:
      ValueError: a is not *B L L.
      TypeError: a is not floating-point.
    """
    check_square(a)
    return _inverse(a)


@jax.jit
def _inverse(a):
    x = a.astype(accumulator(a.dtype))
    z = initial_scale(x) * x.mT
    for step in _steps():
        z = _step(x, z, step)
    return z.astype(a.dtype)


def apply_chebyshev_pinv(
    a: Float[Array, "*B L L"], w: Float[Array, "*B L D"]
) -> Float[Array, "*B L D"]:
    """`chebyshev_pinv(a) @ w`, the last step's products but one with L x D matrices."""
    *first, (x_0, slope, coefficients) = _steps()
    z = initial_scale(a) * a.mT
    for step in first:
        z = _step(a, z, step)
    x = x_0 * identity_like(a) - slope * matmul(a, z)
    out = coefficients[-1] * w
    for coefficient in coefficients[-2::-1]:
        out = matmul(x, out) + coefficient * w
    return matmul(z, out)


def _step(a, z, step):
    """Z q(A Z)."""
    x_0, slope, c = step
    identity = identity_like(a)
    x = x_0 * identity - slope * matmul(a, z)
    x2 = matmul(x, x)
    higher = matmul(x2, c[2] * identity + c[3] * x + c[4] * x2)
    return matmul(z, c[0] * identity + c[1] * x + higher)


def _steps() -> list[tuple[float, float, list[float]]]:
    """x_0, 2 / (h - l) and q's coefficients by powers of x, lowest first, of each step."""
    steps = []
    low, high = LEAST, 1.0
    for _ in range(NUM_STEPS):
        x_0, slope = float((high + low) / (high - low)), float(2 / (high - low))
        at_x_0 = np.polynomial.polynomial.polyval(x_0, T5)
        quotient = [sum(T5[k] * x_0 ** (k - 1 - i) for k in range(i + 1, 6)) for i in range(5)]
        steps.append((x_0, slope, [float(slope * c / at_x_0) for c in quotient]))
        low, high = float(1 - 1 / at_x_0), float(1 + 1 / at_x_0)
    return steps
