"""Drives a cluster with the openai package as its documentation shows.
usage: openai_client.py BASE_URL MODEL KEY HASTY_KEY, which may ask once a minute"""
import sys
import openai

base, model, key, hasty_key = sys.argv[1:5]
client = openai.OpenAI(base_url=base, api_key="unused", max_retries=0)
assert [m.id for m in client.models.list()] == [model]
assert client.models.retrieve(model).id == model

ask = dict(model=model, messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0)
answer = client.chat.completions.create(**ask)
assert answer.choices[0].message.content == "The capital of France is Paris.", answer
assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

text, usage = "", None
for chunk in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
    if chunk.choices:
        text += chunk.choices[0].delta.content or ""
    usage = chunk.usage or usage
assert text == "The capital of France is Paris." and usage.completion_tokens > 0, (text, usage)

completion = client.completions.create(model=model, prompt="The capital of France is", max_tokens=4, temperature=0, logprobs=2)
assert "Paris" in completion.choices[0].text
assert len(completion.choices[0].logprobs.tokens) == 4

raw = client.chat.completions.with_raw_response.create(**ask, extra_headers={"x-pomona-class": "batch"})
assert raw.headers["x-pomona-class"] == "batch" and raw.headers["x-pomona-class-reason"] == "header"

for broken, error, code in [
    (dict(ask, model="no-such-model"), openai.NotFoundError, "model_not_found"),
    (dict(ask, temperature=9), openai.BadRequestError, "invalid_value"),
    (dict(ask, max_tokens=-1), openai.BadRequestError, "invalid_value"),
]:
    try:
        client.chat.completions.create(**broken)
        raise SystemExit(f"accepted {broken}")
    except error as caught:
        assert caught.code == code, caught

from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    answers = list(pool.map(lambda _: client.chat.completions.create(**ask).choices[0].message.content, range(4)))
assert set(answers) == {"The capital of France is Paris."}, answers
keyed = openai.OpenAI(base_url=base, api_key=key, max_retries=0)
raw = keyed.chat.completions.with_raw_response.create(**ask)
assert raw.headers["x-pomona-class"] == "background" and raw.headers["x-pomona-class-reason"] == "key"

wrong = openai.OpenAI(base_url=base, api_key=key[:-4] + "AAAA", max_retries=0)
try:
    wrong.chat.completions.create(**ask)
    raise SystemExit("accepted a wrong key")
except openai.AuthenticationError as caught:
    assert caught.code == "invalid_api_key", caught

hasty = openai.OpenAI(base_url=base, api_key=hasty_key, max_retries=0)
hasty.chat.completions.create(**dict(ask, max_tokens=1))
# The minute slides: of two more one may still be let in.
caught = None
for _ in range(3):
    try:
        hasty.chat.completions.create(**dict(ask, max_tokens=1))
    except openai.RateLimitError as error:
        caught = error
assert caught.code == "rate_limit_exceeded" and int(caught.response.headers["retry-after"]) >= 1, caught
print("all good", openai.__version__)
