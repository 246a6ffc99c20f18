"""Where a parameter stands: its name and layout in the released files, and in the authors' own."""

import re
from typing import Any, NamedTuple

import numpy as np

from nystrom.language.heads import HEADS, Head, MaskedLM
from nystrom.language.model import Block, NystromformerModel

PREFIX = "nystromformer."  # of the encoder's parameters, where a head stands beside them
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")  # no parameters
HEAD_STARTS = ("cls.", "classifier.", "pre_classifier.", "qa_outputs.")
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


class Place(NamedTuple):
    """A parameter's name in the released files, without the prefix, and what it is there."""

    name: str
    leaf: str

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """The file's array as ours."""
        if self.leaf == "kernel":
            return array.T
        return array.reshape(array.shape[0], -1) if self.leaf == "filters" else array

    def file_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of an array that is `shape` here."""
        if self.leaf == "kernel":
            return shape[::-1]
        return (shape[0], 1, shape[1], 1) if self.leaf == "filters" else shape

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """Our array as the file's."""
        moved = array.T if self.leaf == "kernel" else array
        return np.ascontiguousarray(moved.reshape(self.file_shape(array.shape)))


def place(kind: type[Head] | type[NystromformerModel], path: tuple) -> Place:
    """Where the parameter at `path` in a model of that kind stands."""
    names = NystromformerModel.NAMES
    if path[0] == "body":
        path = path[1:]
    elif kind is not NystromformerModel:
        names = kind.NAMES
    first, *rest = path
    parts = [names[first]]
    if first == "blocks":
        number, first, *rest = rest
        parts += [str(number), Block.NAMES[first]]
    leaf = rest[0] if rest else first
    if leaf == "filters":
        parts.append("weight")
    elif rest:
        parts.append(LEAVES[leaf])
    return Place(".".join(parts), leaf)


def plain_names(arrays: dict[str, np.ndarray], problems: list[str]) -> dict[str, np.ndarray]:
    """A file's arrays by the released names without the prefix; buffers are left out.

    The authors' own names are converted where the file has them; their sentence-order head and
    biases of the convolution, which the released model has not, are left out. Two names of
    one parameter are a problem.
    """
    pairs = list(arrays.items())
    if any(re.search(r"\btransformer_\d+\.", name) for name in arrays):
        pairs = [
            (_from_authors(name), array)
            for name, array in pairs
            if not re.search(r"pooler|sen_class|conv\.bias", name)
        ]
    plain: dict[str, np.ndarray] = {}
    for name, array in pairs:
        name = name.removeprefix(PREFIX)
        if name in plain:
            problems.append(f"{name}: there twice, by two names")
        if name not in BUFFERS:
            plain[name] = array
    return plain


AUTHORS = (
    (r"^(module\.)?(model\.)?", ""),
    (r"^transformer_(\d+)\.", r"encoder.layer.\1."),
    (r"\bmha\.W_q\b", "attention.self.query"),
    (r"\bmha\.W_k\b", "attention.self.key"),
    (r"\bmha\.W_v\b", "attention.self.value"),
    (r"\bmha\.attn\b", "attention.self"),
    (r"\bmha\.ff\b", "attention.output.dense"),
    (r"\bnorm1\b", "attention.output.LayerNorm"),
    (r"\bnorm2\b", "output.LayerNorm"),
    (r"\bff1\b", "intermediate.dense"),
    (r"\bff2\b", "output.dense"),
    (r"\bembeddings\.norm\b", "embeddings.LayerNorm"),
    (r"^mlm\.mlm_class\b", "cls.predictions.decoder"),
    (r"^mlm\.dense\b", "cls.predictions.transform.dense"),
    (r"^mlm\.norm\b", "cls.predictions.transform.LayerNorm"),
)


def _from_authors(name: str) -> str:
    for pattern, replacement in AUTHORS:
        name = re.sub(pattern, replacement, name)
    return name


def tie_decoder(arrays: dict[str, np.ndarray], tied: bool, problems: list[str]) -> None:
    """Of the masked-language head's names for one parameter keeps one; says where two differ.

    Untied, `transformers` 5 takes the decoder's own bias, and has the other for nothing.
    """
    bias, own = "cls.predictions.bias", "cls.predictions.decoder.bias"
    if not tied:
        if own in arrays:
            arrays[bias] = arrays.pop(own)
        return
    weight = "cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"
    for other, name in ((own, bias), weight):
        if other not in arrays:
            continue
        array = arrays.pop(other)
        if name not in arrays:
            arrays[name] = array
        elif not np.array_equal(array, arrays[name], equal_nan=True):
            problems.append(f"{other}: differs from {name}, which it is tied to")


def head_of(architectures: Any, arrays: dict[str, np.ndarray]) -> str:
    """Which head a file has, of `HEADS` or "none": as its config says, or else by its names.

    Raises:
      ValueError: an architecture that is not known here.
    """
    if architectures:
        architectures = architectures if isinstance(architectures, list) else [architectures]
        known = {head.ARCHITECTURE: name for name, head in HEADS.items()}
        known[NystromformerModel.__name__] = "none"
        if not isinstance(architectures[0], str) or architectures[0] not in known:
            raise ValueError(
                f"architectures={architectures}: expected one of {', '.join(known)}; name the head "
                "to have instead, from_pretrained(..., head=...)"
            )
        return known[architectures[0]]
    found = [name for name in arrays if name.startswith(HEAD_STARTS)]

    def num_own(head):
        starts = tuple(f"{start}." for start in head.NAMES.values())
        return sum(x.startswith(starts) or x in head.NAMES.values() for x in found)

    # The one that has most of them: names that it has not are told as unknown.
    most = max(HEADS, key=lambda name: num_own(HEADS[name]))
    return most if num_own(HEADS[most]) else "none"


def body_only(arrays: dict[str, np.ndarray], tied: bool) -> dict[str, np.ndarray]:
    """The arrays without those of any head; tied word embeddings by either of their names."""
    arrays = dict(arrays)
    words = "embeddings.word_embeddings.weight"
    decoder = f"{MaskedLM.NAMES['decoder']}.weight"
    if tied and words not in arrays and decoder in arrays:
        arrays[words] = arrays[decoder]
    return {name: x for name, x in arrays.items() if not name.startswith(HEAD_STARTS)}
