"""Documents: their vocabulary, their rows, and what is refused."""

import itertools
import os
import sys

import numpy as np
import pytest
from document_files import SIZE, WORDS, write_documents

import lra_tasks
from lra_tasks import documents
from lra_tasks.documents import tokenizer
from lra_tasks.store import VOCABULARY

pytest.importorskip("sentencepiece")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    return folder, write_documents(folder)


def test_a_vocabulary_is_what_its_file_holds_now(tmp_path):
    file = tmp_path / "tokenizer.model"
    for size in (320, 330):
        file.write_bytes(tokenizer.train(iter([" ".join(WORDS)]), size))
        assert len(tokenizer.load(file)) == size


@pytest.fixture
def make_documents(make_config, folder):
    def make(**fields):
        given = {"source": "release", "data_dir": str(folder[0]), "vocab_size": SIZE}
        given |= {"max_length": 64, "padded_length": 64}
        return make_config("documents", **given | fields)

    return make


@pytest.fixture(scope="module")
def vocabulary(folder):
    lines = [line for lines in folder[1].values() for line in lines]
    return tokenizer.train(lines, SIZE)


def test_linked_folders_are_entered_once(tmp_path):
    write_documents(tmp_path / "a", 6)
    write_documents(tmp_path / "b", 3)
    for name in (".git/config", "top.txt"):
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).touch()
    (tmp_path / "a" / "more").symlink_to(tmp_path / "b")
    (tmp_path / "a" / "part0" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "nowhere")
    found = [
        str(path.relative_to(tmp_path / "a")) for path in documents.document_files(tmp_path / "a")
    ]
    assert found == [f"more/part{n}/{n}.txt" for n in range(3)] + [
        *(f"part{n}/{m}.txt" for n in range(3) for m in (n, n + 3)),
        "top.txt",
    ]


def texts_of(task):
    """The text of every row of every split, special tokens left in."""
    found = {}
    for name, split in task.splits.items():
        examples = split.examples.__getitems__(range(len(split.lengths)))
        found[name] = [documents.decode(e["inputs"], task.tokenizer) for e in examples]
    return found


def test_a_folders_files_are_cut_into_rows_and_nothing_is_lost(make_documents, folder, cache_dir):
    config = make_documents()
    assert lra_tasks.check(config, cache_dir) == []
    task = lra_tasks.load(config, cache_dir, progress=False)
    assert (task.vocab_size, task.first_id, task.mask_id) == (SIZE, 5, 4)
    assert not task.comparable_to_lra
    batches = lra_tasks.Batches(task, "train", 4, seed=0)
    batch = batches[0]
    assert batch["inputs"].max() > 255  # more than a byte holds
    assert (batch["inputs"][:, 0] == tokenizer.CLS).all()
    ends = np.take_along_axis(batch["inputs"], batch["mask"].sum(1)[:, None] - 1, 1)
    assert (ends == tokenizer.SEP).all()
    read = " ".join(row for rows in texts_of(task).values() for row in rows)
    plain = read.replace("[CLS]", " ").replace("[SEP]", " ").replace(" ", "")
    for lines in folder[1].values():
        assert "".join(lines).replace(" ", "") in plain
    counts = batches.token_counts()
    assert counts.shape == (SIZE,) and counts.sum() == task.splits["train"].lengths.sum()
    assert counts[tokenizer.CLS] == len(task.splits["train"].lengths)


def test_the_vocabulary_stays_with_the_set_and_can_be_given(make_documents, cache_dir, tmp_path):
    first = lra_tasks.load(make_documents(), cache_dir, progress=False)
    (tmp_path / VOCABULARY).write_bytes(first.tokenizer.read_bytes())
    given = make_documents(tokenizer=str(tmp_path), max_length=40)
    second = lra_tasks.load(given, cache_dir, progress=False)
    assert second.tokenizer.read_bytes() == first.tokenizer.read_bytes()
    assert second.fingerprint != first.fingerprint
    text = "the film was superb"
    ids = documents.encode(text, second.tokenizer)
    assert documents.decode(ids, second.tokenizer) == f"[CLS] {text} [SEP]"


def test_pairs_follow_from_the_seed_and_the_split(
    make_documents, vocabulary, tmp_path, monkeypatch
):
    path = tmp_path / VOCABULARY
    path.write_bytes(vocabulary)
    document = "\n".join(" ".join(WORDS) for _ in range(40))
    monkeypatch.setattr(documents, "read_texts", lambda *_: [document])

    def pairs(seed, split):
        config = make_documents(tokenizer=str(path), sop=True, data_seed=seed)
        found = documents.examples(config, "release", [path], {})[split]()
        return [(x["inputs"].tolist(), x["label"]) for x in found]

    assert pairs(0, "train") == pairs(0, "train")
    assert pairs(0, "train") != pairs(1, "train") and pairs(0, "train") != pairs(0, "test")


def test_what_is_wrong_with_documents_is_named(make_documents, tmp_path, cache_dir, monkeypatch):
    (problem,) = lra_tasks.check(make_documents(vocab_size=0))
    assert problem.startswith("config.task.vocab_size=0: expected 300 to 65536")
    (problem,) = lra_tasks.check(make_documents(max_length=7))
    assert problem == "config.task.max_length=7: expected 8 or more"
    (problem,) = lra_tasks.check(make_documents(tokenizer=str(tmp_path)))
    assert f"no vocabulary {tmp_path / 'tokenizer.model'}" in problem
    (tmp_path / "larger.model").write_bytes(tokenizer.train(iter([" ".join(WORDS)]), 330))
    for name in ("documents", "reviews"):
        config = make_documents(tokenizer=str(tmp_path / "larger.model"))
        config.name = name
        (problem,) = lra_tasks.check(config)
        assert problem == "config.task.vocab_size=320: the vocabulary has 330"
    write_documents(tmp_path / "few", 2)
    (problem,) = lra_tasks.check(make_documents(data_dir=str(tmp_path / "few")))
    assert "has 2 files, expected 3 or more" in problem
    with pytest.raises(ValueError, match=r"vocab_size=5000: .*value <= \d+.*a smaller one"):
        lra_tasks.load(make_documents(vocab_size=5_000), cache_dir, progress=False)
    (tmp_path / "other.model").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"other\.model: not a SentencePiece model"):
        given = make_documents(tokenizer=str(tmp_path / "other.model"))
        lra_tasks.load(given, cache_dir, progress=False)
    write_documents(tmp_path / "bad")
    (tmp_path / "bad" / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt: not UTF-8 at byte 3"):
        lra_tasks.load(make_documents(data_dir=str(tmp_path / "bad")), cache_dir, progress=False)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (problem,) = lra_tasks.check(make_documents())
    assert "pip install 'sentencepiece" in problem


def test_tasks_of_bytes_have_no_vocabulary(make_config):
    problems = lra_tasks.check(make_config(vocab_size=500, sop=True))
    assert [p.partition(":")[0] for p in problems] == [
        "config.task.vocab_size=500",
        "config.task.sop=True",
    ]
    (problem,) = lra_tasks.check(make_config("reviews", vocab_size=500))
    assert "config.task.tokenizer=''" in problem


def test_without_files_the_set_of_the_vocabulary_asked_for_is_taken(make_documents, tmp_path):
    write_documents(tmp_path / "more", seed=5)
    more = make_documents(data_dir=str(tmp_path / "more"))
    folders = [lra_tasks.prepare_set(config, tmp_path) for config in (make_documents(), more)]
    assert folders[0] != folders[1]
    for folder in folders:
        config = make_documents(data_dir="", tokenizer=str(folder))
        assert lra_tasks.prepare_set(config, tmp_path) == folder
    config = make_documents(data_dir="", tokenizer=str(tmp_path / "gone"))
    (problem,) = lra_tasks.check(config, tmp_path)
    assert problem.startswith(f"config.task.tokenizer='{tmp_path}/gone': no vocabulary")


@pytest.mark.parametrize("source", ["auto", "package"])
def test_reviews_without_their_vocabulary_ask_for_it_and_for_nothing_else(
    source, make_config, tmp_path
):
    config = make_config("reviews", vocab_size=SIZE, source=source, tokenizer=str(tmp_path))
    (problem,) = lra_tasks.check(config, tmp_path / "cache")
    assert problem.startswith(f"config.task.tokenizer='{tmp_path}': no vocabulary")
    (tmp_path / VOCABULARY).write_bytes(b"none")
    (problem,) = lra_tasks.check(config, tmp_path / "cache")
    assert problem.startswith(f"config.task.tokenizer='{tmp_path}': ")
    assert "not a SentencePiece model" in problem


def test_copies_of_a_vocabulary_make_one_set(make_documents, tmp_path):
    first = lra_tasks.load(make_documents(), tmp_path, progress=False)
    names = []
    for number in range(2):
        copy = tmp_path / f"run{number}" / VOCABULARY
        copy.parent.mkdir()
        copy.write_bytes(first.tokenizer.read_bytes())
        os.utime(copy, (number, number))
        names.append(lra_tasks.prepare_set(make_documents(tokenizer=str(copy.parent)), tmp_path))
    assert names[0] == names[1]


def test_a_review_is_encoded_as_it_is_stored(vocabulary, make_config, tmp_path, monkeypatch):
    written = {"train": ["the film<br /><br />was dull", " \n"], "validation": ["a"], "test": ["a"]}
    stored = {
        split: lambda reviews=reviews: [
            {"inputs": np.frombuffer(review.encode(), np.uint8), "label": 1} for review in reviews
        ]
        for split, reviews in written.items()
    }
    monkeypatch.setattr(lra_tasks.task_module("text"), "examples", lambda *_: stored)
    path = tmp_path / VOCABULARY
    path.write_bytes(vocabulary)
    config = make_config("reviews", max_length=64, vocab_size=SIZE, tokenizer=str(path))
    reviews = lra_tasks.task_module("reviews")
    makers = reviews.examples(lra_tasks.check_config.read_config(config), "package", [path], {})
    first, blank = (example["inputs"] for example in makers["train"]())
    np.testing.assert_array_equal(reviews.encode(written["train"][0], path), first)
    assert documents.decode(first, path) == "[CLS] the film was dull [SEP]"
    assert blank.tolist() == [tokenizer.CLS, tokenizer.SEP]


def test_a_text_is_taken_as_it_stands(vocabulary, tmp_path):
    """Neither spaces nor characters that Unicode has others for are made others."""
    path = tmp_path / VOCABULARY
    path.write_bytes(vocabulary)
    text = "the  \ufb01lm\u2460 \uff21"
    assert documents.decode(documents.encode(text, path), path) == f"[CLS] {text} [SEP]"


def test_a_vocabulary_that_cannot_be_learnt_names_what_helps():
    many = [chr(0x4E00 + i) for i in range(400)]
    with pytest.raises(ValueError, match=r"vocab_size=300: no vocabulary .* try a larger one"):
        tokenizer.train(iter(many), 300)
    with pytest.raises(ValueError, match=r"vocab_size=900: no vocabulary .* try a smaller one"):
        tokenizer.train(iter([" ".join(WORDS)]), 900)
    with pytest.raises(ValueError, match=r"\); they have too little text for the least size, 300"):
        tokenizer.train(iter(["a a"]), 900)
    with pytest.raises(ValueError, match=r"\); none of them has any text"):
        tokenizer.train(iter([]), 300)


def test_a_vocabulary_is_learnt_from_lines_of_any_length():
    """SentencePiece leaves out lines of more than a MiB, and says nothing."""
    lines = list(documents._lines([" \n" + "x" * 250_000 + "\n\nend\n"]))
    assert "".join(lines) == "x" * 250_000 + "end" and max(map(len, lines)) == documents.MAX_LINE
    document = "αβγδε ζηθικ λμνξο " * 40_000
    assert len(document.encode()) > 2**20
    known = tokenizer.Tokenizer(tokenizer.train(documents._lines([document]), 300))
    (ids,) = known.segments("αβγδε")
    assert len(ids) < len("αβγδε".encode())  # words, not bytes


def test_a_file_that_is_no_text_is_named_when_a_vocabulary_is_learnt(tmp_path):
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG")
    texts = (documents._read(path) for path in [tmp_path / "picture.txt"])
    with pytest.raises(ValueError, match=r"^\S*picture.txt: not UTF-8 at byte 0$"):
        tokenizer.train(texts, 300)


def test_files_are_each_in_one_split_drawn_with_the_seed(make_documents, tmp_path):
    files = [tmp_path / f"{n}.txt" for n in range(12)]

    def splits(**fields):
        asked = {"num_train": 0, "num_validation": 2, "num_test": 3}
        return documents._files_of(make_documents(**asked | fields), files)

    found = splits()
    sizes = {"train": 7, "validation": 2, "test": 3}
    assert {name: len(part) for name, part in found.items()} == sizes
    assert sorted(itertools.chain(*found.values())) == sorted(files)
    assert splits() == found != splits(data_seed=1)
    with pytest.raises(ValueError, match="leave none of the 12 files for train"):
        splits(num_validation=9)
    many = documents._files_of(make_documents(), [tmp_path / f"{n}.txt" for n in range(60)])
    assert {name: len(part) for name, part in many.items()} == {
        "train": 54,
        "validation": 3,
        "test": 3,
    }


def test_as_many_documents_can_be_asked_for_as_there_are(make_documents, tmp_path):
    write_documents(tmp_path)
    files = documents.document_files(tmp_path)
    files[0].write_bytes(b"\xef\xbb\xbfwith a byte order mark")

    def texts(count):
        config = make_documents(num_train=count)
        return list(documents.read_texts(config, "release", files, "train"))

    assert len(texts(10)) == 10 == len(texts(0))
    assert not any(text.startswith("\ufeff") for text in texts(10))
    assert documents._read(files[0]) == "with a byte order mark"
    with pytest.raises(ValueError, match=r"num_train=11: there are 10 documents"):
        texts(11)


def test_documents_of_one_file_have_the_fingerprint_of_their_tokens(make_config, tmp_path):
    sizes = {"num_train": 20, "num_validation": 5, "num_test": 5}
    sizes |= {"max_length": 64, "padded_length": 64}

    def fingerprint_of(vocab_size):
        asked = make_config("documents", source="package", vocab_size=vocab_size, **sizes)
        return lra_tasks.load(asked, tmp_path, progress=False).fingerprint

    assert fingerprint_of(400) != fingerprint_of(420)
