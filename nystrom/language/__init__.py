"""The released language model: Nyströmformer's weights, read, run at any length, and written.

    from nystrom import language

    model = language.from_pretrained("nystromformer-512", num_landmarks=64)  # a folder
    logits = model(tokens, mask)  # *B N vocabulary
    language.save_pretrained(model, "folder")  # transformers reads it

Reading and writing weights needs `safetensors` (`pip install ".[language]"`).
"""

from nystrom.language.config import ATTENTIONS, PADDINGS, LanguageConfig
from nystrom.language.heads import (
    HEADS,
    MaskedLM,
    MultipleChoice,
    QuestionAnswering,
    SequenceClassification,
    TokenClassification,
)
from nystrom.language.losses import cross_entropy
from nystrom.language.model import NystromformerModel
from nystrom.language.weights import from_pretrained, save_pretrained

__all__ = [
    "ATTENTIONS",
    "HEADS",
    "PADDINGS",
    "LanguageConfig",
    "MaskedLM",
    "MultipleChoice",
    "NystromformerModel",
    "QuestionAnswering",
    "SequenceClassification",
    "TokenClassification",
    "cross_entropy",
    "from_pretrained",
    "save_pretrained",
]
