"""Makes open_clip_*.safetensors beside it, and their configs: tiny random models of open_clip.

    python tests/golden/models/make_open_clip.py     # in an environment of its own

Made with Python 3.11, open_clip_torch 3.3.0, torch 2.14.1, torchvision 0.29.1, safetensors 0.8.0
and numpy 2.4.6 (requirements-open-clip.txt). The files are as those of make.py, without gradients.
"""

import json
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file

HERE = Path(__file__).parent
BATCH, LENGTH, WORDS = 3, 6, 24
VISION = dict(layers=2, width=16, head_width=8, mlp_ratio=1.25, patch_size=4, image_size=12)
TEXT = dict(
    context_length=LENGTH, vocab_size=WORDS, width=16, heads=2, layers=2, mlp_ratio=1.25, pad_id=0
)
# As OpenAI's CLIP, and a text tower of its own that reads both ways, with a bias, as SigLIP's.
MODELS = {
    "clip": (CLIP, dict(vision_cfg=VISION, text_cfg=TEXT, quick_gelu=True), {}),
    "siglip": (
        CustomTextCLIP,
        dict(
            vision_cfg=VISION | dict(no_ln_pre=True, ls_init_value=0.1),
            text_cfg=TEXT | dict(no_causal_mask=True, pool_type="last", proj_bias=True),
        ),
        dict(init_logit_bias=-1.5),
    ),
}


def main() -> None:
    for name, (kind, config, more) in MODELS.items():
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        config = dict(embed_dim=8, **config)
        model = kind(**config, **more).double().eval()
        for path, weight in model.named_parameters():
            weight.data = value(path, tuple(weight.shape), rng)
        image = rounded(rng.standard_normal((BATCH, 3, 12, 12)))
        lengths = np.array([6, 3, 5])[:, None]
        ids = rng.integers(3, WORDS - 1, (BATCH, LENGTH))
        ids = np.where(np.arange(LENGTH) == lengths - 1, WORDS - 1, ids)
        text = torch.tensor(np.where(np.arange(LENGTH) < lengths, ids, 0))
        with torch.no_grad():
            zimg, ztxt, *_ = model(image, text)
            logits, _ = model.get_logits(image, text)
        arrays = {f"weight/{path}": x.half() for path, x in model.state_dict().items()}
        arrays |= {"input/image": image.half(), "input/text": text.int()}
        outputs = dict(image=zimg, text=ztxt, logits=logits)
        arrays |= {f"output/{key}": x.float() for key, x in outputs.items()}
        arrays = {key: x.contiguous() for key, x in arrays.items()}
        save_file(arrays, HERE / f"open_clip_{name}.safetensors")
        config = dict(model_cfg=config | more)
        (HERE / f"open_clip_{name}.json").write_text(json.dumps(config, indent=1) + "\n")
        print(name, len(arrays), "arrays")


def value(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> torch.Tensor:
    """Random, and big enough to matter."""
    if path == "logit_scale":
        return rounded(np.full(shape, np.log(5.0)))
    if path == "logit_bias":
        return rounded(np.full(shape, -1.5))
    if ".ln_" in path or "ln_" in path.split(".")[0]:
        return rounded(float(path.endswith("weight")) + 0.3 * rng.standard_normal(shape))
    if len(shape) < 2 or "embedding" in path:
        return rounded(0.5 * rng.standard_normal(shape))
    return rounded(rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])))


def rounded(x: np.ndarray) -> torch.Tensor:
    """What half precision holds exactly, in float64."""
    return torch.tensor(np.asarray(x, np.float16).astype(np.float64))


if __name__ == "__main__":
    main()
