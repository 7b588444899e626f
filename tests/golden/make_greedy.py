"""Goldens of greedy decoding: mlx-lm's text for 20 prompts of 256 tokens each.
usage: PYTHONPATH=target/py/oracle python3 tests/golden/make_greedy.py MODEL_FOLDER_F32 > tests/golden/greedy.json
MODEL_FOLDER_F32 comes from xtask/mlx/dequantize.py; mlx, mlx-cpu and mlx-lm 0.32.2."""
import json, sys
import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import generate_step

PROMPTS = [
    "What is the capital of France?", "def fibonacci(n):", "Write a haiku about autumn rain.",
    "Explain what a Raft log is to a child.", "List three uses of a Mac mini.", "Translate to German: good morning.",
    "Summarise: the orchard was full of apples and the ladder was too short.", "What is 17 * 23?",
    "Tell me a story about a beekeeper.", "Why is the sky blue?", "Give me a recipe for pancakes.",
    "class Stack:", "What should I read about the Romans?", "How do I keep a laptop cool?",
    "Name five fruits and their colours.", "Write a limerick about a server rack.", "What does HTTP stand for?",
    "Describe the sea in two sentences.", "SELECT name FROM users WHERE", "Finish this: once upon a time",
]
COUNT = 256

model, tokenizer = load(sys.argv[1])
out = []
for text in PROMPTS:
    chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    prompt = chat if isinstance(chat, list) else chat["input_ids"]
    tokens = []
    for (token, _), _ in zip(generate_step(mx.array(prompt), model, max_tokens=COUNT), range(COUNT)):
        tokens.append(int(token))
    out.append({"prompt": text, "prompt_tokens": list(map(int, prompt)), "tokens": tokens,
                "pieces": [tokenizer.decode([token]) for token in tokens]})
    print(text, file=sys.stderr)
json.dump(out, sys.stdout)
