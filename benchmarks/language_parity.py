"""How far our released model is from that of `transformers`: model x mode x dtype x padding.

    python -m benchmarks.language_parity [--output=results/benchmarks/language_parity.csv]

Every row is the largest absolute difference of hidden states of all layers, logits and loss, on the
same random weights and inputs, both libraries computing in the same dtype. "tiny" is the fixture's
size with weights of std 0.3, so that attention is far from uniform; "base" the released size, 12
layers of 768, at its own initial weights. Nyström mode is on a batch of one, since there the peer's
starting scale is one for the whole batch.

Padding: "none"; "transformers" has ours do what the peer does (its convolution reaches into
padding, its landmarks average it); "inert", our default, has ours padded and the peer not, so that
a difference is what padding did to ours. Needs what requirements-language.txt lists.
"""

import tempfile
from pathlib import Path

import numpy as np

from benchmarks import language_peer as peer
from benchmarks.command_line import add_output, make_parser, run
from benchmarks.tables import signed, write_csv
from nystrom.language import HEADS

BASE = {
    "vocab_size": 30000,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 510,
    "conv_kernel_size": 65,
    "num_landmarks": 64,
}
BOUND = {"float64": 1e-5, "float32": 1e-4}


def main():
    parser = make_parser(__doc__)
    add_output(parser, "results/benchmarks/language_parity.csv")
    parser.add_argument("--tiny", action="store_true", help="leave the released size out")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for head in ("none", *HEADS):
            folder = Path(name, head)
            peer.save_peer(head, folder)
            rows += compare("tiny", head, folder, peer.LENGTH, peer.REAL)
        if not arguments.tiny:
            folder = Path(name, "base")
            peer.save_peer("masked_lm", folder, spread=None, **BASE)
            rows += compare("base", "masked_lm", folder, 448, 384, vocab_size=30000)
    path = arguments.output
    write_csv(path, signed(rows))
    beyond = [row for row in rows if row["largest"] > BOUND[row["dtype"]]]
    print(f"{len(rows)} rows in {path}; {len(beyond)} beyond 1e-5 in float64, 1e-4 in float32")
    raise SystemExit(bool(beyond))


def compare(size, head, folder, length, real, vocab_size=40) -> list[dict]:
    """The rows of one model; `length` and `real` are multiples of its landmarks."""
    rows = []
    for mode in ("exact", "nystrom"):
        inputs = peer.make_inputs(head, mode, length=length, vocab_size=vocab_size)
        mask = peer.make_mask(inputs, real)
        one = peer.make_inputs(head, "nystrom", length=length, vocab_size=vocab_size)
        short = cut(head, one, real)
        given = {
            "none": ("inert", inputs, None),
            "transformers": ("transformers", inputs, mask),
            "inert": ("inert", one, np.broadcast_to(np.arange(length) < real, one["tokens"].shape)),
        }
        for dtype in ("float64", "float32"):
            with peer.with_x64(dtype):
                for padding, (own, batch, our_mask) in given.items():
                    theirs = peer.load_peer(
                        head, folder, mode, dtype, real if padding == "inert" else length
                    )
                    if padding == "inert":
                        expected = peer.peer_outputs(theirs, head, short)
                    else:
                        expected = peer.peer_outputs(theirs, head, batch, our_mask)
                    ours = peer.load_ours(folder, mode, dtype, own)
                    found = peer.our_outputs(ours, batch, our_mask)
                    if padding == "inert":
                        found = cut(head, found, real)
                    found = peer.largest_difference(found, expected)
                    row = {"size": size, "head": head, "mode": mode, "dtype": dtype}
                    row |= {"padding": padding, "largest": max(found.values())}
                    row |= {name: found.get(name, "") for name in ("hidden", "logits", "loss")}
                    print(", ".join(str(value) for value in row.values()), flush=True)
                    rows.append(
                        {k: f"{x:.2e}" if isinstance(x, float) else x for k, x in row.items()}
                    )
                    rows[-1]["largest"] = float(rows[-1]["largest"])
    return rows


def cut(head: str, arrays: dict, real: int) -> dict:
    """Inputs or outputs without what stands beyond the first `real` tokens."""
    cut_ones = {name: arrays[name][..., :real] for name in ("tokens", "types") if name in arrays}
    by_token = head in ("masked_lm", "token_classification")
    if "hidden" in arrays:
        cut_ones["hidden"] = arrays["hidden"][..., :real, :]
        if by_token or head == "question_answering":
            cut_ones["logits"] = arrays["logits"][:, :real]
    elif by_token:
        arrays["labels"][:, real:] = -100
        cut_ones["labels"] = arrays["labels"][:, :real]
    elif head == "question_answering":
        arrays["labels"] %= real
    return arrays | cut_ones


if __name__ == "__main__":
    run(main)
