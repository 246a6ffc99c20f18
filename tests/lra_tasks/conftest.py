import ml_collections
import pytest

import lra_tasks
from configs import base


@pytest.fixture(scope="session")
def make_config():
    """Makes a `config.task`: a small ListOps set unless told otherwise."""

    def make(name="listops", **fields):
        small = {"source": "synthetic", "max_length": 100, "padded_length": 128}
        small |= {"min_length": 10} if name == "listops" else {}
        defaults = base.get_config().task.to_dict() | small
        assert not set(fields) - set(defaults), fields
        return ml_collections.ConfigDict({**defaults, **fields, "name": name})

    return make


@pytest.fixture
def small(make_config):
    """A `config.task` whose set is prepared in a moment."""
    return make_config(num_train=40, num_validation=5, num_test=5)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    """A cache that the tests of a session share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def listops_task(make_config, cache_dir):
    """A small prepared ListOps set with three buckets."""
    config = make_config(bucket_boundaries=(32, 64, 128))
    return lra_tasks.load(config, cache_dir, progress=False)
