"""Byte-fallback BPE vocabularies by SentencePiece, with the special tokens of the released models.

The library is no requirement of the Long Range Arena: it is imported when one of these is called.
"""

import functools
import io
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lra_tasks.disk import expand_user
from lra_tasks.store import VOCABULARY

PAD, UNKNOWN, CLS, SEP, MASK = range(5)
PIECES = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
LEAST_SIZE = 300  # special tokens, bytes, and some pieces
COMMAND = "pip install 'sentencepiece>=0.2'"


def find(tokenizer: str) -> Path:
    """The vocabulary's file: `tokenizer` itself, or tokenizer.model in it, such as a run's folder.

    Raises ValueError if there is none.
    """
    path = expand_user(tokenizer)
    path = path / VOCABULARY if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"no vocabulary {path}: expected a SentencePiece model, or a folder of a run on "
            "documents, which keeps its own; to go on with a run give that run's own folder"
        )
    return path


def train(texts: Iterable[str], vocab_size: int) -> bytes:
    """Learns a vocabulary of at most `vocab_size` pieces; returns the model's file.

    Raises ValueError where the texts don't have so many, or what reading them raises.
    """
    model = io.BytesIO()
    unread = []  # the library tells of these as its own

    def read():
        try:
            yield from texts
        except ValueError as error:
            unread.append(error)
            raise

    try:
        library().SentencePieceTrainer.train(
            sentence_iterator=read(),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 20,
            num_threads=1,  # the same pieces everywhere
            minloglevel=2,
            **dict(zip(("pad_id", "unk_id", "bos_id", "eos_id"), range(4), strict=True)),
            pad_piece=PIECES[PAD],
            unk_piece=PIECES[UNKNOWN],
            bos_piece=PIECES[CLS],
            eos_piece=PIECES[SEP],
            control_symbols=[PIECES[MASK]],
        )
    except RuntimeError as error:
        if unread:
            raise unread[0] from None
        said = " ".join(str(error).split())
        most = re.search(r"value <= (\d+)", said)
        if "sentences_.empty()" in said:
            advice = "none of them has any text"
        elif most and int(most[1]) < LEAST_SIZE:
            advice = f"they have too little text for the least size, {LEAST_SIZE}"
        else:
            advice = f"try a {'larger' if 'required_chars' in said else 'smaller'} one"
        raise ValueError(
            f"config.task.vocab_size={vocab_size}: no vocabulary can be learnt from the documents "
            f"({said}); {advice}"
        ) from error
    return model.getvalue()


class Tokenizer:
    """A vocabulary, read from its file's contents.

    Raises ValueError if that is none, or one with other special tokens.
    """

    def __init__(self, model: bytes, where: str = "the vocabulary"):
        self.processor = library().SentencePieceProcessor()
        try:
            self.processor.load_from_serialized_proto(model)
        except RuntimeError as error:
            raise ValueError(f"{where}: not a SentencePiece model") from error
        found = tuple(self.processor.id_to_piece(i) for i in range(min(len(self), len(PIECES))))
        if found != PIECES:
            raise ValueError(f"{where}: its first pieces are {found}, expected {PIECES}")

    def __len__(self) -> int:
        return self.processor.get_piece_size()

    def segments(self, text: str) -> list[np.ndarray]:
        """Token ids, uint16, of each line that is not blank."""
        lines = [line.strip() for line in text.splitlines()]
        found = self.processor.encode([line for line in lines if line], out_type=int)
        return [np.array(ids, np.uint16) for ids in found if ids]

    def decode(self, ids) -> str:
        """The text of token ids, special ones by their names."""
        parts, plain = [], []
        for i in [*map(int, ids), CLS]:
            if i > MASK:
                plain.append(i)
                continue
            parts += [self.processor.decode(plain)] if plain else []
            parts.append(PIECES[i])
            plain = []
        return " ".join(parts[:-1])


def load(path: Path) -> Tokenizer:
    """The vocabulary in a file, as it is now."""
    return _made(Path(path).read_bytes(), str(path))


_made = functools.lru_cache(maxsize=4)(Tokenizer)


def library():
    """SentencePiece; ImportError with the command that installs it."""
    try:
        import sentencepiece
    except ImportError as error:
        raise ImportError(
            f"documents need SentencePiece for their vocabulary: {COMMAND}"
        ) from error
    return sentencepiece
