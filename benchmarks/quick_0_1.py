"""`configs/lra_listops.py:quick` as version 0.1 had it: checkouts are compared on one model.

For `benchmarks/compile_time.py --config=benchmarks/quick_0_1.py`: it changes the paper's recipe,
which the checkouts have in common.
"""

from configs import lra_listops


def get_config():
    config = lra_listops.get_config()
    config.num_train_steps = 600
    config.warmup_steps = 60
    config.eval_every = 150
    config.learning_rate = 1e-3
    config.task.min_length = 20
    config.task.max_length = 200
    config.task.padded_length = 256
    config.task.bucket_boundaries = (64, 128, 256)
    config.task.num_train = 20_000
    config.task.num_validation = 1_000
    config.task.num_test = 1_000
    return config
