"""The contract that every attention of the package passes, whatever it computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import DEPTH, HEADS, LENGTH, jitted, mask_with, normal, random_inputs
from padding_contract import PaddingContract


class AttentionContract(PaddingContract):
    """Subclasses name the attention as `attend` and say what its method by nature can't do.

    attend(query, key, value, *, query_mask=None, key_mask=None) with its own options bound.
    """

    attend = None
    supports_cross_lengths = True  # Lq != Lk
    reads_queries = True  # False: the output doesn't depend on queries and keys
    heads_alike = True  # permuting heads of the input permutes heads of the output
    is_average = True  # each output is a weighted mean of the values, weights adding up to 1
    multiplies_halves = False  # half precision is multiplied as such, and only summed in float32
    gradient_tolerance = 1e-6  # relative, of float64 gradients against finite differences
    tolerance = 2e-5  # float32 error of one program against another, for unit-normal inputs

    @classmethod
    def __init_subclass__(cls):
        super().__init_subclass__()
        attend = cls.attend

        def value_and_grads(inputs, cotangent, query_mask=None, key_mask=None):
            def apply(q, k, v):
                return attend(q, k, v, query_mask=query_mask, key_mask=key_mask)

            out, pullback = jax.vjp(apply, *inputs)
            return out, pullback(cotangent.astype(out.dtype))

        def of_its_sum(*inputs, **options):
            out, pull_back = jax.vjp(lambda *x: attend(*x, **options), *inputs)
            return out, pull_back(jnp.ones_like(out))

        cls.run_grads_of = staticmethod(of_its_sum)
        cls.run = staticmethod(jitted(attend))
        cls.run_grads = staticmethod(jitted(value_and_grads))

    # --- batch ---------------------------------------------------------------------------

    def test_batch_is_vmap_is_loop(self):
        inputs = random_inputs(6, 3, 2)
        mask = np.stack([mask_with(n, LENGTH, "holes", n) for n in (1, 3, 6, 8, 10, LENGTH)])
        mask = mask.reshape(3, 2, LENGTH)

        def attend(q, k, v, mask):
            return self.attend(q, k, v, query_mask=mask, key_mask=mask)

        out = self.run(*inputs, query_mask=mask, key_mask=mask)
        mapped = jitted(jax.vmap(jax.vmap(attend)))(*inputs, mask)
        np.testing.assert_allclose(out, mapped, atol=self.tolerance, rtol=1e-4)
        for i, j in np.ndindex(3, 2):
            one = [x[i, j] for x in inputs]
            alone = self.run(*one, query_mask=mask[i, j], key_mask=mask[i, j])
            np.testing.assert_allclose(out[i, j], alone, atol=self.tolerance, rtol=1e-4)

    def test_one_example_never_changes_another(self):
        q, k, v = random_inputs(7, 3)
        out = self.run(q, k, v)
        peaked = np.array([50, 1, 1], np.float32)[:, None, None, None]
        changed = self.run(q * peaked, k * peaked, v * peaked)
        assert np.isfinite(changed).all()
        np.testing.assert_allclose(changed[1:], out[1:], atol=1e-6)

    def test_heads_are_independent(self):
        inputs = random_inputs(8, 2)
        out = self.run(*inputs)
        other = [np.concatenate([x[:, :, :1], 3 * x[:, :, 1:]], axis=2) for x in inputs]
        np.testing.assert_allclose(self.run(*other)[:, :, 0], out[:, :, 0], atol=1e-6)
        if self.heads_alike:
            swapped = self.run(*(x[:, :, ::-1] for x in inputs))
            np.testing.assert_allclose(swapped, out[:, :, ::-1], atol=self.tolerance)

    @pytest.mark.unchecked
    def test_one_mask_is_both(self):
        """`mask` is self-attention's; it is refused beside the others and where lengths differ."""
        inputs, mask = random_inputs(27), mask_with(8, LENGTH, "holes")
        both = self.attend(*inputs, query_mask=mask, key_mask=mask)  # the same program inside
        np.testing.assert_array_equal(self.attend(*inputs, mask=mask), both)
        for other in ("query_mask", "key_mask"):
            with pytest.raises(ValueError, match=r"mask is self-attention's one mask.*alone"):
                self.attend(*inputs, mask=mask, **{other: mask})
        q, k, v = inputs
        with pytest.raises(ValueError, match="their lengths differ"):
            self.attend(q, k[:-1], v[:-1], mask=mask)

    @pytest.mark.parametrize("shape", [(0, 13, 2), (2, 0, 2), (2, 13, 0), (0, 0, 0)])
    def test_empty_arrays_give_empty_arrays(self, shape):
        """No examples, no tokens, no heads, as everywhere in JAX."""
        x = np.zeros((*shape, DEPTH), np.float32)
        if shape[2] == 0 and not self.heads_alike:
            pytest.skip("its parameters know the number of heads")
        mask = np.ones(shape[:2], bool)
        for options in ({}, {"mask": mask}):
            out, grads = self.run_grads_of(x, x, x, **options)
            assert out.shape == x.shape
            assert all(grad.shape == x.shape for grad in grads)

    def test_forward_mode_and_reverse_are_one_derivative(self):
        """Also of gradients, forward over reverse."""
        inputs, tangents = (random_inputs(seed, 2, dtype=np.float64) for seed in (31, 32))

        def loss(*inputs):
            return (self.attend(*inputs) ** 2).sum()

        def along(*inputs):
            pairs = zip(jax.grad(loss, (0, 1, 2))(*inputs), tangents, strict=True)
            return sum((grad * tangent).sum() for grad, tangent in pairs)

        def both(inputs):
            _, ahead = jax.jvp(loss, inputs, tangents)
            _, ahead_twice = jax.jvp(along, inputs, tangents)
            return (ahead, ahead_twice), (along(*inputs), jax.grad(along, (0, 1, 2))(*inputs))

        with jax.enable_x64(True):
            (ahead, ahead_twice), (back, back_twice) = jitted(both)(inputs)
        np.testing.assert_allclose(ahead, back, rtol=1e-9)
        twice = sum(
            (grad * tangent).sum() for grad, tangent in zip(back_twice, tangents, strict=True)
        )
        np.testing.assert_allclose(ahead_twice, twice, rtol=1e-7)

    def test_no_keys_or_no_queries(self):
        if not self.supports_cross_lengths:
            pytest.skip("one length")
        q, k, v = random_inputs(28, 2)
        np.testing.assert_array_equal(self.attend(q, k[:, :0], v[:, :0]), np.zeros_like(q))
        assert self.attend(q[:, :0], k, v).shape == (2, 0, HEADS, DEPTH)

    @pytest.mark.unchecked
    def test_heads_without_features_are_refused(self):
        x = np.zeros((2, 13, 2, 0), np.float32)
        with pytest.raises(ValueError, match="each head needs at least one feature"):
            self.attend(x, x, x)

    def test_value_features_may_differ(self):
        """As many features as key's, and others: each feature is averaged alone."""
        q, k, v = random_inputs(29)
        wide = np.concatenate([v, normal(30, LENGTH, HEADS, 3)], axis=-1)
        out = self.run(q, k, wide)
        assert out.shape == wide.shape
        np.testing.assert_allclose(out[..., :DEPTH], self.run(q, k, v), atol=self.tolerance)
        assert self.attend(q, k, v[..., :0]).shape == (*q.shape[:-1], 0)

    @pytest.mark.unchecked
    def test_grouped_heads_are_repeated_heads(self):
        """Four heads of queries share two of keys and values, two in a row one each."""
        if not self.heads_alike:
            pytest.skip("its parameters know the number of heads")
        q, (_, k, v) = random_inputs(31, heads=4)[0], random_inputs(32)
        mask = mask_with(8, LENGTH, "holes")
        grouped = self.run(q, k, v, mask=mask)
        repeated = self.run(q, *(np.repeat(x, 2, axis=1) for x in (k, v)), mask=mask)
        np.testing.assert_allclose(grouped, repeated, atol=self.tolerance)
        with pytest.raises(ValueError, match="query has 3 heads and key 2"):
            self.attend(q[:, :3], k, v)

    # --- what an attention is --------------------------------------------------------------

    def test_output_is_linear_in_values(self):
        q, k, v = random_inputs(9)
        w = normal(10, *v.shape)
        combined = self.run(q, k, 2 * v - 3 * w)
        separate = 2 * self.run(q, k, v) - 3 * self.run(q, k, w)
        np.testing.assert_allclose(combined, separate, atol=10 * self.tolerance, rtol=1e-4)

    def test_equal_values_are_returned(self):
        if not self.is_average:
            pytest.skip("weights don't add up to 1")
        q, k, v = random_inputs(11)
        mask = mask_with(8, 13, "holes")
        out = self.run(4 * q, k, np.full_like(v, 2.5), query_mask=mask, key_mask=mask)
        np.testing.assert_allclose(out[mask], 2.5, rtol=1e-4)

    def test_every_input_counts(self):
        q, k, v = random_inputs(12)
        out = self.run(q, k, v)
        assert np.abs(self.run(q, k, v + normal(13, *v.shape)) - out).max() > 0.1
        for other in (self.run(q[::-1], k, v), self.run(q, k[::-1], v)):
            assert (np.abs(other - out).max() > 1e-2) == self.reads_queries

    # --- dtypes --------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_output_has_the_input_dtype_and_is_summed_in_float32(self, dtype):
        inputs = [x.astype(dtype) for x in random_inputs(14)]
        out = self.run(*inputs)
        assert out.dtype == dtype
        in_float32 = self.run(*(x.astype(jnp.float32) for x in inputs))
        assert in_float32.dtype == jnp.float32
        epsilon = float(jnp.finfo(dtype).eps)
        atol = epsilon * np.abs(in_float32).max() if self.multiplies_halves else self.tolerance
        np.testing.assert_allclose(out.astype(jnp.float32), in_float32, rtol=epsilon, atol=atol)

    def test_gradients_have_the_input_dtype(self):
        inputs = tuple(x.astype(jnp.bfloat16) for x in random_inputs(14, length=12))
        _, grads = self.run_grads(inputs, normal(15, 12, HEADS, DEPTH))
        inputs = tuple(x.astype(jnp.float32) for x in inputs)
        _, in_float32 = self.run_grads(inputs, normal(15, 12, HEADS, DEPTH))
        for grad, expected in zip(grads, in_float32, strict=True):
            assert grad.dtype == jnp.bfloat16
            # The cotangent is rounded to bfloat16 on its way in, the gradient on its way out.
            np.testing.assert_allclose(grad.astype(jnp.float32), expected, atol=3e-2, rtol=3e-2)

    def test_float64_stays_and_agrees_with_float32(self):
        with jax.enable_x64(True):
            inputs = random_inputs(16, dtype=np.float64)
            out = self.run(*inputs)
            assert out.dtype == np.float64
        in_float32 = self.run(*(x.astype(np.float32) for x in inputs))
        np.testing.assert_allclose(in_float32, out, atol=2 * self.tolerance, rtol=1e-4)

    # --- transformations -------------------------------------------------------------------

    def test_jit_equals_no_jit(self):
        inputs = random_inputs(17)
        mask = mask_with(6, LENGTH, "holes")
        np.testing.assert_allclose(
            self.run(*inputs, query_mask=mask, key_mask=mask),
            self.attend(*map(jnp.asarray, inputs), query_mask=mask, key_mask=mask),
            atol=self.tolerance,
            rtol=1e-4,
        )

    def test_remat_gives_the_same_gradients(self):
        inputs, cotangent = random_inputs(18, length=12), normal(19, 12, HEADS, DEPTH)
        remat = jax.checkpoint(lambda q, k, v: self.attend(q, k, v))
        grads = jitted(jax.grad(lambda *x: (remat(*x) * cotangent).sum(), (0, 1, 2)))(*inputs)
        _, expected = self.run_grads(inputs, cotangent)
        for grad, other in zip(grads, expected, strict=True):
            np.testing.assert_allclose(grad, other, atol=5 * self.tolerance, rtol=1e-3)

    def test_float64_gradients_agree_with_finite_differences(self):
        """Directional derivatives, with a mask."""
        with jax.enable_x64(True):
            inputs = random_inputs(20, dtype=np.float64)
            directions = random_inputs(21, dtype=np.float64)
            cotangent = normal(22, LENGTH, HEADS, DEPTH, dtype=np.float64)
            mask = mask_with(9, LENGTH, "holes")
            _, grads = self.run_grads(inputs, cotangent, mask, mask)
            for index in range(3):
                step = np.zeros((3, 1, 1, 1))
                step[index] = 1e-5
                ahead, back = (
                    self.run(
                        *(
                            x + sign * s * d
                            for x, s, d in zip(inputs, step, directions, strict=True)
                        ),
                        query_mask=mask,
                        key_mask=mask,
                    )
                    for sign in (1, -1)
                )
                expected = ((ahead - back) * cotangent).sum() / 2e-5
                actual = (grads[index] * directions[index]).sum()
                np.testing.assert_allclose(
                    actual, expected, rtol=self.gradient_tolerance, atol=1e-8
                )

    # --- errors --------------------------------------------------------------------------

    @pytest.mark.unchecked
    def test_integer_input_is_refused(self):
        q, k, v = random_inputs(23)
        with pytest.raises(TypeError, match=r"query has dtype int32: .*floating-point"):
            self.attend(q.astype(np.int32), k, v)
        with pytest.raises(TypeError, match=r"value has dtype int32"):
            self.attend(q, k, v.astype(np.int32))

    @pytest.mark.unchecked
    def test_what_JAX_might_take_for_something_else_is_refused(self):
        q, k, v = random_inputs(23)
        self.attend(q, k, v)  # a first call: a second one finds its program by the dtype's name
        with pytest.raises(TypeError, match=r"key has dtype float8_e4m3fn: .* of 16 bits or more"):
            self.attend(q, k.astype(jnp.float8_e4m3fn), v)
        with pytest.raises(
            TypeError, match=r"value has swapped bytes: give value.astype\(np.float32"
        ):
            self.attend(q, k, v.astype(v.dtype.newbyteorder()))
        with pytest.raises(TypeError, match=r"query is a masked array"):
            self.attend(np.ma.masked_greater(q, 1), k, v)

    @pytest.mark.unchecked
    def test_mask_over_pairs_is_refused(self):
        inputs = random_inputs(24, 2)
        causal = np.tril(np.ones((LENGTH, LENGTH), bool))
        for mask in (causal, np.broadcast_to(causal, (2, LENGTH, LENGTH))):
            with pytest.raises(ValueError, match=r"key_mask has shape .*padding mask"):
                self.attend(*inputs, query_mask=None, key_mask=mask)
            with pytest.raises(ValueError, match=r"query_mask has shape .*\(2, 13\)"):
                self.attend(*inputs, query_mask=mask)
        flax = np.ones((2, 1, 1, LENGTH), bool)
        with pytest.raises(
            ValueError, match=r"so give mask\[\.\.\., 0, 0, :\]; Flax's attention_fn"
        ):
            self.attend(*inputs, mask=flax)

    @pytest.mark.unchecked
    def test_mask_that_is_not_boolean_is_refused(self):
        inputs = random_inputs(25, 2)
        with pytest.raises(TypeError, match=r"key_mask has dtype float32: expected a bool array"):
            self.attend(*inputs, key_mask=np.ones((2, LENGTH), np.float32))

    @pytest.mark.unchecked
    def test_shapes_that_do_not_fit_are_refused(self):
        q, k, v = random_inputs(26, 2)
        with pytest.raises(ValueError, match=r"key .* and value .*: .*alike but for the features"):
            self.attend(q, k, v[:, :-1])
        with pytest.raises(ValueError, match=r"query .*: expected \*B N H D"):
            self.attend(q[:1], k, v)
        with pytest.raises(ValueError, match=r"query .* same batch and head features"):
            self.attend(q[..., :-1], k, v)
        with pytest.raises(ValueError, match=r"query has 2 heads and key 0: expected as many"):
            self.attend(q, k[..., :0, :], v[..., :0, :])
        with pytest.raises(ValueError, match=r"query has shape \(13, 2\)"):
            self.attend(q[0, :, :, 0], k, v)
        if not self.supports_cross_lengths:
            with pytest.raises(ValueError, match="length"):
                self.attend(q[:, :-1], k, v)
