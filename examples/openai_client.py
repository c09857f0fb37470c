"""OpenAI's own client with a running server. Needs `openai`.

gpt2serve --store models/
python examples/openai_client.py http://localhost:8000 MODEL "My dream is"
"""

import sys

from openai import OpenAI


def main(server: str, model: str, prompt: str) -> None:
    client = OpenAI(base_url=f"{server}/v1", api_key="none")
    made = client.completions.create(model=model, prompt=prompt, n=3, max_tokens=30, seed=7)
    for choice in made.choices:
        print(f"[{choice.finish_reason}] {prompt}{choice.text}")

    print(prompt, end="")
    for chunk in client.completions.create(model=model, prompt=prompt, stream=True):
        print(chunk.choices[0].text, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
