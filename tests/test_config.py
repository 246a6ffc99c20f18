"""Configs load, lock and take overrides; wrong ones are refused before anything is touched."""

import importlib
import json
import platform
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import nystrom
from configs import base, reading
from experiment import provenance
from experiment.config_checks import check_config, suitable_accumulate_steps
from experiment.mesh import mesh_problems
from experiment.model import make_model
from experiment.workdir import default_workdir, differing_fields
from lra_tasks import without_data
from tests.conftest import ROOT, SMALL

CONFIG_FILES = sorted(path.stem for path in (ROOT / "configs").glob("lra_*.py"))
VARIANTS = [
    (name, variant)
    for name in CONFIG_FILES
    for variant in ("", *reading.variants(str(ROOT / "configs" / f"{name}.py")))
]
# Of lra.md's recipes: batch, steps, warm-up, tokens.
RECIPES = {
    "lra_listops": (32, 5_000, 1_000, 2_000),
    "lra_text": (32, 20_000, 8_000, 4_000),
    "lra_retrieval": (32, 30_000, 800, 4_000),
    "lra_image": (256, 35_000, 175, 1_024),
    "lra_pathfinder": (256, 62_400, 312, 1_024),
    "lra_pathx": (256, 62_400, 312, 16_384),
}


def load(name, variant=""):
    return importlib.import_module(f"configs.{name}").get_config(variant)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_config_locks_passes_its_checks_and_has_only_base_fields(name, variant):
    config = load(name, variant).lock()
    assert config.name == name
    assert check_config(synthetic(config)) == []
    fields = base.get_config()
    assert not [
        f
        for f, (old, _) in differing_fields(fields.to_dict(), config.to_dict()).items()
        if old == "absent"
    ]
    with pytest.raises(AttributeError):
        config.no_such_field = 1
    assert json.loads(json.dumps(config.to_dict()))["name"] == name


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_the_recipe_is_the_papers(name):
    config, model = load(name), load(name).model
    steps = config.batch_size, config.num_train_steps, config.warmup_steps, config.task.max_length
    assert steps == RECIPES[name]
    adam = config.learning_rate, config.adam_b1, config.adam_b2, config.adam_eps
    assert (*adam, config.weight_decay) == (1e-4, 0.9, 0.999, 1e-6, 0)
    sizes = model.num_layers, model.width, model.num_heads, model.mlp_width, model.head_width
    assert sizes == (2, 64, 2, 128, 128)
    nystrom = model.num_landmarks, model.pinv_iterations, model.conv_kernel_size, model.padding
    assert nystrom == (64, 6, 35, "inert")
    assert (model.dropout_rate, model.embedding_std) == (0.1, 0.02)
    assert (model.position, model.norm, model.pooling) == ("learned", "pre", "mean")


@pytest.mark.parametrize("attention", nystrom.ATTENTIONS)
def test_taps_of_the_convolution_are_those_of_its_field(attention):
    config = load("lra_listops").model
    config.attention, config.conv_kernel_size, config.baseline_conv_kernel_size = attention, 3, 5
    model = make_model(config, without_data(load("lra_listops").task), seed=0)
    expected = 3 if attention == "nystrom" else 5
    assert model.encoder.blocks[0].attention.filters.shape == (2, expected)


def synthetic(config: ConfigDict) -> ConfigDict:
    with config.unlocked():
        config.task.source = "synthetic"
    return config


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_both_phases_of_self_pretraining_have_one_model(name):
    for first, second in (("pretrain", "finetune"), ("spt_large", "spt_large_finetune")):
        pretrain, finetune = load(name, first), load(name, second)
        assert pretrain.model == finetune.model and pretrain.task == finetune.task
        assert (pretrain.objective, finetune.objective) == ("masked", "classify")
        assert finetune.init_from == str(default_workdir(f"configs/{name}.py:{first}", {}))
    assert load(name, "pretrain").model == load(name).model


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_an_unknown_variant_is_refused(name):
    with pytest.raises(ValueError, match="no variant 'fast'"):
        load(name, "fast")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("model.attention", "nystroem", "expected one of"),
        ("cache_dir", __file__, "a file; expected a folder"),
        ("model.num_heads", 3, "expected a divisor of config.model.width=64"),
        ("model.num_heads", 0, "expected 1 or more"),
        ("model.num_landmarks", 0, "expected 1 or more"),
        ("model.conv_kernel_size", 4, "odd"),
        ("model.baseline_conv_kernel_size", 4, "odd"),
        ("model.baseline_conv_kernel_size", -1, "expected 0 or more"),
        ("model.dropout_rate", 1.0, "less than 1"),
        ("model.embedding_std", -0.1, "expected 0 or more"),
        ("model.embedding_std", float("inf"), "finite"),
        ("model.dtype", "float8", "expected one of float32, bfloat16"),
        ("model.pooling", "sum", "expected one of mean, max, cls, last, mean_padded"),
        ("model.pinv", "svd", "expected one of iterative, chebyshev"),
        ("warmup_steps", 5_001, "at most config.num_train_steps=5000"),
        ("objective", "mask", "expected one of classify, masked"),
        ("masked.share", 0.0, "more than 0 and at most 1"),
        ("masked.share", 1.5, "more than 0 and at most 1"),
        ("masked.random_share", 0.3, "at most 1 with config.masked.mask_share=0.8"),
        ("masked.head", "none", "expected one of tied, own"),
        ("adam_b1_cycle", (0.9,), "expected () or two numbers"),
        ("adam_b1_cycle", (0.95, 1.0), "less than 1"),
        ("adam_b1_cycle", ("high", 0.9), "expected () or two numbers"),
        ("model.padding", "theirs", "expected one of inert, authors"),
        ("learning_rate", float("nan"), "expected 0 or more"),
        ("learning_rate", float("inf"), "finite"),
        ("batch_size", 0, "expected 1 or more"),
        ("accumulate_steps", 5, "expected a divisor of config.batch_size=32"),
        ("accumulate_steps", -1, "expected 0 or more"),
        ("eval_every", 0, "expected 1 or more"),
        ("seed", -1, "expected 0 or more"),
        ("seed", True, "expected int"),
        ("seed", 2**32, "expected 0 to 4294967295"),
        ("seed", 99999999999999999999, "expected 0 to 4294967295"),
        ("task.data_seed", -1, "expected 0 to 4294967295"),
        ("task.data_seed", 2**32, "expected 0 to 4294967295"),
        ("num_train_steps", 2**31, "expected 1 to 2147483647"),
        ("model.head_width", 10**20, "expected 1 to 1048576"),
        ("model.num_landmarks", 10**20, "expected 1 to 1048576"),
        ("model.pinv_iterations", 1001, "expected 1 to 1000"),
        ("task.difficulty", "hard", "only pathfinder and pathx have one"),
        ("task.padded_length", 10**20, "expected at most 16777216"),
        ("weight_decay", float("inf"), "finite"),
        ("weight_decay", 1e39, "finite"),
        ("adam_b2", 1.0, "less than 1"),
        ("adam_eps", float("inf"), "finite"),
        ("adam_eps", float("nan"), "expected 0 or more"),
        ("task.name", "listop", "listops"),
        ("task.source", "internet", "generated"),
        ("task.data_dir", "/no/such/folder", "no such"),
        ("task.bucket_boundaries", (512, 256), "ascending"),
        ("task.bucket_boundaries", (512, 1024), "2000"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(field, value, expected):
    config = load("lra_listops")
    config.update_from_flattened_dict({field: value})
    problems = check_config(config)
    mine = [p for p in problems if p.startswith(f"config.{field}={value!r}: ")]
    assert mine, problems
    assert expected in mine[0]


def test_all_tokens_may_be_hidden_and_none_be_left_as_it_is():
    config = load("lra_listops")
    config.update(objective="masked", masked={"share": 1.0, "random_share": 0.2})
    assert config.masked.mask_share + config.masked.random_share == 1
    assert check_config(config) == []


def test_halves_that_change_places_are_of_whole_sequences():
    config = load("lra_listops")
    config.update(mesh={"sequence": 2}, task={"sop": True})
    said = "config.task.sop=True: config.mesh.sequence=2 cuts sequences"
    assert [p for p in check_config(config, num_devices=2) if p.startswith(said)]


# Steps that never come are no harm; of lengths it is said that the padded ones are to be as large.
ANY_SIZE = ("checkpoint_every", "eval_every", "log_every", "task.max_length")


def test_no_number_may_be_negative_or_not_a_number_and_few_of_any_size():
    for field, value in reading.fields(load("lra_listops")).items():
        wrong = {int: [-1, 2**40][: 1 + (field not in ANY_SIZE)], float: [-1.0, float("nan")]}
        for other in wrong.get(type(value), ()):
            config = load("lra_listops")
            config.update_from_flattened_dict({field: other})
            problems = check_config(config)
            assert [p for p in problems if p.startswith(f"config.{field}={other!r}: ")], problems


def test_the_authors_setting_is_of_one_device_and_whole_batches():
    """Its examples share a scale, so a batch in parts would be another model."""
    config = load("lra_listops", "authors")
    assert check_config(config) == []
    (problem,) = check_config(config, num_devices=4)
    assert "model.padding='authors': needs one device" in problem and "there are 4" in problem
    config.accumulate_steps = 4
    (problem,) = check_config(config)
    assert "config.accumulate_steps=1, a batch in one part" in problem


def test_rotary_positions_need_an_even_number_of_features_a_head():
    config = load("lra_listops")
    config.model.update(position="rotary", width=60, num_heads=4)
    (problem,) = check_config(config)
    assert "model.num_heads=4: expected config.model.width=60 over it to be even" in problem
    config.model.num_heads = 7
    (problem,) = check_config(config)
    assert "model.num_heads=7: expected a divisor of config.model.width=60" in problem


def test_all_problems_are_reported_at_once():
    config = load("lra_listops")
    config.model.num_heads = 3
    config.warmup_steps = 10_000
    config.task.source = "internet"
    assert len(check_config(config)) == 3


def test_batches_must_split_over_the_devices():
    config = load("lra_listops")
    assert check_config(config, num_devices=8) == []
    (problem,) = check_config(config, num_devices=3)
    assert problem == "config.batch_size=32: expected a multiple of 3, for 3 devices: 30 or 33, say"
    config.accumulate_steps = 8
    (problem,) = check_config(config, num_devices=3)
    assert "expected a multiple of 24, for 3 devices of 8 parts each: 24 or 48" in problem


@pytest.mark.parametrize(("data", "advised"), [(4, True), (3, False)])
def test_more_devices_are_advised_where_a_batch_can_be_cut_over_them(data, advised):
    config = load("lra_listops")
    config.mesh.data = data
    (problem,) = check_config(config, num_devices=2)
    assert problem.startswith(f"config.mesh.data={data}: expected 2, for all 2 devices")
    assert (f"JAX_NUM_CPU_DEVICES={data}" in problem) == advised


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.model.attention=nystroem", "config.model.attention='nystroem'"),
        ("--config.task.data_dir=/no/such/folder", "config.task.data_dir='/no/such/folder'"),
        ("--config.num_landmarks=32", "did you mean --config.model.num_landmarks?"),
        ("--config.seed=one", "--config.seed=one: expected an integer"),
        ("surplus", "unexpected surplus"),
        ("--config=configs/no_such.py", "no such file; there are configs/finetune_imdb.py"),
    ],
)
def test_the_command_line_reports_errors_and_leaves_no_workdir(
    argument, expected, tmp_path, run_train
):
    workdir = tmp_path / "run"
    failed = run_train(*SMALL, f"--workdir={workdir}", argument, check=False)
    assert failed.returncode == 1 and not failed.stdout
    lines = failed.stderr.splitlines()
    assert expected in lines[-1]
    assert len(lines) == 1 or lines[0] == "The config can't be run:"
    assert not workdir.exists()


def test_the_default_workdir_names_config_variant_and_overrides():
    name = default_workdir(
        "configs/lra_listops.py:tuned",
        {"seed": 1, "model.num_landmarks": 32, "task.data_dir": "/a", "cache_dir": "/c"},
    )
    assert name == Path("runs/lra_listops-tuned,model.num_landmarks=32,seed=1,task.data_dir=_a")
    long = {"task.data_dir": "x" * 400}
    assert len(default_workdir("c.py", long).name) <= 150
    assert default_workdir("c.py", long) != default_workdir("c.py", {"task.data_dir": "x" * 401})
    name = default_workdir("c.py", {"task.data_dir": "数据" * 60}).name  # file systems count bytes
    assert 130 < len(name.encode()) <= 150 and name.startswith("c,task.data_dir=数据")


def test_what_departs_from_the_recipe_is_told_and_what_may_vary_is_not():
    config = load("lra_listops", "tuned")
    config.seed = 3
    config.model.attention = "softmax"
    config.model.num_landmarks = 32
    changes = provenance.recipe_changes(config)
    assert any(change.startswith("learning_rate=") for change in changes)
    assert not any("seed" in c or "attention" in c or "landmarks" in c for c in changes)
    assert provenance.recipe_changes(load("lra_listops")) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((32, 1, "cpu"), 8),  # parts of 4
        ((32, 4, "cpu"), 2),  # 4 on each device
        ((8, 4, "cpu"), 1),  # not enough for parts
        ((30, 1, "cpu"), 1),  # no parts of 4
        ((32, 1, "gpu"), 1),
    ],
)
def test_accumulate_steps_that_suit_a_device(arguments, expected):
    assert suitable_accumulate_steps(*arguments) == expected


CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
flags\t\t: fpu avx avx2 avx512f

processor\t: 1
model name\t: AMD EPYC
"""


def test_a_processor_is_told_from_others_of_its_name(tmp_path):
    for content, expected in (
        (CPUINFO, "AMD EPYC, cpu family 26, model 2, AVX-512"),
        (CPUINFO.replace(" avx512f", ""), "AMD EPYC, cpu family 26, model 2, AVX2"),
        ("processor : 0\nmodel name : Neoverse", "Neoverse"),
        ("Hardware : a board", platform.processor() or platform.machine()),
    ):
        (tmp_path / "cpuinfo").write_text(content)
        assert provenance.processor(tmp_path / "cpuinfo") == expected
    assert provenance.processor(tmp_path / "none") == (platform.processor() or platform.machine())


@pytest.mark.parametrize("data", [1, 3, 8])
def test_a_mesh_of_fewer_or_more_devices_than_there_are_is_refused(data):
    config = base.get_config()
    config.mesh.data = data
    (problem,) = mesh_problems(config, 4)
    assert f"config.mesh.data={data}: expected 4, for all 4 devices" in problem
    config.mesh.data = 4
    assert mesh_problems(config, 4) == []


@pytest.mark.parametrize("sequence", [-1, 0, 3])
def test_sequences_are_cut_over_a_divisor_of_the_devices(sequence):
    config = base.get_config()
    config.mesh.sequence = sequence
    (problem,) = mesh_problems(config, 4)
    assert problem.startswith(f"config.mesh.sequence={sequence}: expected a divisor")
    config.mesh.update(sequence=2, data=4)
    (problem,) = mesh_problems(config, 4)
    assert "expected 2, for all 4 devices" in problem and "JAX_NUM_CPU_DEVICES=8 " in problem
