"""Is a film review positive? Fine-tunes a language model that `mlm.py:imdb` pretrained.

    python train.py --config=configs/mlm.py:imdb
    python train.py --config=configs/finetune_imdb.py

The reviews of LRA's Text, from the same sources, as pieces of the vocabulary of the run in
runs/mlm-imdb, whose encoder this begins with. From scratch: --config.init_from= (empty). For
another run give both --config.init_from and --config.task.tokenizer. 78.0 % on test, 77.3 % from
scratch (one seed each, the package's reviews), 3 minutes on two cores. Accuracy does not compare
with LRA's, whose Text is of bytes.

Variants:
  :paper  after a run of `mlm.py` in runs/mlm, the paper's base model: 32 reviews of 512 tokens,
          AdamW at 3e-5, four epochs of the official archive; the paper reports 93.2 %. For
          accelerators, untried.
"""

from configs import base, mlm

VARIANTS = ("paper",)


def get_config(variant: str = ""):
    if variant not in ("", *VARIANTS):
        raise base.UnknownVariant(variant, VARIANTS)
    pretrain = "" if variant == "paper" else "imdb"
    config = mlm.get_config(pretrain)
    config.name = "finetune_imdb"
    config.objective = "classify"
    config.init_from = config.task.tokenizer = "runs/mlm" + (f"-{pretrain}" if pretrain else "")
    config.batch_size = 32
    config.task.name = "reviews"
    config.task.source = "auto"
    config.task.sop = False
    if variant == "paper":
        config.num_train_steps = 2_812
        config.warmup_steps = 281
        config.eval_every = 703
        config.learning_rate = 3e-5
    else:
        config.num_train_steps = 600
        config.warmup_steps = 60
        config.eval_every = 150
        config.learning_rate = 1e-3
        config.task.source = "package"
    return config
