"""A language model from a folder of released weights, and back."""

import dataclasses
import json
import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from nystrom.checks import check_choice, check_count
from nystrom.language.config import LanguageConfig, read_config
from nystrom.language.files import read_arrays, write_arrays
from nystrom.language.heads import HEADS, Head, MaskedLM
from nystrom.language.model import FIRST_POSITION, NystromformerModel
from nystrom.language.names import (
    PREFIX,
    body_only,
    head_of,
    place,
    plain_names,
    tie_decoder,
)

LABELLED = ("sequence_classification", "token_classification")
POSITIONS = "embeddings.position_embeddings.weight"
logger = logging.getLogger("nystrom.language")


def from_pretrained(
    path: str | os.PathLike,
    *,
    head: str | None = None,
    attention: str | None = None,
    num_landmarks: int | None = None,
    max_length: int | None = None,
    num_labels: int | None = None,
    padding: str = "inert",
    torch_file: str | None = None,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
) -> Head | NystromformerModel:
    """The model that a folder's config.json and model.safetensors hold.

    Args:
      path: the folder, as `transformers` or `save_pretrained` writes it. The authors' own
        checkpoints are read too, beside a config.json.
      head: of `HEADS`, or "none" for the encoder alone; None: the file's. Another than the
        file's is drawn anew from `rngs`.
      attention: "nystrom" or "softmax"; None: "nystrom" where `num_landmarks` is given, else as
        `transformers` would run the file, which for all released ones is exact softmax,
        quadratic in the length.
      num_landmarks: any number; None: the file's.
      max_length: the most tokens that the model takes. The table of positions is repeated to as
        many, as the authors began their longer models; None: the file's.
      num_labels: of a head of classes that is drawn anew; None: the file's.
      padding: "inert" or "transformers", see `LanguageConfig`.
      torch_file: a file in the folder to read instead, such as "pytorch_model.bin". It is read
        by torch's weights-only loader, so that no code in it is run.
      dtype: to compute in. Parameters are float32, or float64 if it is.
      rngs: for a head drawn anew.

    Raises:
      FileNotFoundError: no folder, config or weights.
      ImportError: safetensors, or PyTorch for a `torch_file`, is not installed.
      TypeError: sizes that are not integers, `rngs` that are none.
      ValueError: a file that can't be read; options that can't be; keys that are missing, unknown
        or of another shape, all in one message.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder: expected one with config.json and model.safetensors. Models "
            "of a hub are downloaded by its own tools first"
        )
    if head is not None:
        check_choice("head", head, ("none", *HEADS))
    dtype = _floating(dtype)
    if num_labels is not None:
        check_count("num_labels", num_labels)
    config, fields = read_config(folder / "config.json")
    config = _with_options(config, attention, num_landmarks, padding)
    problems: list[str] = []
    arrays = plain_names(read_arrays(folder, torch_file), problems)
    file_head = "none" if head == "none" else _head_of_file(folder, fields, arrays, head)
    head = file_head if head is None else head
    is_new = head != file_head
    if is_new:
        _check_rngs(rngs, folder, file_head, head)
    if is_new or head == "none":
        arrays = body_only(arrays, config.tie_word_embeddings)
    if num_labels is not None:
        if head not in LABELLED:
            raise ValueError(f"num_labels={num_labels}: only {' and '.join(LABELLED)} have labels")
        config = dataclasses.replace(config, num_labels=num_labels)
    if head == "masked_lm" and not is_new:
        tie_decoder(arrays, config.tie_word_embeddings, problems)
    if max_length is not None:
        config, arrays = _with_length(config, arrays, max_length)
    kind = NystromformerModel if head == "none" else HEADS[head]
    model = _fill(kind, config, dtype, arrays, rngs if is_new else None, problems)
    if problems:  # with a file's names in them, which may hold what terminals act on
        lines = (x if x.isprintable() else x.encode("unicode_escape").decode() for x in problems)
        raise ValueError("\n  ".join([f"{folder} does not hold {kind.__name__}:", *lines]))
    if attention is None and config.attention == "softmax":
        logger.warning(
            "%s: num_landmarks equals segment_means_seq_len (%d), so that attention is exact, "
            "quadratic in the length, as transformers runs it. num_landmarks=%d is linear; "
            "attention='softmax' is this without this line.",
            folder,
            config.num_landmarks,
            config.num_landmarks,
        )
    return model


def _floating(dtype):
    """The dtype to compute in; raises unless it is one of floating-point numbers."""
    given, dtype = dtype, jnp.dtype(dtype)  # that of None is float64
    if given is None or not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize == 1:
        name = None if given is None else dtype.name
        raise ValueError(f"dtype={name}: expected one of floating-point numbers, 16 bits or more")
    if dtype == jnp.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError("dtype=float64 needs jax.config.update('jax_enable_x64', True) first")
    return dtype


def _head_of_file(folder, fields, arrays, head):
    """The head that a file has; config.json may say none that is known where `head` is given."""
    try:
        return head_of(fields.get("architectures"), arrays)
    except ValueError as error:
        if head is None:
            raise ValueError(f"{folder / 'config.json'}: {error}") from None
        return head_of(None, arrays)


def _check_rngs(rngs, folder, file_head, head):
    """Raises unless a head can be drawn anew."""
    if rngs is None:
        raise ValueError(
            f"{folder} has head {file_head!r}, not {head!r}: give rngs=nnx.Rngs(seed) for a "
            "head drawn anew, or leave `head` out"
        )
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"rngs={rngs!r}: expected nnx.Rngs(seed)")


def save_pretrained(model: Head | NystromformerModel, path: str | os.PathLike) -> None:
    """Writes config.json and model.safetensors, which `transformers` loads with equal outputs.

    Makes the folder. Its `segment_means_seq_len` says which attention the model has, though
    `transformers` runs Nyström attention at just that length.

    Raises:
      ImportError: safetensors is not installed.
      OSError: the folder can't be written.
      TypeError: `model` is no model of this package.
    """
    if not isinstance(model, Head | NystromformerModel):
        raise TypeError(f"model is a {type(model).__name__}: expected a model of nystrom.language")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    kind, prefix = type(model), "" if isinstance(model, NystromformerModel) else PREFIX
    arrays = {}
    for steps, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        name, in_body = place(kind, steps), kind is NystromformerModel or steps[0] == "body"
        arrays[(prefix if in_body else "") + name.name] = name.to_file(np.asarray(leaf[...]))
    if kind is MaskedLM and not model.config.tie_word_embeddings:
        arrays["cls.predictions.decoder.bias"] = arrays["cls.predictions.bias"]  # which is read
    stored = {"dtype": str(next(iter(arrays.values())).dtype)}
    architecture = getattr(kind, "ARCHITECTURE", kind.__name__)
    fields = model.config.to_dict() | stored | {"architectures": [architecture]}
    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    part = folder / "config.json.part"
    try:
        part.write_text(text, encoding="utf-8")
        write_arrays(folder, arrays)
        os.replace(part, folder / "config.json")
    finally:
        part.unlink(missing_ok=True)


def _with_options(config, attention, num_landmarks, padding) -> LanguageConfig:
    if attention == "softmax" and num_landmarks is not None:
        raise ValueError(
            f"attention='softmax' has no landmarks, num_landmarks={num_landmarks}: give one of them"
        )
    if num_landmarks is not None:
        num_landmarks = check_count("num_landmarks", num_landmarks)
        attention = "nystrom" if attention is None else attention
    if attention is not None:
        config = config.with_attention(attention, num_landmarks)
    return dataclasses.replace(config, padding=padding)


def _with_length(config, arrays, max_length):
    """The config and arrays for as many tokens: rows of the table of positions, repeated."""
    max_length = check_count("max_length", max_length)
    table, old = arrays.get(POSITIONS), config.max_position_embeddings
    if table is not None and table.ndim == 2 and len(table) == old + FIRST_POSITION:
        rows = np.arange(max_length) % old + FIRST_POSITION
        table = np.concatenate([table[:FIRST_POSITION], table[rows]])
        arrays = arrays | {POSITIONS: table}
        config = dataclasses.replace(config, max_position_embeddings=max_length)
    return config, arrays


def _fill(kind, config, dtype, arrays, rngs, problems):
    """A model of that kind with the arrays in it; adds to `problems` what does not fit."""
    if config.num_hidden_layers > len(arrays):
        problems.append(f"num_hidden_layers={config.num_hidden_layers}: of {len(arrays)} arrays")
        return None
    # Shapes alone: what the file has is never drawn.
    graph, abstract = nnx.split(nnx.eval_shape(lambda: kind(config, dtype=dtype, rngs=nnx.Rngs(0))))
    param_dtype = jnp.float64 if dtype == jnp.float64 else jnp.float32
    left, filled = dict(arrays), []
    for steps, leaf in nnx.to_flat_state(abstract):
        spot = place(kind, steps)
        expected = spot.file_shape(leaf.shape)
        if rngs is not None and steps[0] != "body":
            continue  # drawn below
        array = left.pop(spot.name, None)
        if array is None:
            problems.append(f"{spot.name}: missing, expected {expected}")
        elif array.shape != expected:
            problems.append(f"{spot.name}: has shape {array.shape}, expected {expected}")
        elif array.dtype.kind not in "fV":
            problems.append(f"{spot.name}: has dtype {array.dtype}, expected floating-point")
        else:
            value = jnp.asarray(spot.from_file(array).astype(param_dtype))
            filled.append((steps, leaf.replace(value)))
    problems += [f"{name}: unknown, of shape {array.shape}" for name, array in left.items()]
    if problems:
        return None
    if rngs is not None:
        filled += _drawn_head(kind, config, dtype, rngs, param_dtype)
    return nnx.merge(graph, nnx.from_flat_state(filled))


def _drawn_head(kind, config, dtype, rngs, param_dtype):
    """New parameters of the head alone."""
    small = dataclasses.replace(config, num_hidden_layers=1, max_position_embeddings=1)

    @nnx.jit  # so that of the body, which is not returned, nothing is drawn
    def draw(rngs):
        state = nnx.to_flat_state(nnx.state(kind(small, dtype=dtype, rngs=rngs)))
        head = {steps: leaf for steps, leaf in state if steps[0] != "body"}
        return jax.tree.map(lambda x: x.astype(param_dtype), head)

    return draw(rngs).items()
