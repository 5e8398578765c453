"""A recipe small enough for a test: both towers with everything that quickstart has."""

from ml_collections import ConfigDict


def tiny_config(**changes) -> ConfigDict:
    """Two blocks a tower, width 16, on the synthetic source; `changes` are top-level keys."""
    tower = dict(width=16, depth=2, num_heads=2, unroll=2)
    words = 'tokenize("{tokenizer}", 8)'
    config = dict(
        seed=0,
        total_steps=8,
        global_batch_size=16,
        model=dict(
            image=dict(name="vit", image_size=16, patch_size=8, dropout=0.1, **tower),
            text=dict(name="transformer", vocab_size=64, length=8, **tower),
            embed_dim=16,
        ),
        objectives=dict(contrastive=dict(name="contrastive", kind="sigmoid", image_keep=0.5)),
        optimizer=dict(
            name="adamw",
            learning_rate=1e-2,
            weight_decay=0.1,
            schedule=dict(name="cosine", warmup_steps=2),
        ),
        sharding=dict(mesh=dict(fsdp=-1), rules="dp"),
        input=dict(
            source=dict(name="synthetic", num_examples=40, image_size=16),
            preprocess="decode|random_resized_crop(16)|flip|value_range(-1, 1)"
            f'|caption("caption")|{words}|group("concept")',
        ),
        evals=dict(
            held_out=dict(
                name="retrieval",
                source=dict(name="synthetic", num_examples=20, image_size=16, seed=1),
                preprocess=f'decode|resize(16)|value_range(-1, 1)|caption("caption")|{words}',
                batch_size=16,
            )
        ),
        checkpoint=dict(every_steps=4, keep_last=2, keep_best="held_out/text_to_image/recall@1"),
        log=dict(every_steps=1),
    )
    return ConfigDict({**config, **changes})
