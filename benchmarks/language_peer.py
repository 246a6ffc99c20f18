"""The model of `transformers` and ours on the same weights and inputs: what parity compares.

Needs what `requirements-language.txt` lists.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from nystrom import language

LENGTH, REAL, LANDMARKS = 24, 16, 8
TINY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": LENGTH,
    "conv_kernel_size": 5,
    "num_landmarks": LANDMARKS,
    "segment_means_seq_len": LENGTH,
}
CLASSES = {"none": "NystromformerModel"} | {
    name: head.ARCHITECTURE for name, head in language.HEADS.items()
}
NUM_LABELS = 3


def save_peer(head: str, folder: Path, *, spread: float | None = 0.3, seed: int = 0, **sizes):
    """Writes a model of `transformers` with random weights; `spread` None: its own initial ones.

    Its own leave biases at zero and attention nearly uniform, so that little could go wrong.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.NystromformerConfig(**(TINY | sizes), num_labels=NUM_LABELS)
    model = getattr(transformers, CLASSES[head])(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if spread is not None:
                parameter.normal_(std=spread)
                parameter += "LayerNorm.weight" in name
    model.save_pretrained(folder)


def make_inputs(head: str, mode: str, *, length=LENGTH, vocab_size=40, seed=0) -> dict:
    """Token ids, types and labels of a batch: of one in Nyström mode, where the peer mixes them."""
    rng = np.random.default_rng(seed)
    size = 1 if mode == "nystrom" else 2
    shape = (size, size, length) if head == "multiple_choice" else (size, length)
    inputs = {"tokens": rng.integers(0, vocab_size, shape), "types": rng.integers(0, 2, shape)}
    some = rng.random(shape) < 0.3
    if head == "masked_lm":
        inputs["labels"] = np.where(some, rng.integers(0, vocab_size, shape), -100)
    elif head == "token_classification":
        inputs["labels"] = np.where(some, rng.integers(0, NUM_LABELS, shape), -100)
    elif head == "question_answering":
        inputs["labels"] = rng.integers(0, length, (size, 2))
    elif head == "sequence_classification":
        inputs["labels"] = rng.integers(0, NUM_LABELS, size)
    elif head == "multiple_choice":
        inputs["labels"] = rng.integers(0, size, size)
    return inputs


def make_mask(inputs: dict, real: int) -> np.ndarray:
    """Padding at the end, `real` tokens left in the first example and a few more in the next."""
    shape = inputs["tokens"].shape
    count = real + 3 * np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
    return np.broadcast_to(np.arange(shape[-1]) < count, shape).copy()


def load_peer(head: str, folder: Path, mode: str, dtype: str, length: int = LENGTH):
    """The model of `transformers` in a folder, in exact or Nyström mode for one length."""
    import torch
    import transformers

    landmarks = json.loads((Path(folder) / "config.json").read_text())["num_landmarks"]
    segment = landmarks if mode == "exact" else length
    kind = getattr(transformers, CLASSES[head])
    model = kind.from_pretrained(folder, segment_means_seq_len=segment)
    return model.to(getattr(torch, dtype)).eval()


def peer_outputs(model, head: str, inputs: dict, mask=None) -> dict[str, np.ndarray]:
    """Hidden states of all layers, logits and loss of the peer, as it has them."""
    import torch

    mask = np.ones(inputs["tokens"].shape) if mask is None else mask
    given = {"input_ids": inputs["tokens"], "token_type_ids": inputs["types"]}
    given["attention_mask"] = mask.astype(np.int64)
    if head == "question_answering":
        given |= {
            "start_positions": inputs["labels"][:, 0],
            "end_positions": inputs["labels"][:, 1],
        }
    elif head != "none":
        given["labels"] = inputs["labels"]
    with torch.no_grad():
        out = model(**{k: torch.tensor(x) for k, x in given.items()}, output_hidden_states=True)
    hidden = torch.stack(out.hidden_states).numpy()
    found = {"hidden": hidden.reshape(len(hidden), *inputs["tokens"].shape, -1)}
    if head == "question_answering":
        found["logits"] = torch.stack([out.start_logits, out.end_logits], axis=-1).numpy()
    elif head != "none":
        found["logits"] = out.logits.numpy()
    if head != "none":
        found["loss"] = out.loss.numpy()
    return found


def load_ours(folder: Path, mode: str, dtype: str, padding="inert"):
    """Our model in a folder, in exact or Nyström mode with the file's landmarks."""
    attention = "softmax" if mode == "exact" else "nystrom"
    return language.from_pretrained(
        folder, attention=attention, dtype=getattr(jnp, dtype), padding=padding
    )


def our_outputs(model, inputs: dict, mask=None) -> dict[str, np.ndarray]:
    """What `peer_outputs` returns, of ours."""
    tokens, types = jnp.asarray(inputs["tokens"]), jnp.asarray(inputs["types"])
    mask = None if mask is None else jnp.asarray(mask)
    encoder = getattr(model, "body", model)
    states = encoder.hidden_states(tokens, mask, types)
    found = {"hidden": np.stack(states)}
    if encoder is not model:
        logits = model.logits(states[-1], mask)
        found["logits"] = np.asarray(logits)
        found["loss"] = np.asarray(model.loss(logits, jnp.asarray(inputs["labels"])))
    return found


def largest_difference(ours: dict, theirs: dict) -> dict[str, float]:
    """The largest absolute difference of each output."""
    return {
        name: float(np.abs(np.asarray(ours[name], np.float64) - theirs[name]).max())
        for name in theirs
    }


def with_x64(dtype: str):
    """A context in which JAX has the dtype."""
    return jax.enable_x64(dtype == "float64")
