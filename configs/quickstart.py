"""Two small towers on the emoji data set: on two cores of a laptop's CPU in ten minutes.

  make quickstart

Pictures of 48 pixels as 36 patches, two Transformer blocks, a bag of words for short captions;
pictures of one concept, drawn by seven vendors, are positives of each other. docs/quickstart.md
says how these numbers were chosen.
"""

from ml_collections import ConfigDict

EMOJI = dict(name="tfds", dataset="emoji", data_dir=".data", cache=True)
TO_TENSORS = 'tokenize("emoji", 24)|group("concept")'


def get_config() -> ConfigDict:
    """The recipe."""
    config = ConfigDict()
    config.seed = 0
    config.total_steps = 480
    config.global_batch_size = 512
    config.model = dict(
        image=dict(
            name="vit",
            image_size=48,
            patch_size=8,
            stem=dict(name="cells", cell_size=4, cell_width=64, hidden=256),
            width=128,
            depth=2,
            num_heads=4,
            mlp_dim=256,
            activation="relu_squared",
            norm="rms_norm",
            pool="flatten",
            pool_dim=1024,
            pool_dropout=0.2,
        ),
        text=dict(
            name="transformer",
            vocab_size=4096,
            length=24,
            width=256,
            depth=0,
            num_heads=4,
            pool="mean",
            position="none",
            embedding_std=0.05,
        ),
        embed_dim=256,
    )
    config.objectives = dict(contrastive=dict(name="contrastive", kind="softmax"))
    config.optimizer = dict(
        name="adamw",
        learning_rate=2e-3,
        b2=0.98,
        weight_decay=0.05,
        schedule=dict(name="cosine", warmup_steps=50),
    )
    config.sharding = dict(mesh=dict(replica=1, fsdp=-1, tensor=1), rules="dp")
    config.input = dict(
        source=dict(split="train", **EMOJI),
        preprocess="decode|pad(0.1)|random_resized_crop(48, scale=(0.44, 0.92), ratio=(0.82, 1.22))"
        "|flip|color_jitter(saturation=0.5, hue=0.05)|grayscale(0.1)"
        '|caption("label", "tags", max_tags=2, separator=" ")|' + TO_TENSORS,
    )
    config.evals = {
        split: dict(
            name="retrieval",
            source=dict(split=split, **EMOJI),
            preprocess='decode|resize(48)|caption("label")|' + TO_TENSORS,
            batch_size=512,
            every_steps=120,
        )
        for split in ("seen", "unseen")
    }
    config.checkpoint = dict(every_steps=120, keep_last=2, keep_best="seen/text_to_image/recall@1")
    config.log = dict(every_steps=10)
    return config
