"""Makes the golden files beside it: tiny random models of others, what they return, and gradients.

    python tests/golden/models/make.py     # in an environment of its own, never that of the suite

Made with Python 3.11, torch 2.13.0 (CPU), transformers 5.23.0, safetensors 0.8.0 and numpy 2.4.6.
The ResNet is written down here with torch.nn in torchvision's layout and names (its v1.5 blocks),
with GroupNorm for BatchNorm, and few blocks; all other models are classes of transformers.

A file NAME.safetensors holds "weight/..." by the names that `save_pretrained` writes, "input/...",
"output/..." and "gradient/..." of the model's "output/loss" by each weight that is not frozen. A
model without a loss of its own has sum(output * input["slope_<output>"]), which is not stored.
Everything is computed in float64; weights and inputs are float16, which holds them exactly.
NAME.json is the config.json that `save_pretrained` writes beside those weights.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.lxmert.modeling_lxmert import LxmertXLayer

HERE = Path(__file__).parent
BATCH, LENGTH, WORDS, IMAGE, PATCH = 3, 6, 24, 12, 4
TOWER = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=20,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    layer_norm_eps=1e-3,  # great enough to be noticed
)
VISION = TOWER | dict(image_size=IMAGE, patch_size=PATCH)
SHALLOW = VISION | dict(num_hidden_layers=1)  # beside a text tower of two layers
TEXT = TOWER | dict(
    vocab_size=WORDS, max_position_embeddings=LENGTH, pad_token_id=0, bos_token_id=1, eos_token_id=2
)


def main() -> None:
    """Writes all files."""
    torch.multinomial = lambda weights, count: torch.arange(count)  # ViLT's patches in their order
    for make in (vit, clip, siglip, bert, vit_mae, blip, lxmert, vilt, resnet18, resnet50):
        torch.manual_seed(0)
        make(np.random.default_rng(0))


def vit(rng: np.random.Generator) -> None:
    model = hf.ViTModel(hf.ViTConfig(**VISION), add_pooling_layer=False)
    randomize(model, rng)
    tokens = model(pixel_values=(image := images(rng))).last_hidden_state
    write("vit", model, rng, dict(image=image), dict(tokens=tokens))


def clip(rng: np.random.Generator) -> None:
    end = WORDS - 1  # the largest id, which is where older CLIPs pool, whatever the end mark
    config = hf.CLIPConfig(
        text_config=TEXT | dict(eos_token_id=end), vision_config=SHALLOW, projection_dim=8
    )
    model = hf.CLIPModel(config)
    randomize(model, rng)
    ids, mask = words(rng, end)
    inputs = dict(image=images(rng), text=ids, text_mask=mask)
    out = model(
        pixel_values=inputs["image"], input_ids=ids, attention_mask=mask.long(), return_loss=True
    )
    outputs = dict(logits=out.logits_per_image, image=out.image_embeds, text=out.text_embeds)
    write("clip", model, rng, inputs, outputs, out.loss)


def siglip(rng: np.random.Generator) -> None:
    model = hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=SHALLOW))
    randomize(model, rng)
    ids, _ = words(rng)
    inputs = dict(image=images(rng), text=ids)  # SigLIP reads padding as words
    out = model(pixel_values=inputs["image"], input_ids=ids, return_loss=True)
    outputs = dict(logits=out.logits_per_image, image=out.image_embeds, text=out.text_embeds)
    write("siglip", model, rng, inputs, outputs, out.loss)


def bert(rng: np.random.Generator) -> None:
    model = hf.BertForMaskedLM(hf.BertConfig(**TEXT))
    randomize(model, rng)
    ids, mask = words(rng)
    segments = torch.tensor(np.arange(LENGTH) > 2).long().expand(BATCH, -1)
    masked = torch.tensor([[0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0], [0, 1, 1, 0, 0, 1]]).bool()
    masked &= mask
    targets = torch.where(masked, torch.tensor(rng.integers(3, WORDS, ids.shape)), -100)
    out = model(
        input_ids=ids,
        attention_mask=mask.long(),
        token_type_ids=segments,
        labels=targets,
        output_hidden_states=True,
    )
    inputs = dict(text=ids, text_mask=mask, segments=segments, masked=masked, targets=targets)
    outputs = dict(tokens=out.hidden_states[-1], logits=out.logits)
    write("bert", model, rng, inputs, outputs, out.loss)


def vit_mae(rng: np.random.Generator) -> None:
    config = hf.ViTMAEConfig(
        **VISION | dict(image_size=16),
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=20,
        mask_ratio=0.75,
        norm_pix_loss=True,
    )
    model = hf.ViTMAEForPreTraining(config)
    # The constructor of this version leaves both tables of positions at zero.
    tables = model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed
    for table in tables:
        table._is_hf_initialized = False
    model.decoder.initialize_weights(16)
    tables[0].data = tables[1].data.clone()  # of the same width and grid
    assert all(table.abs().sum() > 0 for table in tables)
    randomize(model, rng, but=("position_embeddings", "decoder_pos_embed"))  # sines and cosines
    inputs = dict(image=images(rng, 16), noise=rounded(rng.random((BATCH, 16))))
    model.double()
    seen = model.vit(pixel_values=inputs["image"], noise=inputs["noise"])
    out = model(pixel_values=inputs["image"], noise=inputs["noise"])
    outputs = dict(tokens=seen.last_hidden_state, pixels=out.logits, masked=out.mask)
    write("vit_mae", model, rng, inputs, outputs, out.loss)


def blip(rng: np.random.Generator) -> None:
    config = hf.BlipConfig(
        text_config=TEXT | dict(encoder_hidden_size=16),
        vision_config=SHALLOW,
        image_text_hidden_size=8,
    )
    model = hf.BlipForImageTextRetrieval(config)
    randomize(model, rng)
    ids, mask = words(rng)
    inputs = dict(image=images(rng), text=ids, text_mask=mask)
    given = dict(pixel_values=inputs["image"], input_ids=ids, attention_mask=mask.long())
    outputs = {
        "cosines": model(**given, use_itm_head=False).itm_score,
        "matches": model(**given, use_itm_head=True).itm_score,
    }
    write("blip", model, rng, inputs, outputs)


def lxmert(rng: np.random.Generator) -> None:
    model = LxmertXLayer(hf.LxmertConfig(**TOWER))
    randomize(model, rng)
    _, mask = words(rng)
    inputs = dict(
        image=rounded(rng.standard_normal((BATCH, 5, 16))),
        text=rounded(rng.standard_normal((BATCH, LENGTH, 16))),
        text_mask=mask,
    )
    added = (1.0 - mask[:, None, None].double()) * torch.finfo(torch.float64).min
    text, image = model(inputs["text"], added, inputs["image"], None)
    write("lxmert", model, rng, inputs, dict(image=image, text=text))


def vilt(rng: np.random.Generator) -> None:
    config = hf.ViltConfig(**VISION | TEXT, max_image_length=-1)
    model = hf.ViltModel(config, add_pooling_layer=False)
    randomize(model, rng)
    ids, mask = words(rng)
    inputs = dict(image=images(rng), text=ids, text_mask=mask)
    out = model(
        input_ids=ids, attention_mask=mask.long(), pixel_values=inputs["image"]
    ).last_hidden_state
    outputs = dict(text=out[:, :LENGTH] * mask[..., None], image=out[:, LENGTH:])
    write("vilt", model, rng, inputs, outputs)


def resnet18(rng: np.random.Generator) -> None:
    resnet("resnet18", Basic, (1, 2, 1), 2, 2, rng)


def resnet50(rng: np.random.Generator) -> None:
    resnet("resnet50", Bottleneck, (1, 2, 1), 1, 1, rng)


def resnet(name: str, block: type, counts: tuple, base: int, groups: int, rng) -> None:
    model = ResNet(block, counts, base, groups)
    randomize(model, rng)
    image = images(rng, 34)[:2]
    write(name, model, rng, dict(image=image), dict(map=model(image)))


class ResNet(nn.Module):
    """Without the classifier: images [b, 3, h, w] to the last stage's map [b, c, h2, w2]."""

    def __init__(self, block: type, counts: tuple, base: int, groups: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, base, 7, 2, 3, bias=False)
        self.bn1 = nn.GroupNorm(groups, base)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        width, self.stages = base, len(counts)
        for stage, count in enumerate(counts):
            blocks = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(width, base * 2**stage, stride, groups))
                width = base * 2**stage * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x


class Basic(nn.Module):
    expansion = 1

    def __init__(self, width: int, hidden: int, stride: int, groups: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, hidden, 3, stride, 1, bias=False)
        self.bn1 = nn.GroupNorm(groups, hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, 1, 1, bias=False)
        self.bn2 = nn.GroupNorm(groups, hidden)
        self.downsample = downsample(width, hidden, stride, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, width: int, hidden: int, stride: int, groups: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, hidden, 1, bias=False)
        self.bn1 = nn.GroupNorm(groups, hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, 1, bias=False)
        self.bn2 = nn.GroupNorm(groups, hidden)
        self.conv3 = nn.Conv2d(hidden, 4 * hidden, 1, bias=False)
        self.bn3 = nn.GroupNorm(groups, 4 * hidden)
        self.downsample = downsample(width, 4 * hidden, stride, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def downsample(width: int, outputs: int, stride: int, groups: int) -> nn.Module:
    if stride == 1 and width == outputs:
        return nn.Identity()
    conv = nn.Conv2d(width, outputs, 1, stride, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(groups, outputs))


def rounded(x: np.ndarray) -> torch.Tensor:
    """To what float16 can hold, in float64."""
    return torch.tensor(np.asarray(x, np.float16).astype(np.float64))


def images(rng: np.random.Generator, size: int = IMAGE) -> torch.Tensor:
    return rounded(rng.uniform(-1, 1, (BATCH, 3, size, size)))


def words(rng: np.random.Generator, end: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and which are real: 6, 3 and 5 of them; `end` is the id of the last real one."""
    lengths = np.array([6, 3, 5])[:, None]
    ids = rng.integers(3, WORDS - 1, (BATCH, LENGTH))
    if end is not None:
        ids = np.where(np.arange(LENGTH) == lengths - 1, end, ids)
    mask = np.arange(LENGTH) < lengths
    return torch.tensor(np.where(mask, ids, 0)), torch.tensor(mask)


def randomize(model: nn.Module, rng: np.random.Generator, but: tuple = ()) -> None:
    """Every weight random, biases and norms too, and big enough to matter; in float64."""
    model.double().eval()
    for name, weight in model.named_parameters():
        shape = tuple(weight.shape)
        if name.endswith(but):
            value = weight.detach().numpy()
        elif name == "logit_scale":
            value = np.full(shape, np.log(5.0))
        elif "norm" in name.lower() or ".bn" in name or name.startswith("bn"):
            value = (1.0 if name.endswith("weight") else 0.0) + 0.3 * rng.standard_normal(shape)
        elif "downsample.1" in name:
            value = (1.0 if name.endswith("weight") else 0.0) + 0.3 * rng.standard_normal(shape)
        elif len(shape) < 2 or "embed" in name:
            value = 0.5 * rng.standard_normal(shape)
        else:
            value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        weight.data = rounded(value)


def write(
    file: str,
    model: nn.Module,
    rng: np.random.Generator,
    inputs: dict[str, torch.Tensor],
    outputs: dict[str, torch.Tensor],
    loss: torch.Tensor | None = None,
) -> None:
    """One file; see above."""
    if loss is not None:
        outputs = outputs | {"loss": loss}
    else:
        slopes = {name: rounded(rng.standard_normal(x.shape)) for name, x in outputs.items()}
        loss = sum((x * slopes[name]).sum() for name, x in outputs.items())
        inputs = inputs | {f"slope_{name}": x for name, x in slopes.items()}
    loss.backward()
    trained = {name for name, x in model.named_parameters() if x.grad is not None}
    frozen = {name for name, x in model.named_parameters() if x.grad is None}
    arrays = {f"weight/{name}": x.half() for name, x in saved(model).items()}
    for weight in model.parameters():
        weight.data = torch.zeros_like(weight) if weight.grad is None else weight.grad
    gradients = saved(model)
    # A frozen weight has its name in files, too; none of ours is renamed there.
    assert trained and not frozen - gradients.keys(), frozen
    arrays |= {f"gradient/{name}": x.float() for name, x in gradients.items() if name not in frozen}
    for name, x in inputs.items():
        small = x.half() if x.is_floating_point() else x if x.dtype == torch.bool else x.int()
        assert (small == x).all(), name
        arrays[f"input/{name}"] = small
    for name, x in outputs.items():
        arrays[f"output/{name}"] = x.float()
    save_config(file, model)
    path = HERE / f"{file}.safetensors"
    save_file({name: x.detach().contiguous() for name, x in arrays.items()}, path)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB, loss {loss:.5f}")


def saved(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights by their names in files, which are not always those of the module."""
    if not isinstance(model, hf.PreTrainedModel):
        return {name: x.detach() for name, x in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def save_config(file: str, model: nn.Module) -> None:
    """The config beside the weights, for classes that `mm.interop` reads."""
    if not isinstance(model, hf.PreTrainedModel) or file == "vilt":
        return
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
    config["dtype"] = "float16"  # as stored
    (HERE / f"{file}.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
