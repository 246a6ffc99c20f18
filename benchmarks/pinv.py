"""The two pseudo-inverses, eq. 7 and Chebyshev's: residuals, errors of F A^+ G, and time.

    python -m benchmarks.pinv [--workdir=RUN] [--rounds=7] [--threads=2]

Residuals |A Z A - A| / |A| and errors of F Z G against the exact softmax matrix, means over
matrices, on random queries and keys whose logits have the given std, and with --workdir on those
that the best checkpoint of a run of Nyström attention has for the first 16 validation examples,
without those of no more tokens than landmarks. Then milliseconds of attention, batch 1, 8 heads
of 64, in turns, medians over the rounds.
"""

import statistics
from functools import partial

import numpy as np

from benchmarks.command_line import count, make_parser, run, use_cores


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--workdir", help="a run's folder, as train.py made it")
    parser.add_argument("--cache_dir", default="", help="where prepared data are kept")
    parser.add_argument("--rounds", type=count, default=7)
    parser.add_argument("--threads", type=count, default=2)
    arguments = parser.parse_args()
    use_cores(arguments.threads)
    try:
        of_run = list(trained(arguments.workdir, arguments.cache_dir)) if arguments.workdir else []
    except ValueError as error:
        parser.error(str(error))
    rng = np.random.default_rng(0)
    print(f"{'':38}|AZA - A|/|A|        error of FZG")
    print(f"{'':38}{'eq. 7':>8}{'Cheb.':>8}{'eq. 7':>13}{'Cheb.':>8}")
    for std in (0.3, 1, 3):
        scale = std**0.5
        query, key = scale * rng.standard_normal((2, 1, 1024, 8, 64), np.float32)
        for num_landmarks in (64, 256):
            report(f"random, std {std}, {num_landmarks} landmarks", query, key, num_landmarks)
    for row in of_run:
        report(*row)
    time_attention(arguments.rounds)


def report(name, query, key, num_landmarks):
    """Prints a row: both inverses' residuals and errors for queries and keys B N H D."""
    import jax
    import jax.numpy as jnp

    import nystrom

    means = [nystrom.segment_means(x, num_landmarks)[0].swapaxes(1, 2) for x in (query, key)]
    a = jax.nn.softmax(means[0] @ means[1].mT * query.shape[-1] ** -0.5)
    exact = nystrom.nystrom_factors(query, key, num_landmarks=query.shape[1]).f
    residuals, errors = [], []
    for pinv in nystrom.PINVS:
        factors = nystrom.nystrom_factors(query, key, num_landmarks=num_landmarks, pinv=pinv)
        residuals.append(relative(a @ factors.a_pinv @ a, a))
        errors.append(relative(factors.rows(jnp.arange(query.shape[1])), exact))
    row = "".join(f"{x:8.4f}" for x in residuals) + "     " + "".join(f"{x:8.4f}" for x in errors)
    print(f"{name:38}{row}", flush=True)


def relative(x, y):
    """Mean over matrices of |x - y| / |y|."""
    norm = [np.linalg.norm(np.asarray(m), axis=(-2, -1)) for m in (x - y, y)]
    return float((norm[0] / norm[1]).mean())


def trained(workdir, cache_dir):
    """Queries and keys of each layer of a run's best checkpoint, for examples of one length."""
    import lra_tasks
    from experiment.load import load_run

    model, task, config = load_run(workdir, cache_dir)
    if config.model.attention != "nystrom":
        raise ValueError(f"{workdir}: a run of {config.model.attention} attention, not of nystrom")
    seen = []

    def recording(attention, query, key, value, **masks):
        seen.append((query, key))
        return attention(query, key, value, **masks)

    for block in model.encoder.blocks:
        block.attention.attention = partial(recording, block.attention.attention)
    batch = lra_tasks.Batches(task, "validation", 16)[0]
    lengths = batch["mask"].sum(axis=-1)
    chosen = lengths > config.model.num_landmarks
    if not chosen.any():
        raise ValueError(f"{workdir}: its first 16 validation examples have too few tokens")
    length = int(lengths[chosen].min())  # of the shortest: no padding
    model.encoder(batch["inputs"][chosen, :length])
    for layer, (query, key) in enumerate(seen):
        yield f"{config.name}, layer {layer + 1}", query, key, config.model.num_landmarks


def time_attention(rounds):
    """Prints milliseconds of attention with either inverse."""
    import nystrom
    from benchmarks.attention import take_turns
    from benchmarks.attention_contenders import jax_call, make_inputs

    print(f"\n{'milliseconds':45}{'eq. 7':>8}{'Cheb.':>8}{'ratio':>8}")
    for length, num_landmarks in ((1024, 64), (1024, 256), (4096, 256)):
        inputs = make_inputs(length)
        for mode, backward in (("forward", False), ("forward and backward", True)):
            attend = partial(nystrom.nystrom_attention, num_landmarks=num_landmarks)
            calls = {p: jax_call(partial(attend, pinv=p), inputs, backward) for p in nystrom.PINVS}
            times = dict(take_turns(calls, rounds))
            old, new = (1e3 * statistics.median(times[pinv]) for pinv in nystrom.PINVS)
            name = f"N {length}, {num_landmarks} landmarks, {mode}"
            print(f"{name:45}{old:8.1f}{new:8.1f}{old / new:8.2f}", flush=True)


if __name__ == "__main__":
    run(main)
