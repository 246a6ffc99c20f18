"""Config files anywhere, overrides and help: what is wrong is one line, with what there is."""

import inspect
import re
import sys
import textwrap

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

import train
from configs import base, reading, self_pretraining
from experiment import provenance, tracks
from experiment.config_checks import check_config
from experiment.workdir import recorded
from tests.conftest import ROOT

TEXT = "--config=configs/lra_text.py"
OF_NULLS = "SyntaxError" if sys.version_info >= (3, 11, 4) else "ValueError"  # in source code
ALL_FILES = "there are configs/finetune_imdb.py, configs/lra_image.py"


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def write(folder, source, name="mine.py"):
    path = folder / name
    path.write_text(textwrap.dedent(source))
    return path


MINE = """
    from configs import base, lra_text

    VARIANTS = ("short",)

    def get_config(variant=""):
        config = lra_text.get_config()
        config.name = "mine"
        config.learning_rate = 5e-4
        if variant == "short":
            config.num_train_steps = 9_000
        elif variant:
            raise base.UnknownVariant(variant, VARIANTS)
        return config
"""


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("--config=FILE is missing", ALL_FILES)),
        (("--config=configs/nope.py",), ("--config=configs/nope.py: no such file", ALL_FILES)),
        ((f"--config={300 * 'x'}",), ("xxx: no such file", ALL_FILES)),  # no name of a file
        (
            ("--config=configs/lra_txt.py",),
            ("did you mean configs/lra_text.py? There are con",),
        ),
        (("--config=lra_text",), ("did you mean configs/lra_text.py?",)),
        (("--config", "configs/lra_txt.py"), ("did you mean configs/lra_text.py?",)),
        (("--config=configs",), ("--config=configs: is a folder", ALL_FILES)),
        (("--config=README.md",), ("--config=README.md: not a Python file",)),
        ((TEXT + ":tuend",), ("no variant 'tuend'", "did you mean :tuned? There are :1k,")),
        (("--config=configs/lra_image.py:x",), ("no variant 'x'; there are :pretrain,",)),
        (
            (TEXT, "--config.model.atention=softmax"),
            ("no field 'atention'", "did you mean --config.model.attention?", "num_landmarks"),
        ),
        (
            (TEXT, "--config.num_landmarks=32"),
            ("no field 'num_landmarks'", "did you mean --config.model.num_landmarks?"),
        ),
        (
            (TEXT, "--config.task.bucket_boundaries[0]=32"),
            ("no field 'bucket_boundaries[0]'", "did you mean --config.task.bucket_boundaries?"),
        ),
        (
            (TEXT, "--config.model.num-landmarks=3"),
            ("no field 'num-landmarks'", "did you mean --config.model.num_landmarks?"),
        ),
        (
            (TEXT, "--config.widht=3"),  # misspelt, and a level too high
            ("no field 'widht'", "did you mean --config.model.width?"),
        ),
        ((TEXT, "--config.seed =3"), ("no field 'seed '", "did you mean --config.seed?")),
        ((TEXT, "--config.=3"), ("--config.: no field ''",)),
        ((TEXT, "--config.xyzzy=1"), ("no field 'xyzzy'; config has ", "batch_size")),
        ((TEXT, "--noconfig.model.remta"), ("did you mean --config.model.remat?",)),
        ((TEXT, "--config.seed.x=1"), ("no field 'x': config.seed has no fields",)),
        ((TEXT, "--config.model=5"), ("--config.model: has fields, give one: attention",)),
        ((TEXT, "--config.seed=one"), ("--config.seed=one: expected an integer",)),
        ((TEXT, "--config.learning_rate=fast"), ("learning_rate=fast: expected a number",)),
        ((TEXT, "--config.model.remat=maybe"), ("model.remat=maybe: expected True or False",)),
        ((TEXT, "--config.seed"), ("Missing value for flag --config.seed",)),
        (
            (TEXT, "--config.adam_b1_cycle=(0.9,0.8)", "--config.adam_b1_cycle=(0.8,0.7)"),
            ("--config.adam_b1_cycle: given 2 times, which would join",),
        ),
        (("--config.seed=1", TEXT), ("--config.seed=1", "before a value for --config")),
        ((TEXT, "--wrokdir=x"), ("wrokdir", "workdir")),
    ],
)
def test_wrong_arguments_are_told_in_one_line(arguments, parts):
    argv = ["train.py", *arguments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "", values)
    with pytest.raises(reading.ArgumentError) as error:
        reading.parse(argv, values)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message


def test_several_wrong_fields_are_each_told():
    problems = reading.find_problems(["", TEXT, "--config.sed=1", "--config.model.widht=2"])
    assert [p.partition(":")[0] for p in problems] == ["--config.sed", "--config.model.widht"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def get_config(:\n", "SyntaxError: invalid syntax"),
        ("\n\nimport no_such_package\n", "mine.py, line 3: ModuleNotFoundError"),
        ("def get_config():\n    return 1 / 0\n", "mine.py, line 2: ZeroDivisionError"),
        (
            "def rate():\n    return 1 / 0\n\n\ndef get_config():\n    return rate()\n",
            "mine.py, line 2: ZeroDivisionError",
        ),
        ("import sys\n\nsys.exit(3)\n", "mine.py, line 3: SystemExit: 3"),
        ("def get_config():\n    raise SystemExit('no')\n", "mine.py, line 2: SystemExit: no"),
        ("x = 1\n", "has no function get_config()"),
        ("def get_config():\n    pass\n", "returned NoneType"),
        ("x = '\0'\n", f"mine.py: {OF_NULLS}: source code string cannot contain null bytes"),
        (
            "import ml_collections\n"
            "def get_config():\n"
            "    return ml_collections.FrozenConfigDict({'seed': 1})\n",
            "get_config() returned FrozenConfigDict; expected the ConfigDict",
        ),
        (
            "from ml_collections import config_dict\n"
            "def get_config():\n"
            "    rate = config_dict.required_placeholder(float)\n"
            "    return config_dict.ConfigDict({'learning_rate': rate})\n",
            "mine.py: has a required_placeholder; expected a value, or a placeholder",
        ),
        ("def get_config(variant):\n    pass\n", "mine.py:VARIANT"),
    ],
)
def test_a_config_file_that_fails_is_named_with_the_line(source, expected, tmp_path):
    path = write(tmp_path, source)
    with pytest.raises(reading.ArgumentError) as error:
        reading.read_config([f"--config={path}"])
    message = str(error.value)
    assert message.startswith(f"--config={path}: ") and expected in message
    assert len(message.splitlines()) == 1


def test_files_beside_the_one_that_is_not_there_are_named(tmp_path):
    path = write(tmp_path, MINE)
    (problem,) = reading.find_problems(["", f"--config={tmp_path}/mime.py"])
    assert f"did you mean {path}? There are {path}" in problem


def test_a_config_anywhere_is_compared_with_its_own_recipe_and_with_lras(tmp_path):
    path = write(tmp_path, MINE)
    config, filename, overrides = reading.read_config(
        [f"--config={path}:short", "--config.batch_size=8", "--config.seed=3"]
    )
    assert filename == f"{path}:short" and overrides == {"batch_size": 8, "seed": 3}
    assert check_config(config) == []
    recipe = reading.load_recipe(filename)
    assert provenance.recipe_changes(config, recipe) == [
        "batch_size=8 (recipe 32)",
        "num_train_steps=9000 (recipe 20000)",
    ]
    assert provenance.recipe_changes(recipe) == ["learning_rate=0.0005 (recipe 0.0001)"]


def test_a_config_that_needs_a_variant_is_its_own_recipe(tmp_path):
    source = """
        from configs import lra_text

        def get_config(variant=""):
            config = lra_text.get_config()
            config.model.width = {"big": 128}[variant]
            return config
    """
    assert reading.load_recipe(f"{write(tmp_path, source)}:big").model.width == 128


def test_a_task_without_a_recipe_of_lras_is_compared_with_the_defaults():
    assert tracks.lra_recipe("mine") == recorded(base.get_config())


def test_fields_of_a_config_are_those_of_base():
    fields = reading.load("configs/lra_text.py").to_dict()
    fields |= {"batch_size": "32", "seed": True, "weight_decay": 0}
    fields["model"]["num_landmark"] = 32
    fields["task"]["bucket_boundaries"] = [4_096]
    del fields["warmup_steps"]
    assert sorted(check_config(ConfigDict(fields))) == [
        "config.batch_size='32': expected int",
        "config.model.num_landmark: no such field; did you mean config.model.num_landmarks?",
        "config.seed=True: expected int",
        "config.warmup_steps: is missing; see configs/base.py",
    ]


def test_help_is_short_and_names_every_config_and_variant(capsys):
    with pytest.raises(SystemExit) as ended:
        train.parse_flags(["train.py", "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert max(map(len, out.splitlines())) <= 80 and len(out.splitlines()) <= 48
    assert f"$ python train.py --help\n{out}```" in (ROOT / "docs/terminal.md").read_text()
    for file in (ROOT / "configs").glob("lra_*.py"):
        variants = "".join(f" :{name}" for name in reading.variants(str(file)))
        assert f"configs/{file.name}{variants} " in " ".join(out.split()) + " "
    for option in (
        "--config.FIELD=VALUE",
        "--workdir=DIR",
        "--profile=START:STOP",
        "--distributed",
        "--help_config",
    ):
        assert option in out


def test_variants_for_help_are_those_that_the_files_take():
    for file in reading.known_files():
        for variant in reading.variants(file):
            assert reading.load(f"{file}:{variant}").name
        source = inspect.getsource(reading.load_module(file))
        taken = len(set(re.findall(r'variant == "(\w+)"', source)))
        own = set(reading.variants(file)) - set(self_pretraining.VARIANTS)
        assert taken in (0, len(own))


def test_help_config_explains_every_field_with_the_values_of_a_config(capsys):
    with pytest.raises(SystemExit):
        train.parse_flags(["train.py", TEXT + ":tuned", "--help_config"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for name in reading.fields(base.get_config()):
        (at,) = [i for i, x in enumerate(lines) if x.startswith(f"--config.{name}=")]
        assert lines[at + 1].startswith("    "), f"{name} has no comment"
    assert "--config.num_train_steps=2000" in lines
    assert "one of iterative, chebyshev" in " ".join(line.strip() for line in lines)


def test_a_wrong_variant_of_a_config_elsewhere_is_named_by_its_path(tmp_path):
    text = (
        "from configs.base import UnknownVariant\n"
        "def get_config(v):\n"
        "    raise UnknownVariant(v, ('long',))\n"
    )
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(reading.ArgumentError) as error:
        reading.load(f"{tmp_path}/mine.py:lon")
    assert str(error.value) == (
        f"--config={tmp_path}/mine.py:lon: no variant 'lon'; did you mean :long? There are :long"
    )
    with pytest.raises(reading.ArgumentError, match="names no file; expected FILE or FILE:VAR"):
        reading.load(":quick")


def test_a_config_is_given_with_one_hyphen_or_two_and_not_after_them():
    for hyphens in ("-", "--"):
        assert reading.find_problems(["", f"{hyphens}config", "configs/lra_text.py"]) == []
    (problem,) = reading.find_problems(["", "--", TEXT])
    assert problem.startswith("--config=FILE is missing")


def test_of_a_field_given_twice_the_last_counts():
    assert reading.read_config((TEXT, "--config.seed=1", "--config.seed=2"))[0].seed == 2
