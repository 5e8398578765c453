"""A dual encoder that was trained with mm, in torch: an image and a text tower, and a shared space.

Written beside exported weights, so that transformers alone opens them:

  model = AutoModel.from_pretrained(folder, trust_remote_code=True)
  model.get_image_features(pixel_values); model.get_text_features(input_ids, attention_mask)
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_dual_encoder import DualEncoderConfig

ACTIVATIONS = {
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": torch.relu,
    "relu_squared": lambda x: torch.square(torch.relu(x)),
    "silu": nn.functional.silu,
}


@dataclass
class DualEncoderOutput(ModelOutput):
    """Logits [images, texts] and its transpose, and unit vectors."""

    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None


class DualEncoderModel(PreTrainedModel):
    """Pictures [b, 3, h, w] and token ids [b, length] to unit vectors [b, embed_dim]."""

    config_class = DualEncoderConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.image, self.text = ImageTower(config.image), TextTower(config.text)
        width = config.image["pool_dim"] or config.image["width"]
        self.image_projection = projection(config.image_projection, width, config.embed_dim)
        width = config.text["width"]
        self.text_projection = projection(config.text_projection, width, config.embed_dim)
        if config.logits is not None:
            self.logit_scale = nn.Parameter(torch.zeros(()))
            if config.logits["kind"] == "sigmoid":
                self.logit_bias = nn.Parameter(torch.zeros(()))
        self.post_init()

    def get_image_features(self, pixel_values):
        """Unit vectors [b, embed_dim]."""
        return normalize(self.image_projection(self.image(pixel_values)))

    def get_text_features(self, input_ids, attention_mask=None):
        """Unit vectors [b, embed_dim]. Without a mask all that is no padding is read."""
        if attention_mask is None:
            pad = self.config.pad_token_id
            attention_mask = torch.ones_like(input_ids) if pad is None else input_ids != pad
        return normalize(self.text_projection(self.text(input_ids, attention_mask.bool())))

    def forward(self, pixel_values=None, input_ids=None, attention_mask=None, **unused):
        """What of both is given; logits where both are."""
        zimg = None if pixel_values is None else self.get_image_features(pixel_values)
        ztxt = None if input_ids is None else self.get_text_features(input_ids, attention_mask)
        if zimg is None or ztxt is None:
            return DualEncoderOutput(image_embeds=zimg, text_embeds=ztxt)
        logits = zimg @ ztxt.T
        if self.config.logits is not None:
            most = self.config.logits["max_scale"]
            limit = math.inf if most is None else math.log(most)
            logits = logits * torch.exp(torch.clamp(self.logit_scale, max=limit))
            if self.config.logits["kind"] == "sigmoid":
                logits = logits + self.logit_bias
        return DualEncoderOutput(logits, logits.T, zimg, ztxt)

    def _init_weights(self, module):
        """Nothing: this model is not for training from scratch."""


def projection(kind, width, embed_dim):
    return nn.Identity() if kind == "none" else nn.Linear(width, embed_dim, kind == "affine")


def normalize(x):
    return x * torch.rsqrt(torch.clamp(x.square().sum(-1, keepdim=True), min=1e-24))


class RMSNorm(nn.Module):
    def __init__(self, width, epsilon):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon) * self.weight


def make_norm(options, width=None):
    kind = {"layer_norm": nn.LayerNorm, "rms_norm": RMSNorm}[options["norm"]]
    return kind(width or options["width"], options["norm_epsilon"])


class Attention(nn.Module):
    def __init__(self, options):
        super().__init__()
        width, self.heads = options["width"], options["num_heads"]
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        head = width // self.heads
        self.query_norm, self.key_norm = (
            make_norm(options, head) if options["qk_norm"] else nn.Identity() for _ in range(2)
        )

    def forward(self, x, memory, seen=None):
        """`seen` is True where a token may be seen, broadcast to [b, heads, n, m]."""
        projected = self.query(x), self.key(memory), self.value(memory)
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in projected)
        q, k = self.query_norm(q), self.key_norm(k)
        scores = torch.einsum("bnhk,bmhk->bhnm", q * q.shape[-1] ** -0.5, k)
        if seen is not None:
            scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        return self.out(torch.einsum("bhnm,bmhk->bnhk", scores.softmax(-1), v).flatten(-2))


class Mlp(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.up = nn.Linear(options["width"], options["mlp_dim"])
        self.down = nn.Linear(options["mlp_dim"], options["width"])
        self.activation = ACTIVATIONS[options["activation"]]

    def forward(self, x):
        return self.down(self.activation(self.up(x)))


class Branch(nn.Module):
    """x + f(norm(x)), or norm(x + f(x))."""

    def __init__(self, options):
        super().__init__()
        self.norm, self.pre = make_norm(options), options["norm_placement"] == "pre"
        scaled = options["layer_scale"] is not None
        self.scale = nn.Parameter(torch.ones(options["width"])) if scaled else None

    def forward(self, x, layer):
        y = layer(self.norm(x) if self.pre else x)
        y = y if self.scale is None else y * self.scale
        return x + y if self.pre else self.norm(x + y)


class Block(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.attention_branch, self.attention = Branch(options), Attention(options)
        self.mlp_branch, self.mlp = Branch(options), Mlp(options)

    def forward(self, x, seen):
        x = self.attention_branch(x, lambda y: self.attention(y, y, seen))
        return self.mlp_branch(x, self.mlp)


class Encoder(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.blocks = nn.ModuleList(Block(options) for _ in range(options["depth"]))
        normed = options["depth"] and options["norm_placement"] == "pre"
        self.final_norm = make_norm(options) if normed else nn.Identity()

    def forward(self, x, seen=None):
        for block in self.blocks:
            x = block(x, seen)
        return self.final_norm(x)


class AttentionPool(nn.Module):
    """One learned query, then an MLP."""

    def __init__(self, options):
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, options["width"]))
        self.attention, self.norm, self.mlp = Attention(options), make_norm(options), Mlp(options)

    def forward(self, tokens, mask=None):
        seen = None if mask is None else mask[:, None, None]
        x = self.attention(self.probe.expand(len(tokens), 1, -1), tokens, seen)[:, 0]
        return x + self.mlp(self.norm(x))


class FlattenPool(nn.Module):
    """All tokens side by side through one hidden layer."""

    def __init__(self, options, tokens):
        super().__init__()
        self.hidden = nn.Linear(tokens * options["width"], options["pool_dim"])
        self.activation = ACTIVATIONS[options["activation"]]

    def forward(self, tokens):
        return self.activation(self.hidden(tokens.flatten(1)))


class Pooler(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.layer = nn.Linear(options["width"], options["width"])

    def forward(self, x):
        return torch.tanh(self.layer(x))


def cut(x, size):
    """Squares of `size` of [b, h, w, c], each as one vector: [b, h / size, w / size, d]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // size, w // size, -1)


class LinearStem(nn.Module):
    """Each patch by one matmul."""

    def __init__(self, options, stem):
        super().__init__()
        self.size = options["patch_size"]
        inputs = self.size**2 * options["channels"]
        self.embedding = nn.Linear(inputs, options["width"], bias=stem["bias"])

    def forward(self, image):
        return self.embedding(cut(image, self.size).flatten(1, 2))


class CellStem(nn.Module):
    """A code of each small cell's contrast and mean, then of the patch from its cells."""

    def __init__(self, options, stem):
        super().__init__()
        self.size, self.cells = stem["cell_size"], options["patch_size"] // stem["cell_size"]
        width = stem["cell_width"]
        self.cell = nn.Linear(3 * self.size**2 + 4, width)
        self.norm = RMSNorm(width, 1e-6)
        self.merge = nn.Linear(self.cells**2 * width, stem["hidden"])
        self.out = nn.Linear(stem["hidden"], options["width"])
        self.activation = ACTIVATIONS[stem["activation"]]

    def forward(self, image):
        x = self.norm(self.activation(self.cell(contrast(cut(image, self.size)))))
        return self.out(self.activation(self.merge(cut(x, self.cells).flatten(1, 2))))


def contrast(cells, epsilon=0.1):
    """[(x - mean) / (deviation + epsilon), mean colour, deviation]."""
    pixels = cells.unflatten(-1, (-1, 3))
    mean = pixels.mean(-2)
    centered = (pixels - mean[..., None, :]).flatten(-2)
    deviation = torch.sqrt(centered.square().mean(-1, keepdim=True) + 1e-6)
    return torch.cat([centered / (deviation + epsilon), mean, deviation], -1)


def sincos2d(rows, columns, width, like):
    """Fixed sine and cosine embeddings of column and row."""
    omega = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    row, column = row.reshape(-1, 1) * omega, column.reshape(-1, 1) * omega
    parts = [torch.sin(column), torch.cos(column), torch.sin(row), torch.cos(row)]
    return torch.cat(parts, 1).to(like)


class ImageTower(nn.Module):
    def __init__(self, options):
        super().__init__()
        width, (height, across) = options["width"], options["image_size"]
        self.options, self.size = options, (height, across)
        self.grid = height // options["patch_size"], across // options["patch_size"]
        stem = options["stem"]
        self.stem = {"linear": LinearStem, "cells": CellStem}[stem["name"]](options, stem)
        count = math.prod(self.grid)
        if options["position"] == "learned":
            self.position_embedding = nn.Parameter(torch.zeros(count, width))
        if options["pool"] == "cls":
            self.cls = nn.Parameter(torch.zeros(1, width))
        if options["registers"]:
            self.registers = nn.Parameter(torch.zeros(options["registers"], width))
        self.pre_norm = make_norm(options) if options["pre_norm"] else nn.Identity()
        self.encoder = Encoder(options)
        if options["pool"] == "map":
            self.attention_pool = AttentionPool(options)
        if options["pool"] == "flatten":
            self.flatten_pool = FlattenPool(options, count)
        self.pooler = Pooler(options) if options["pooler"] else nn.Identity()

    def forward(self, pixel_values):
        options = self.options
        if tuple(pixel_values.shape[-2:]) != self.size:
            raise ValueError(f"pictures are {tuple(pixel_values.shape[-2:])}, expected {self.size}")
        x = self.stem(pixel_values.permute(0, 2, 3, 1))
        if options["position"] == "learned":
            x = x + self.position_embedding
        else:
            x = x + sincos2d(*self.grid, options["width"], x)
        extra = [self.cls] if options["pool"] == "cls" else []
        extra += [self.registers] if options["registers"] else []
        x = torch.cat([*(e.expand(len(x), *e.shape) for e in extra), x], 1)
        tokens = self.encoder(self.pre_norm(x))
        if options["pool"] == "cls":
            return self.pooler(tokens[:, 0])
        tokens = tokens[:, options["registers"] :]
        if options["pool"] == "mean":
            return tokens.mean(1)
        return (self.attention_pool if options["pool"] == "map" else self.flatten_pool)(tokens)


class TextTower(nn.Module):
    def __init__(self, options):
        super().__init__()
        width, self.options = options["width"], options
        self.embedding = nn.Parameter(torch.zeros(options["vocab_size"], width))
        if options["position"] == "learned":
            self.position_embedding = nn.Parameter(torch.zeros(options["length"], width))
        if options["segments"]:
            self.segment_embedding = nn.Parameter(torch.zeros(options["segments"], width))
        self.pre_norm = make_norm(options) if options["pre_norm"] else nn.Identity()
        self.encoder = Encoder(options)
        if options["pool"] == "map":
            self.attention_pool = AttentionPool(options)
        self.pooler = Pooler(options) if options["pooler"] else nn.Identity()

    def forward(self, ids, mask):
        """`mask` is True where a token is real."""
        options, length = self.options, ids.shape[1]
        if length > options["length"]:
            raise ValueError(f"texts of {length} tokens, expected at most {options['length']}")
        if options["padding"] == "read":
            mask = torch.ones_like(mask)
        x = self.embedding[ids]
        if options["position"] == "learned":
            x = x + self.position_embedding[:length]
        if options["segments"]:
            x = x + self.segment_embedding[0]
        seen = mask[:, None, None]
        if options["causal"]:
            past = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
            seen = seen & past
        tokens = self.encoder(self.pre_norm(x), seen)
        return self.pooler(self.pool(tokens, mask))

    def pool(self, tokens, mask):
        kind = self.options["pool"]
        if kind == "map":
            return self.attention_pool(tokens, mask)
        if kind == "first":
            return tokens[:, 0]
        if kind == "mean":
            weights = mask[..., None].to(tokens)
            return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
        places = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, places, 0).amax(1)
        return tokens[torch.arange(len(tokens), device=tokens.device), last]
