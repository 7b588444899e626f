"""Tiny random models of every variant, with mlx-lm's logits after a prompt.
usage: PYTHONPATH=target/py/oracle python3 node/engine/tests/make_tiny.py node/engine/tests/tiny
mlx, mlx-cpu and mlx-lm 0.32.2."""
import json, os, shutil, sys
import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import llama

BASE = dict(model_type="llama", hidden_size=64, num_hidden_layers=2, intermediate_size=96, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-5, vocab_size=96, rope_theta=10000.0, max_position_embeddings=512,
            tie_word_embeddings=True)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
VARIANTS = {
    "plain": ({}, None, mx.float32),
    "interleaved": (dict(rope_traditional=True), None, mx.float32),
    "linear": (dict(rope_scaling=dict(type="linear", factor=4.0)), None, mx.float32),
    "llama3": (dict(rope_scaling=LLAMA3, rope_theta=500000.0), None, mx.float32),
    "untied_biased": (dict(tie_word_embeddings=False, attention_bias=True, mlp_bias=True), None, mx.float32),
    "interleaved_biased": (dict(rope_traditional=True, attention_bias=True), None, mx.float32),
    "multi_head": (dict(num_key_value_heads=4, head_dim=8), None, mx.float32),
    "multi_query": (dict(num_key_value_heads=1), None, mx.float32),
    "bf16": ({}, None, mx.bfloat16),
    "f16": ({}, None, mx.float16),
    **{f"q{bits}": ({}, dict(bits=bits, group_size=32), mx.float32) for bits in (2, 3, 4, 5, 6, 8)},
    "q4_group64": (dict(intermediate_size=128), dict(bits=4, group_size=64), mx.float32),
    "q4_mixed": (dict(rope_traditional=True), dict(bits=4, group_size=32, embed=8), mx.float32),
}
PROMPT = [(7 * i * i + 3 * i) % 96 for i in range(150)]

target = sys.argv[1]
shutil.rmtree(target, ignore_errors=True)
for number, (name, (changes, quantization, dtype)) in enumerate(VARIANTS.items()):
    mx.random.seed(number)
    config = {**BASE, **changes}
    model = llama.Model(llama.ModelArgs.from_dict(config))
    # Larger than usual weights, so that a wrong detail shows in the logits.
    model.update(tree_map(lambda p: mx.random.normal(p.shape) * 0.15 + (p.ndim == 1), model.parameters()))
    # Numbers as the file will hold them, computed with in f32.
    model.update(tree_map(lambda p: p.astype(dtype), model.parameters()))
    if quantization:
        embed = quantization.pop("embed", None)
        def choose(path, module):
            if not hasattr(module, "to_quantized"):
                return False
            return dict(bits=embed, group_size=32) if embed and "embed" in path else True
        nn.quantize(model, **quantization, class_predicate=choose)
        config["quantization"] = dict(quantization)
        if embed:
            config["quantization"]["model.embed_tokens"] = dict(bits=embed, group_size=32)
    folder = os.path.join(target, name)
    os.makedirs(folder)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(os.path.join(folder, "model.safetensors"), weights, metadata={"format": "mlx"})
    json.dump(config, open(os.path.join(folder, "config.json"), "w"), indent=1)
    model.update(tree_map(lambda p: p.astype(mx.float32) if mx.issubdtype(p.dtype, mx.floating) else p, model.parameters()))
    logits = model(mx.array([PROMPT]))[0, -1]
    json.dump({"prompt": PROMPT, "logits": logits.tolist()}, open(os.path.join(folder, "golden.json"), "w"))
    print(name, logits.abs().max().item())
