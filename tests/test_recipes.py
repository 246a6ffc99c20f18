"""Configs are those that results are of, and that were published."""

import importlib
import json

import pytest

from configs.reading import fields
from experiment.results import NOT_THE_RECIPE
from experiment.workdir import recorded
from tests.conftest import ROOT


def load(name, variant=""):
    return importlib.import_module(f"configs.{name}").get_config(variant)


def results(runs):
    found = sorted((ROOT / "results").glob(f"{runs}/result.json"))
    assert found
    return [json.loads(path.read_text()) for path in found]


def assert_same_recipe(config, then, but=""):
    """In the fields that both have, for fields come and go."""
    now, then = fields(recorded(config)), fields(then)
    both = (now.keys() & then.keys()) - {but, *NOT_THE_RECIPE}
    assert {name: now[name] for name in both} == {name: then[name] for name in both}


@pytest.mark.parametrize(
    ("file", "variant", "runs"),
    [
        ("lra_listops", "", "listops-nystrom-paper-seed*"),
        ("lra_listops", "tuned", "listops-nystrom-tuned-seed*"),
        ("lra_listops", "best", "listops-nystrom-best-seed*"),
        ("lra_listops", "authors", "listops-nystrom-authors-seed*"),
        ("lra_text", "", "text-package-nystrom-paper-seed*"),
        ("lra_text", "tuned", "text-package-nystrom-tuned-seed*"),
        ("lra_text", "best", "text-package-nystrom-best-seed*"),
        ("lra_text", "fast_pretrain", "text-package-nystrom-spt-pretrain-seed*"),
        ("lra_text", "fast_finetune", "text-package-nystrom-spt-finetune3000-seed*"),
        ("mlm", "imdb", "mlm-imdb"),
        ("finetune_imdb", "", "finetune_imdb-pretrained-seed*"),
    ],
)
def test_configs_are_those_of_the_results_that_they_speak_of(file, variant, runs):
    for result in results(runs):
        assert_same_recipe(load(file, variant), result["config"], but="init_from")


def test_the_short_expressions_are_those_that_the_best_results_began_with():
    for result in results("listops-nystrom-best-seed*"):
        assert_same_recipe(load("lra_listops", "short"), result["init_from"]["config"])


# Share of hidden tokens, rates, layers, width, heads, examples; 200 epochs.
PUBLISHED = {
    "lra_listops": (0.1, 1e-3, 1e-4, 6, 512, 8, 96_000),
    "lra_text": (0.15, 5e-4, 1e-4, 6, 512, 8, 22_500),
    "lra_retrieval": (0.15, 5e-3, 5e-4, 4, 128, 4, 147_086),
    "lra_image": (0.5, 1e-3, 1e-3, 3, 64, 4, 45_000),
    "lra_pathfinder": (0.5, 1e-3, 5e-4, 4, 128, 8, 160_000),
    "lra_pathx": (0.5, 1e-3, 5e-4, 4, 128, 8, 160_000),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_self_pretraining_is_as_published(name):
    share, rate, finetune_rate, *sizes, num_train = PUBLISHED[name]
    for first, second in (("pretrain", "finetune"), ("spt_large", "spt_large_finetune")):
        pretrain, finetune = load(name, first), load(name, second)
        assert (pretrain.masked.share, pretrain.masked.head) == (share, "own")
        assert (pretrain.learning_rate, finetune.learning_rate) == (rate, finetune_rate)
    model = finetune.model
    assert [model.num_layers, model.width, model.num_heads] == sizes
    for config in (pretrain, finetune):
        epochs = config.num_train_steps * config.batch_size / num_train
        assert epochs == pytest.approx(200, rel=0.002)
