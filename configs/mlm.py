"""Masked pretraining of a language model on a folder of UTF-8 files, each a document.

    python train.py --config=configs/mlm.py --workdir=runs/mlm --config.task.data_dir=DIR

The paper's base model and recipe: 12 post-norm layers of 768, 512 tokens, 15 % of them hidden, and
whether the halves of a text were swapped (--config.task.sop=False leaves that out); 500,000 steps
of 256 by AdamW at 1e-4 with decay 0.01 and 10,000 steps of warm-up. For accelerators: untried here.
The vocabulary is learnt from the documents, 30,000 pieces, unless one is given as
--config.task.tokenizer, and stays with the run. Where theirs tells the halves by types of tokens,
ours has [SEP] between them alone. Nor has ours a dense layer and a norm before the logits of hidden
tokens, or dropout before those of order, and an example's order weighs as its hidden tokens do. A
token is hidden or not whatever others are, so that some rows have more than their 80. A row of one
line is cut into halves at a random token; theirs take the second from elsewhere in the text.

Variants:
  :small  their small model: 4 layers, 100,000 steps.
  :imdb   a demonstration on a CPU: 2 layers of 128 on the film reviews of the package of Text, 128
          tokens of 4,096 pieces, without labels: 4.43 nats a hidden token, 19 minutes on two cores.
          `finetune_imdb.py` goes on from it.
"""

from configs import base

VARIANTS = ("small", "imdb")


def get_config(variant: str = ""):
    config = base.get_config()
    config.name = "mlm"
    config.objective = "masked"
    config.batch_size = 256
    config.num_train_steps = 500_000
    config.warmup_steps = 10_000
    config.eval_every = 5_000
    config.checkpoint_every = 500
    config.learning_rate = 1e-4
    config.weight_decay = 0.01
    config.model.num_layers = 12
    config.model.width = 768
    config.model.num_heads = 12
    config.model.mlp_width = 3_072
    config.model.head_width = 768
    config.model.norm = "post"
    config.model.conv_kernel_size = 65
    config.task.name = "documents"
    config.task.source = "release"
    config.task.vocab_size = 30_000
    config.task.sop = True
    config.task.max_length = 512
    config.task.padded_length = 512
    if variant == "small":
        config.model.num_layers = 4
        config.num_train_steps = 100_000
    elif variant == "imdb":
        config.batch_size = 32
        config.num_train_steps = 2_000
        config.warmup_steps = 200
        config.eval_every = 500
        config.checkpoint_every = 50
        config.learning_rate = 2e-3
        config.model.num_layers = 2
        config.model.width = 128
        config.model.num_heads = 4
        config.model.mlp_width = 256
        config.model.head_width = 128
        config.model.norm = "pre"
        config.model.num_landmarks = 32
        config.model.conv_kernel_size = 35
        config.task.source = "package"
        config.task.vocab_size = 4_096
        config.task.sop = False
        config.task.max_length = 128
        config.task.padded_length = 128
        config.task.bucket_boundaries = (64, 128)
    elif variant:
        raise base.UnknownVariant(variant, VARIANTS)
    return config
