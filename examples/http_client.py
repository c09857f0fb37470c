"""A client of a running server: the whole answer, then token by token. Needs `httpx`.

gpt2serve --store models/
python examples/http_client.py http://localhost:8000 MODEL "My dream is"
"""

import json
import sys

import httpx


def whole(client: httpx.Client, model: str, prompt: str) -> None:
    """All texts at once."""
    body = {"model": model, "prompt": prompt, "num_return_sequences": 3, "do_sample": True}
    answer = client.post("/generate", json=body)
    if answer.is_error:
        problem = answer.json()  # RFC 9457: what is wrong, and `field` if a field is
        raise SystemExit(f"{problem['title']}: {problem['detail']}")
    for generation in answer.json()["generations"]:
        print(f"[{generation['finish_reason']}] {generation['text']}")


def streamed(client: httpx.Client, model: str, prompt: str) -> None:
    """Each token as it comes. Leaving the loop early cancels the generation."""
    body = {"model": model, "prompt": prompt, "max_new_tokens": 30, "stream": True}
    print(prompt, end="")
    with client.stream("POST", "/generate", json=body) as answer:
        for line in answer.iter_lines():
            data = line.removeprefix("data: ")
            if not data or data == "[DONE]":
                continue
            event = json.loads(data)
            if "token" in event:
                print(event["token"]["text"], end="", flush=True)
            elif "error" in event:
                raise SystemExit(event["error"]["detail"])
    print()


def main(server: str, model: str, prompt: str) -> None:
    with httpx.Client(base_url=server, timeout=60) as client:
        whole(client, model, prompt)
        streamed(client, model, prompt)


if __name__ == "__main__":
    main(*sys.argv[1:])
