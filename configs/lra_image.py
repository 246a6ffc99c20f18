"""LRA Image: the class of a CIFAR-10 picture, grey, 32 x 32 pixels in raster order.

    python train.py --config=configs/lra_image.py [--config.task.data_dir=DIR]

DIR holds cifar-10-binary.tar.gz; without it the file is downloaded.

The authors' recipe: 35,000 steps of 256. The paper reports 41.58 % for Nyströmformer and
38.20 % for softmax.

Variants, for self-pretraining, see self_pretraining.py: :pretrain, :finetune, :spt_large,
:spt_large_finetune.
"""

from configs import base, self_pretraining

VARIANTS = self_pretraining.VARIANTS
SELF_PRETRAINING = self_pretraining.Recipe(
    share=0.5,
    pretrain_rate=1e-3,
    finetune_rate=1e-3,
    num_layers=3,
    width=64,
    num_heads=4,
    epoch=176,
)


def get_config(variant: str = ""):
    config = base.get_config()
    config.name = "lra_image"
    config.batch_size = 256
    config.num_train_steps = 35_000
    config.warmup_steps = 175
    config.eval_every = 175
    config.learning_rate = 1e-4
    config.task.name = "image"
    config.task.max_length = 1_024
    config.task.padded_length = 1_024
    if variant in VARIANTS:
        self_pretraining.change(config, variant, SELF_PRETRAINING)
    elif variant:
        raise base.UnknownVariant(variant, VARIANTS)
    return config
