import ml_collections
import pytest

import lra_tasks


@pytest.fixture(scope="session")
def make_config():
    """Makes a `config.task`: a small ListOps set unless told otherwise."""

    def make(name="listops", **fields):
        defaults = {
            "source": "synthetic",
            "data_dir": "",
            "max_length": 100,
            "min_length": 10,
            "bucket_boundaries": (),
            "padded_length": 128,
            "num_train": 0,
            "num_validation": 0,
            "num_test": 0,
            "difficulty": "",
            "data_seed": 0,
            "tokenizer": "",
            "vocab_size": 0,
            "sop": False,
        }
        assert not set(fields) - set(defaults), fields
        return ml_collections.ConfigDict({"name": name, **defaults, **fields})

    return make


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    """A cache that the tests of a session share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def listops_task(make_config, cache_dir):
    """A small prepared ListOps set with three buckets."""
    config = make_config(bucket_boundaries=(32, 64, 128))
    return lra_tasks.load(config, cache_dir, progress=False)
