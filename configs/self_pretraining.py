"""Self-pretraining (Amos et al., "Never Train from Scratch", arXiv 2310.02980) of the LRA models.

    python train.py --config=configs/lra_<task>.py:pretrain
    python train.py --config=configs/lra_<task>.py:finetune

The first guesses hidden tokens of the task's own training inputs; the second begins with the
encoder of its best checkpoint (`config.init_from`, by default runs/lra_<task>-pretrain) and learns
the labels. Shares of hidden tokens and rates are the published ones; the model, of 2 layers of 64,
and the steps of a phase are those of the paper's recipe.

:spt_large and :spt_large_finetune are the same at the published sizes, for a GPU, for 200 epochs a
phase, the most that was published; validation chooses the checkpoint. They report 81.3 % on average
(with rotary positions, --config.model.position=rotary, 86.2 %) for softmax attention. The widths of
MLP and head, twice the width as in the paper's model, and the warm-up are ours, and so is the loss
on pixels: cross-entropy over grey levels, where theirs is a distance.
"""

import dataclasses

VARIANTS = ("pretrain", "finetune", "spt_large", "spt_large_finetune")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is published for a task; `epoch` is the steps of one, with our batch size."""

    share: float
    pretrain_rate: float
    finetune_rate: float
    num_layers: int
    width: int
    num_heads: int
    epoch: int


def change(config, variant: str, recipe: Recipe) -> None:
    """Makes a task's config that of a phase of self-pretraining, `variant` of VARIANTS."""
    large, finetune = variant.startswith("spt_large"), variant.endswith("finetune")
    if finetune:
        config.init_from = f"runs/{config.name}-{'spt_large' if large else 'pretrain'}"
        config.learning_rate = recipe.finetune_rate
    else:
        config.objective = "masked"
        config.masked.share = recipe.share
        config.masked.head = "own"
        config.learning_rate = recipe.pretrain_rate
    if large:
        config.num_train_steps = 200 * recipe.epoch
        config.warmup_steps = 10 * recipe.epoch
        config.eval_every = recipe.epoch
        config.model.num_layers = recipe.num_layers
        config.model.width = recipe.width
        config.model.num_heads = recipe.num_heads
        config.model.mlp_width = config.model.head_width = 2 * recipe.width
