"""A model folder with all weights as 32-bit floats: what both sides of the benchmark load.
usage: dequantize.py SOURCE TARGET"""
import json, os, shutil, sys
import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm import load
from mlx_lm.utils import dequantize_model

source, target = sys.argv[1:3]
model, _ = load(source)
as_f32 = lambda p: p.astype(mx.float32) if mx.issubdtype(p.dtype, mx.floating) else p
# Scales first: a product of f16 scales would be rounded twice.
model.update(tree_map(as_f32, model.parameters()))
model = dequantize_model(model)
os.makedirs(target, exist_ok=True)
weights = dict(tree_flatten(model.parameters()))
mx.save_safetensors(os.path.join(target, "model.safetensors"), weights, metadata={"format": "mlx"})
config = json.load(open(os.path.join(source, "config.json")))
config.pop("quantization", None)
json.dump(config, open(os.path.join(target, "config.json"), "w"), indent=1)
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(os.path.join(source, name), target)
