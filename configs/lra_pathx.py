"""LRA Path-X: Pathfinder at 128 x 128 pixels, 16,384 tokens in raster order.

    python train.py --config=configs/lra_pathx.py [--config.task.data_dir=<has pathfinder128>]

Pathfinder's recipe; the authors have none for Path-X, and every attention in the paper stays at
chance, 50 %. A batch is taken in 16 parts, each block recomputed in the backward pass.
Without the release, images are generated after the same procedure.

Variants, for self-pretraining, see self_pretraining.py: :pretrain, :finetune, :spt_large,
:spt_large_finetune.
"""

from configs import base, lra_pathfinder, self_pretraining

VARIANTS = self_pretraining.VARIANTS
SELF_PRETRAINING = lra_pathfinder.SELF_PRETRAINING  # none is published for Path-X


def get_config(variant: str = ""):
    config = base.get_config()
    config.name = "lra_pathx"
    config.batch_size = 256
    config.accumulate_steps = 16
    config.num_train_steps = 62_400
    config.warmup_steps = 312
    config.eval_every = 312
    config.log_every = 1
    config.checkpoint_every = 20
    config.learning_rate = 1e-4
    config.model.remat = True
    config.task.name = "pathx"
    config.task.max_length = 16_384
    config.task.padded_length = 16_384
    if variant in VARIANTS:
        self_pretraining.change(config, variant, SELF_PRETRAINING)
    elif variant:
        raise base.UnknownVariant(variant, VARIANTS)
    return config
