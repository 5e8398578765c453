"""Our parts of a block, and what the classes of transformers call theirs."""

VIT = {
    "attention_branch/norm": "layernorm_before",
    "attention/query": "attention.attention.query",
    "attention/key": "attention.attention.key",
    "attention/value": "attention.attention.value",
    "attention/out": "attention.output.dense",
    "mlp_branch/norm": "layernorm_after",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
}
CLIP = {
    "attention_branch/norm": "layer_norm1",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "mlp_branch/norm": "layer_norm2",
    "mlp/up": "mlp.fc1",
    "mlp/down": "mlp.fc2",
}
BERT = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "attention_branch/norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_branch/norm": "output.LayerNorm",
}
BLIP_IMAGE = {
    "attention_branch/norm": "layer_norm1",
    "attention": "self_attn.qkv",  # fused
    "attention/out": "self_attn.projection",
    "mlp_branch/norm": "layer_norm2",
    "mlp/up": "mlp.fc1",
    "mlp/down": "mlp.fc2",
}
BLIP_CROSS = {
    "cross/query": "crossattention.self.query",
    "cross/key": "crossattention.self.key",
    "cross/value": "crossattention.self.value",
    "cross/out": "crossattention.output.dense",
    "cross_branch/norm": "crossattention.output.LayerNorm",
}
