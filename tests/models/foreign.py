"""Tables of weights of others that only golden tests read; `mm.interop` has the others."""

from mm.interop.hf.bert import embeddings
from mm.interop.hf.blocks import VIT
from mm.interop.tables import (
    CONVOLUTION,
    Table,
    Target,
    Transform,
    attention_out,
    blocks,
    join,
    linear,
    norm,
    patches,
    under,
)
from mm.models.resnet import STAGES

REVERSED = Transform(lambda x: x[::-1], lambda x: x[::-1])


def lxmert(ours: str) -> Table:
    """A layer of LXMERT's cross-modality encoder, the only one of a stack of ours."""
    parts = {
        "crosses/shared/query": "visual_attention.att.query",
        "crosses/shared/key": "visual_attention.att.key",
        "crosses/shared/value": "visual_attention.att.value",
        "crosses/shared/out": "visual_attention.output.dense",
        "cross_branches/shared/norm": "visual_attention.output.LayerNorm",
    }
    for stream, theirs in (("image", "visn"), ("text", "lang")):
        parts |= {
            f"blocks/{stream}/attention/query": f"{theirs}_self_att.self.query",
            f"blocks/{stream}/attention/key": f"{theirs}_self_att.self.key",
            f"blocks/{stream}/attention/value": f"{theirs}_self_att.self.value",
            f"blocks/{stream}/attention/out": f"{theirs}_self_att.output.dense",
            f"blocks/{stream}/attention_branch/norm": f"{theirs}_self_att.output.LayerNorm",
            f"blocks/{stream}/mlp/up": f"{theirs}_inter.dense",
            f"blocks/{stream}/mlp/down": f"{theirs}_output.dense",
            f"blocks/{stream}/mlp_branch/norm": f"{theirs}_output.LayerNorm",
        }
    return join(
        *(
            (norm if part.endswith("norm") else attention_out if part.endswith("/out") else linear)(
                name, f"{ours}/{part}", 0
            )
            for part, name in parts.items()
        )
    )


def vilt(depth: int) -> Table:
    """transformers' ViLT; it has the type of texts first, and ours that of images."""
    image = patches(
        "embeddings.patch_embeddings.projection",
        "embeddings.position_embeddings",
        "embeddings.cls_token",
        size=4,
        lead=1,
        cls_axes=3,
    )
    return (
        under("image", image)
        | under("text", embeddings("embeddings.text_embeddings"))
        | {"embeddings.token_type_embeddings.weight": [Target("fusion/types", REVERSED)]}
        | blocks("encoder.layer", "fusion/encoder/blocks", depth, VIT)
        | norm("layernorm", "fusion/encoder/final_norm")
    )


def convolution(theirs: str, ours: str) -> Table:
    """Without a bias."""
    return linear(theirs, ours, bias=False, kernel=CONVOLUTION)


def resnet(depth: int) -> Table:
    """torchvision's ResNet, without the classifier."""
    tables = [convolution("conv1", "stem"), norm("bn1", "stem/norm")]
    ours = 0
    for stage, count in enumerate(STAGES[depth]):
        for i in range(count):
            theirs, block = f"layer{stage + 1}.{i}", f"blocks/{ours}"
            for k in range(3 if depth >= 50 else 2):
                tables += [
                    linear(
                        f"{theirs}.conv{k + 1}",
                        f"{block}/convs/{k}",
                        bias=False,
                        kernel=CONVOLUTION,
                    ),
                    norm(f"{theirs}.bn{k + 1}", f"{block}/convs/{k}/norm"),
                ]
            if i == 0 and (stage > 0 or depth >= 50):
                tables += [
                    linear(
                        f"{theirs}.downsample.0",
                        f"{block}/shortcut",
                        bias=False,
                        kernel=CONVOLUTION,
                    ),
                    norm(f"{theirs}.downsample.1", f"{block}/shortcut/norm"),
                ]
            ours += 1
    return join(*tables)
