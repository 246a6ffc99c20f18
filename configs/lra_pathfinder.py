"""LRA Pathfinder: do both circles lie on one dashed contour? 32 x 32 pixels in raster order.

    python train.py --config=configs/lra_pathfinder.py [--config.task.data_dir=<has pathfinder32>]

The authors' recipe: 62,400 steps of 256. The paper reports 70.94 % for Nyströmformer and
74.16 % for softmax. Without the release, images are generated after the same procedure.

Variants, by the dashes in a contour: :hard (14; the default, LRA's set), :intermediate (9),
:easy (6). And for self-pretraining, see self_pretraining.py: :pretrain, :finetune, :spt_large,
:spt_large_finetune.
"""

from configs import base, self_pretraining

DIFFICULTIES = ("hard", "intermediate", "easy")
VARIANTS = (*DIFFICULTIES, *self_pretraining.VARIANTS)
SELF_PRETRAINING = self_pretraining.Recipe(
    share=0.5,
    pretrain_rate=1e-3,
    finetune_rate=5e-4,
    num_layers=4,
    width=128,
    num_heads=8,
    epoch=625,
)


def get_config(variant: str = ""):
    config = base.get_config()
    config.name = "lra_pathfinder"
    config.batch_size = 256
    config.num_train_steps = 62_400
    config.warmup_steps = 312
    config.eval_every = 312
    config.learning_rate = 1e-4
    config.task.name = "pathfinder"
    config.task.difficulty = variant if variant in DIFFICULTIES else "hard"
    config.task.max_length = 1_024
    config.task.padded_length = 1_024
    if variant in self_pretraining.VARIANTS:
        self_pretraining.change(config, variant, SELF_PRETRAINING)
    elif variant not in ("", *DIFFICULTIES):
        raise base.UnknownVariant(variant, VARIANTS)
    return config
