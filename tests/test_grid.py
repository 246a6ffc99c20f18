"""The runs that a sweep's arguments make, and arguments that make none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiment.grid import GridError, make_runs, split_values, without_repeats
from experiment.workdir import default_workdir
from tests.conftest import ROOT

LISTOPS = f"--config={ROOT}/configs/lra_listops.py"


def test_a_sweep_is_the_product_of_the_values(tmp_path):
    runs = make_runs([LISTOPS, "--config.batch_size=8,16", "--config.seed=0,1,2"], tmp_path)
    assert [(r.config.batch_size, r.config.seed) for r in runs] == [
        (8, 0), (8, 1), (8, 2), (16, 0), (16, 1), (16, 2)
    ]  # fmt: skip
    assert runs[4].label == "batch_size=16 seed=1"
    assert len({run.workdir for run in runs}) == 6


def test_a_run_has_the_workdir_that_train_gives_it(tmp_path):
    (run,) = make_runs([LISTOPS, "--config.model.num_landmarks=32"], tmp_path)
    assert run.workdir == tmp_path / "lra_listops,model.num_landmarks=32"
    assert run.workdir.name == default_workdir(LISTOPS, {"model.num_landmarks": 32}).name
    assert run.label == run.workdir.name  # with no other to tell it from


def test_runs_that_differ_in_what_their_attention_does_not_read_are_run_once(tmp_path):
    fields = ["--config.model.attention=softmax,nystrom", "--config.model.num_landmarks=32,64"]
    runs = make_runs([LISTOPS, *fields, "--config.seed=0,1"], tmp_path)
    kept, repeats = without_repeats(runs)
    softmax, nystrom = runs[:4], runs[4:]
    assert kept == softmax[:2] + nystrom
    assert repeats == list(zip(softmax[2:], softmax[:2], strict=True))
    speeds = make_runs([LISTOPS, "--config.num_workers=1,2"], tmp_path)  # results alike, not times
    assert without_repeats(speeds) == (speeds, [])


def test_several_configs_and_variants(tmp_path):
    arguments = [LISTOPS + f",{ROOT}/configs/lra_text.py:1k", "--config.seed=0,1"]
    runs = make_runs(arguments, tmp_path)
    assert [run.config.task.name for run in runs] == ["listops", "listops", "text", "text"]
    assert runs[2].config.task.max_length == 1000
    assert runs[2].workdir.name == "lra_text-1k,seed=0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(512,2048)", [(512, 2048)]),
        ("(512,2048),(768,2048)", [(512, 2048), (768, 2048)]),
        ("(2048,),()", [(2048,), ()]),
        ("512,2048", [(512, 2048)]),  # as train.py reads it
    ],
)
def test_a_tuple_is_one_value(text, expected, tmp_path):
    runs = make_runs([LISTOPS, f"--config.task.bucket_boundaries={text}"], tmp_path)
    assert [run.config.task.bucket_boundaries for run in runs] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a,/b", ["/a", "/b"]),
        ("/a, /b", ["/a", "/b"]),
        ("'/a,b'", ["/a,b"]),
        ('"/a,b",/c', ["/a,b", "/c"]),
        ("""'/a"b,c'""", ['/a"b,c']),
        ("", [""]),
    ],
)
def test_quotes_keep_commas_in_a_text(text, expected, tmp_path):
    runs = make_runs([LISTOPS, f"--config.task.data_dir={text}"], tmp_path)
    assert [run.config.task.data_dir for run in runs] == expected


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.one_of(st.integers(), st.lists(st.integers()).map(tuple)), min_size=1))
def test_splitting_undoes_joining(items):
    texts = [str(item) for item in items]
    assert split_values(",".join(texts)) == texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([LISTOPS, "--config.seed=0,,1"], "--config.seed: '0,,1': an empty value"),
        ([LISTOPS, "--config.task.data_dir=/a,"], "an empty value"),
        ([LISTOPS, "--config.seed=(0,1"], r"\) is missing"),
        ([LISTOPS, "--config.seed=0)"], "has no partner"),
        ([LISTOPS, "--config.task.data_dir=it's,b"], "' is missing"),
        ([LISTOPS, "--config.seed=0", "--config.seed=1"], "--config.seed is given twice"),
        ([LISTOPS, "--config.seed=1,1"], "two runs would share .*seed=1"),
        ([LISTOPS, "--config.sed=1"], "--config.sed: no field 'sed'.* seed"),
        ([LISTOPS, "--config.model.sed=1"], "--config.model.sed: no field .*num_landmarks"),
        ([LISTOPS, "--config.seed=1,x"], "config.seed=x"),
        ([LISTOPS, "--config.seed"], "--config.seed: expected --config=FILE or"),
        ([LISTOPS, "--workdir=x"], "--workdir=x: expected"),
        ([LISTOPS + ":nix"], "no variant 'nix'"),
        (["--config=configs/nix.py"], "--config=configs/nix.py: no such file"),
        (["--config.seed=1"], "--config=FILE is missing"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, tmp_path):
    with pytest.raises(GridError, match=message):
        make_runs(arguments, tmp_path)
