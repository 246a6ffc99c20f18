"""Every field of a config, with defaults; configs/lra_<task>.py set what is theirs.

The recipe that all tasks share is that of the Nyströmformer authors' LRA code: AdamW with
betas 0.9/0.999, eps 1e-6 and no weight decay; a linear warm-up from 1/25 of the peak rate,
then linear decay to (1/25)/10^4 of it at the last step; two pre-norm blocks of width 64.
"""

import difflib

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The base config. Counts are in steps, lengths in tokens."""
    config = ml_collections.ConfigDict()
    config.name = ""  # the config file's name, set there
    config.seed = 0  # initial weights, order of examples, dropout, hidden tokens

    config.objective = "classify"  # what is learned: labels, or tokens that are hidden ("masked")
    config.init_from = ""  # a run's folder: start with the encoder of its best checkpoint

    config.batch_size = 32  # examples in a step
    config.accumulate_steps = 0  # gradient of a batch in this many parts; 0: what suits the device
    config.num_train_steps = 1_000  # where training ends
    config.eval_every = 100  # evaluate on validation and save a checkpoint
    config.log_every = 50  # report training metrics
    config.checkpoint_every = 0  # further checkpoints between evaluations; 0: none

    config.learning_rate = 1e-4  # the peak
    config.warmup_steps = 100  # in which the rate rises to the peak; then it falls linearly
    config.adam_b1 = 0.9  # decay of the mean of gradients
    config.adam_b1_cycle = ()  # (0.95, 0.85): at the lowest rate and at the peak; (): adam_b1
    config.adam_b2 = 0.999  # decay of the mean of squared gradients
    config.adam_eps = 1e-6  # added to the root of the mean of squares
    config.weight_decay = 0.0  # AdamW's, which is multiplied by the rate

    config.num_workers = 1  # threads that build batches ahead; no result changes with them
    config.cache_dir = ""  # prepared data and compiled programs; "": ~/.cache/nystrom

    config.mesh = ml_collections.ConfigDict()  # how all devices of a run share the work
    config.mesh.data = 0  # devices among which the examples of a batch are cut; 0: all that remain
    config.mesh.sequence = 1  # devices among which each sequence is cut (attention nystrom)

    config.masked = ml_collections.ConfigDict()  # of the objective "masked"
    config.masked.share = 0.15  # of the tokens: those that are hidden
    config.masked.mask_share = 0.8  # of the hidden: those that become the mask token
    config.masked.random_share = 0.1  # those that become a random token; the rest stay
    config.masked.head = "tied"  # weights of the logits: the embeddings' (tied) or own

    config.model = ml_collections.ConfigDict()
    config.model.attention = "nystrom"  # of every block
    config.model.num_landmarks = 64  # nystrom
    config.model.pinv = "iterative"  # nystrom: iterative (the paper's) or chebyshev (cheaper)
    config.model.pinv_iterations = 6  # nystrom, of the iterative one
    config.model.conv_kernel_size = 35  # nystrom: taps over the values; 0: none
    config.model.baseline_conv_kernel_size = 0  # other attentions: the same; the authors' have none
    config.model.padding = "inert"  # nystrom: or "authors", landmarks over it as their code has it
    config.model.num_features = 256  # performer: random features
    config.model.feature_kernel = "relu"  # performer: relu (the authors' runs) or softmax
    config.model.projection_length = 256  # linformer: what keys and values are projected to
    config.model.num_hashes = 2  # reformer: rounds of hashing
    config.model.bucket_size = 64  # reformer: tokens in a chunk of the sorted ones
    config.model.num_layers = 2  # blocks
    config.model.width = 64  # features of a token
    config.model.num_heads = 2  # a divisor of the width
    config.model.mlp_width = 128  # hidden features of a block's MLP
    config.model.head_width = 128  # hidden features of the classifier
    config.model.position = "learned"  # learned (the paper's table), rotary or none
    config.model.norm = "pre"  # pre (the authors' LRA models) or post (their language models)
    config.model.pooling = "mean"  # mean, max, last, cls (a token put first) or mean_padded
    config.model.embedding_std = 0.02  # of the normal initial embeddings
    config.model.dropout_rate = 0.1  # of embeddings and of what blocks add; below 1
    config.model.remat = False  # recompute blocks in the backward pass: less memory but on a CPU
    config.model.dtype = "float32"  # or "bfloat16"; parameters and softmax stay float32

    config.task = ml_collections.ConfigDict()
    config.task.name = ""  # listops, text, retrieval, image, pathfinder, pathx, documents, reviews
    config.task.source = "auto"  # release, generated, package, synthetic, auto: docs/tasks.md
    config.task.data_dir = ""  # where the official files lie
    config.task.max_length = 0  # tokens kept of a document
    config.task.padded_length = 0  # length that batches are padded to where there are no buckets
    config.task.bucket_boundaries = ()  # padded lengths, ascending; (): one, padded_length
    config.task.min_length = 0  # listops: expressions are longer than this
    config.task.difficulty = ""  # pathfinder: easy, intermediate or hard
    config.task.num_train = 0  # examples (documents: texts; synthetic: at most 256); 0: all
    config.task.num_validation = 0  # as num_train (synthetic: at most 64)
    config.task.num_test = 0  # as num_validation
    config.task.tokenizer = ""  # documents, reviews: a vocabulary or a run's folder
    config.task.vocab_size = 0  # documents, reviews: rows of the table of embeddings, its pieces
    config.task.sop = False  # documents: rows are halves of a text, half of them swapped (SOP)
    config.task.data_seed = 0  # seed of generated data and of seeded splits
    config.task.augment = False  # listops: in training, arguments in another order each time

    return config


class UnknownVariant(ValueError):
    """A config file has no such variant; the message names those that it has."""

    def __init__(self, variant: str, known: tuple[str, ...]):
        close = difflib.get_close_matches(variant, known, 1)
        meant = f"; did you mean :{close[0]}? There" if close else "; there"
        choices = ", ".join(f":{name}" for name in known) or "none"
        super().__init__(f"no variant {variant!r}{meant} are {choices}")
