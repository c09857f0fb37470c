"""Hugging Face's own client with a running server. Needs `huggingface_hub`.

gpt2serve --store models/
python examples/huggingface_client.py http://localhost:8000 MODEL "My dream is"
"""

import sys

from huggingface_hub import InferenceClient


def main(server: str, model: str, prompt: str) -> None:
    client = InferenceClient(model=f"{server}/models/{model}")
    print(client.text_generation(prompt, max_new_tokens=30, seed=7))

    made = client.text_generation(prompt, max_new_tokens=30, details=True, top_n_tokens=3)
    print(f"{made.generated_text}\n[{made.details.finish_reason}, seed {made.details.seed}]")

    print(prompt, end="")
    for piece in client.text_generation(prompt, stream=True):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
