"""What a language model is: the fields of its config.json."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from nystrom.checks import check_choice, check_count
from nystrom.language.activations import ACTIVATIONS
from nystrom.layers import check_rate

ATTENTIONS = ("softmax", "nystrom")
PADDINGS = ("inert", "transformers")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
OUR_OWN = ("padding", "unread")  # fields that no config.json has
LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """The fields of a Nyströmformer's config.json, and how padding is taken.

    Attention is exact where `num_landmarks` equals `segment_means_seq_len`, else Nyström with
    `num_landmarks`, whatever the input's length: see `attention` and `with_attention`. Defaults are
    those of `transformers`, but that the attention is Nyström; of a file's fields they are its.

    `padding` is "inert", so that it changes no real token, or "transformers": to the digit what
    that library computes, where the convolution reaches into padding, positions count it, and
    landmarks average it; in its Nyström mode, of a batch of one, as it starts the inverses of a
    batch from one scale, and an example's result depends on the others there.
    `inv_coeff_init_option` starts each matrix's inverse from its own scale (eq. 8, as
    `nystrom_attention` does) instead of one for all heads of an example.

    Raises:
      ValueError: fields that can't be, all in one message, or the first count that can't.
    """

    vocab_size: int = 30000
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.1
    max_position_embeddings: int = 510
    type_vocab_size: int = 2
    segment_means_seq_len: int = 510
    num_landmarks: int = 64
    conv_kernel_size: int | None = 65
    inv_coeff_init_option: bool = False
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    problem_type: str | None = None
    num_labels: int = 2
    padding: str = "inert"
    unread: str = "{}"  # the file's other fields, as JSON, so that they are written back

    def __post_init__(self):
        problems = [str(problem) for problem in self._problems()]
        if problems:
            raise ValueError("; ".join(problems))

    def _problems(self):
        for name in (*COUNTS, *([] if self.conv_kernel_size is None else ["conv_kernel_size"])):
            try:
                check_count(name, getattr(self, name))
            except (TypeError, ValueError) as error:
                yield error
                return
        if self.hidden_size % self.num_attention_heads:
            yield (
                f"hidden_size={self.hidden_size} can't be split among "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.conv_kernel_size is not None and self.conv_kernel_size % 2 == 0:
            yield f"conv_kernel_size={self.conv_kernel_size}: expected an odd number, or null"
        if self.padding == "transformers" and self.inv_coeff_init_option:
            yield "inv_coeff_init_option=True: transformers can't run it; use padding='inert'"
        problem_type = PROBLEM_TYPES[0] if self.problem_type is None else self.problem_type
        for check, *arguments in (
            (check_rate, "hidden_dropout_prob", self.hidden_dropout_prob),
            (check_choice, "hidden_act", self.hidden_act, tuple(ACTIVATIONS)),
            (check_choice, "padding", self.padding, PADDINGS),
            (check_choice, "problem_type", problem_type, PROBLEM_TYPES),
            (_check_bool, "tie_word_embeddings", self.tie_word_embeddings),
            (_check_bool, "inv_coeff_init_option", self.inv_coeff_init_option),
            (_check_positive, "layer_norm_eps", self.layer_norm_eps),
            (_check_positive, "initializer_range", self.initializer_range),
        ):
            try:
                check(*arguments)
            except (TypeError, ValueError) as error:
                yield error

    @property
    def attention(self) -> str:
        """ "softmax" or "nystrom", by the rule of `transformers`."""
        return "softmax" if self.num_landmarks == self.segment_means_seq_len else "nystrom"

    def with_attention(self, attention: str, num_landmarks: int | None = None) -> "LanguageConfig":
        """This config with that attention and number of landmarks (None: as it is)."""
        check_choice("attention", attention, ATTENTIONS)
        count = self.num_landmarks if num_landmarks is None else num_landmarks
        segment = self.segment_means_seq_len
        if attention == "softmax":
            segment = count
        elif segment == count:  # any other number says Nyström; that of a full input, if it can
            segment = self.max_position_embeddings
            segment = 2 * count if segment == count else segment
        return dataclasses.replace(self, num_landmarks=count, segment_means_seq_len=segment)

    def to_dict(self) -> dict[str, Any]:
        """The fields of a config.json that `transformers` reads."""
        fields = json.loads(self.unread)
        labels = {str(i): f"LABEL_{i}" for i in range(self.num_labels)}
        if len(fields.get("id2label") or ()) != self.num_labels:
            fields["id2label"] = labels
            fields["label2id"] = {label: int(i) for i, label in labels.items()}
        for name, value in dataclasses.asdict(self).items():  # JSON has no numbers of NumPy's
            fields[name] = value.item() if isinstance(value, np.generic) else value
        for name in (*OUR_OWN, "num_labels"):
            del fields[name]
        return fields | {"model_type": "nystromformer"}


COUNTS = tuple(
    field.name for field in dataclasses.fields(LanguageConfig) if field.type in (int, "int")
)


def read_config(path: Path) -> tuple[LanguageConfig, dict[str, Any]]:
    """The config that a config.json holds, and all of its fields.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no JSON object, of another kind of model, or has fields that can't be.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} has no config.json: expected a model's folder, with config.json and "
            "model.safetensors, as `save_pretrained` and `transformers` write it"
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds a {type(fields).__name__}: expected an object of fields")
    kind = fields.get("model_type", "nystromformer")
    if kind != "nystromformer":
        raise ValueError(f"{path} has model_type {kind!r}: expected 'nystromformer'")
    if fields.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"{path}: only position_embedding_type 'absolute' is known")
    known = {field.name for field in dataclasses.fields(LanguageConfig)} - set(OUR_OWN)
    given: dict[str, Any] = {"segment_means_seq_len": 64}  # of files that leave it out
    given |= {name: value for name, value in fields.items() if name in known}
    labels = fields.get("id2label")
    if labels and not isinstance(labels, dict):
        raise ValueError(f"{path}: id2label={labels!r}: expected an object of labels, or null")
    if labels:
        given["num_labels"] = len(labels)
    unread = {name: value for name, value in fields.items() if name not in known}
    try:
        return LanguageConfig(**given, unread=json.dumps(unread, sort_keys=True)), fields
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _check_bool(name, value):
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: expected true or false")


def _check_positive(name, value):
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= LARGEST:
        raise ValueError(f"{name}={value!r}: expected a finite number above 0")
