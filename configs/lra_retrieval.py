"""LRA Retrieval: does one of two papers cite the other? The first 4,000 bytes of each.

    python train.py --config=configs/lra_retrieval.py --config.task.data_dir=<has the AAN TSVs>

The authors' recipe: 30,000 steps of 32 pairs. The paper reports 79.56 % for Nyströmformer and
79.35 % for softmax. The texts may not be redistributed: bring LRA's release,
https://storage.googleapis.com/long-range-arena/lra_release.gz

Variants, for self-pretraining, see self_pretraining.py: :pretrain, :finetune, :spt_large,
:spt_large_finetune.
"""

from configs import base, self_pretraining

VARIANTS = self_pretraining.VARIANTS
SELF_PRETRAINING = self_pretraining.Recipe(
    share=0.15,
    pretrain_rate=5e-3,
    finetune_rate=5e-4,
    num_layers=4,
    width=128,
    num_heads=4,
    epoch=4_597,
)


def get_config(variant: str = ""):
    config = base.get_config()
    config.name = "lra_retrieval"
    config.batch_size = 32
    config.num_train_steps = 30_000
    config.warmup_steps = 800
    config.eval_every = 300
    config.learning_rate = 1e-4
    config.task.name = "retrieval"
    config.task.max_length = 4_000
    config.task.padded_length = 4_096
    config.task.bucket_boundaries = (2_048, 3_072, 4_096)
    if variant in VARIANTS:
        self_pretraining.change(config, variant, SELF_PRETRAINING)
    elif variant:
        raise base.UnknownVariant(variant, VARIANTS)
    return config
