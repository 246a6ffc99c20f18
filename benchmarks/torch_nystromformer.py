"""The LRA model and training step in PyTorch: what ours is compared with.

Written from the description of the Nyströmformer authors' code, with their layout: separate
projections, landmarks over the padded length, eq. 7 by batched products, a grouped 2-D
convolution. Products run from the right, F (A^+ (G V)), lest a difference in arithmetic pass for
speed. As a config says so, the pooled mean is over padding too (`pooling`), eq. 8's scale one for
the batch (`padding`), and rate and beta1 cycle by PyTorch's own OneCycleLR (`adam_b1_cycle`).
"""

import torch
from torch import nn
from torch.nn import functional


class NystromSelfAttention(nn.Module):
    def __init__(
        self, width, num_heads, num_landmarks, conv_kernel_size, iterations=6, batch_scale=False
    ):
        super().__init__()
        self.batch_scale = batch_scale
        self.num_heads = num_heads
        self.num_landmarks = num_landmarks
        self.iterations = iterations
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.conv = nn.Conv2d(
            num_heads,
            num_heads,
            (conv_kernel_size, 1),
            padding=(conv_kernel_size // 2, 0),
            bias=False,
            groups=num_heads,
        )

    def forward(self, x, mask):
        """x: B N C; mask: B N, 1.0 for real tokens; N a multiple of num_landmarks."""
        batch, length, width = x.shape
        depth = width // self.num_heads
        query, key, value = (
            layer(x).view(batch, length, self.num_heads, depth).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        real = mask[:, None, :, None]
        query = query * real * depth**-0.25
        key = key * real * depth**-0.25
        landmarks = (batch, self.num_heads, self.num_landmarks, -1, depth)
        q_landmarks = query.reshape(landmarks).mean(dim=-2)
        k_landmarks = key.reshape(landmarks).mean(dim=-2)
        f = torch.softmax(query @ k_landmarks.transpose(-1, -2), dim=-1)
        a = torch.softmax(q_landmarks @ k_landmarks.transpose(-1, -2), dim=-1)
        padding = -1e9 * (1 - mask[:, None, None, :])
        g = torch.softmax(q_landmarks @ key.transpose(-1, -2) + padding, dim=-1)
        out = f @ (self.pinv(a) @ (g @ value)) + self.conv(value * real)
        return self.out(out.transpose(1, 2).reshape(batch, length, width))

    def pinv(self, a):
        """Eq. 7 from eq. 8's start, each matrix with its own scale or all with one."""
        identity = torch.eye(a.shape[-1], device=a.device)
        dims = None if self.batch_scale else -1
        norm = a.sum(dim=-2).amax(dim=dims) * a.sum(dim=-1).amax(dim=dims)
        z = a.transpose(-1, -2) / norm[..., None, None]
        for _ in range(self.iterations):
            az = a @ z
            z = 0.25 * z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az)))
        return z


class Block(nn.Module):
    def __init__(self, width, mlp_width, attention, dropout_rate):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = attention
        self.dropout = nn.Dropout(dropout_rate)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_width),
            nn.GELU(),
            nn.Dropout(dropout_rate),
            nn.Linear(mlp_width, width),
            nn.Dropout(dropout_rate),
        )

    def forward(self, x, mask):
        x = x + self.dropout(self.attention(self.attention_norm(x), mask))
        return x + self.mlp(self.mlp_norm(x))


def classifier_like(ours, config, task):
    """The peer of our model for a task, with the same weights."""
    peer = Classifier(config.model, task.vocab_size, task.padded_length, task.num_classes)
    peer.copy_weights(ours)
    return peer


class Classifier(nn.Module):
    def __init__(self, model_config, vocab_size, max_length, num_classes):
        super().__init__()
        c = model_config
        self.token_embed = nn.Embedding(vocab_size, c.width)
        self.position_embed = nn.Embedding(max_length, c.width)
        self.dropout = nn.Dropout(c.dropout_rate)
        self.pooling = c.pooling
        self.blocks = nn.ModuleList(
            Block(
                c.width,
                c.mlp_width,
                NystromSelfAttention(
                    c.width,
                    c.num_heads,
                    c.num_landmarks,
                    c.conv_kernel_size,
                    c.pinv_iterations,
                    batch_scale=c.padding == "authors",
                ),
                c.dropout_rate,
            )
            for _ in range(c.num_layers)
        )
        self.norm = nn.LayerNorm(c.width)
        self.hidden = nn.Linear(c.width, c.head_width)
        self.logits = nn.Linear(c.head_width, num_classes)

    def forward(self, tokens, mask):
        """tokens: B N int64; mask: B N float. Logits B x classes."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.token_embed(tokens) + self.position_embed(positions))
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x) * mask[..., None]
        if self.pooling == "mean_padded":
            pooled = x.mean(dim=1)
        else:
            pooled = x.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return self.logits(functional.relu(self.hidden(pooled)))

    @torch.no_grad()
    def copy_weights(self, ours):
        """Takes the weights of a `nystrom.Classifier` of the same sizes."""

        def copy(target, source):
            target.copy_(torch.tensor(source[...].__array__().copy()).reshape(target.shape))

        def copy_dense(target, kernel, bias):
            target.weight.copy_(torch.tensor(kernel.__array__().T.copy()))
            target.bias.copy_(torch.tensor(bias.__array__().copy()))

        def copy_norm(target, source):
            copy(target.weight, source.scale)
            copy(target.bias, source.bias)

        encoder = ours.encoder
        copy(self.token_embed.weight, encoder.token_embed.embedding)
        copy(self.position_embed.weight, encoder.position_embed)
        for block, source in zip(self.blocks, encoder.blocks, strict=True):
            copy_norm(block.attention_norm, source.attention_norm)
            copy_norm(block.mlp_norm, source.mlp_norm)
            attention, width = source.attention, block.attention.out.in_features
            for index, name in enumerate(("query", "key", "value")):
                part = slice(index * width, (index + 1) * width)
                copy_dense(
                    getattr(block.attention, name),
                    attention.qkv.kernel[...][:, part],
                    attention.qkv.bias[...][part],
                )
            copy_dense(block.attention.out, attention.out.kernel[...], attention.out.bias[...])
            copy(block.attention.conv.weight, attention.filters)
            copy_dense(block.mlp[0], source.mlp_in.kernel[...], source.mlp_in.bias[...])
            copy_dense(block.mlp[3], source.mlp_out.kernel[...], source.mlp_out.bias[...])
        copy_norm(self.norm, encoder.norm)
        copy_dense(self.hidden, ours.hidden.kernel[...], ours.hidden.bias[...])
        copy_dense(self.logits, ours.logits.kernel[...], ours.logits.bias[...])


def make_step(config, model, accumulate_steps=1):
    """A training step on a NumPy batch as `lra_tasks` makes them; returns the mean loss.

    The batch is taken in `accumulate_steps` parts, whose gradients add up.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=(config.adam_b1, config.adam_b2),
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    schedule = None
    if config.adam_b1_cycle:
        high, low = config.adam_b1_cycle
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            config.learning_rate,
            total_steps=config.num_train_steps,
            pct_start=config.warmup_steps / config.num_train_steps,
            anneal_strategy="linear",
            base_momentum=low,
            max_momentum=high,
        )

    device = next(model.parameters()).device

    def step(batch):
        tokens = torch.from_numpy(batch["inputs"]).to(device, torch.int64)
        mask = torch.from_numpy(batch["mask"]).to(device, torch.float32)
        label = torch.from_numpy(batch["label"]).to(device, torch.int64)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in range(accumulate_steps):
            tokens_, mask_, label_ = (x[part::accumulate_steps] for x in (tokens, mask, label))
            loss = functional.cross_entropy(model(tokens_, mask_), label_) / accumulate_steps
            loss.backward()
            total += loss.item()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        return total

    return step
