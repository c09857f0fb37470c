#!/usr/bin/env python3
"""Train the sample checkpoints of this folder: one small GPT-2 per author.

As huggingtweets does: a base model of many authors (every State of the Union speech),
then one fine-tuned copy per author. It runs on two CPU cores within about an hour, and
goes on where it stopped when it is started again with the same work folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import corpus
import publish
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

HERE = Path(__file__).resolve().parent
AUTHORS = ("george_washington", "thomas_jefferson", "ronald_reagan")

VOCAB_SIZE = 4096
BLOCK = 256
# A head size of 32, other than GPT-2's 64, so that nothing may take 64 for granted.
LAYERS, HEADS, WIDTH = 6, 6, 192
WEIGHT_DECAY = 0.1
# The base model's schedule is left at a ninth of the peak learning rate: the last fifth of it
# gains little, and fine-tuning brings the rate down to the end anyway.
BASE_STEPS = 3800
IGNORE = -100

Encoded = list[list[int]]


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train."""

    epochs: float
    batch: int
    learning_rate: float
    warmup: float
    # huggingtweets repeats an author's few tweets in several random orders per epoch.
    repeats: int = 1
    # Stop after so many steps of the schedule.
    stop: int | None = None


def new_model() -> GPT2LMHeadModel:
    """Return an untrained GPT-2 of about 3.5 million parameters with a tied head."""
    end = VOCAB_SIZE - 1
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=BLOCK,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        bos_token_id=end,
        eos_token_id=end,
        # Dropout inside attention costs more on a CPU than the attention itself.
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


def pack(sentences: Encoded, recipe: Recipe, end: int, rng: random.Random) -> Tensor:
    """Lay shuffled sentences end to end in rows of BLOCK + 1 tokens.

    Every row starts with <|endoftext|>, as every generation does; what runs over the end
    of a row is cut off, and another order puts it elsewhere in the next epoch.
    """
    rows: list[list[int]] = []
    wanted = recipe.epochs * recipe.repeats * sum(len(ids) + 1 for ids in sentences)
    used = 0
    row: list[int] = []
    while used < wanted:
        order = rng.sample(range(len(sentences)), len(sentences))
        for index in order:
            row += [end, *sentences[index]]
            used += len(sentences[index]) + 1
            if len(row) > BLOCK:
                rows.append(row[: BLOCK + 1])
                row = []
            if used >= wanted:
                break
    return torch.tensor(rows)


def loss_of(model: GPT2LMHeadModel, rows: Tensor) -> Tensor:
    """Mean cross-entropy of the next token."""
    hidden = model.transformer(rows[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden)
    targets = rows[:, 1:].reshape(-1)
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), targets)


def optimizer_for(model: GPT2LMHeadModel, learning_rate: float) -> torch.optim.AdamW:
    """AdamW that decays the matrices and leaves biases and layer norms alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))


class Progress:
    """Print loss, speed and time left now and then."""

    def __init__(self, label: str, start: int, total: int, every: int) -> None:
        """Start counting at step `start` of `total`."""
        self.label, self.start, self.total, self.every = label, start, total, every
        self.began = time.monotonic()
        self.losses: list[float] = []

    def step(self, step: int, loss: float, tokens: int) -> None:
        """Take note of one finished step of so many tokens."""
        self.losses.append(loss)
        if step % self.every and step != self.total:
            return
        done = step - self.start
        seconds = time.monotonic() - self.began
        mean = sum(self.losses) / len(self.losses)
        left = seconds / done * (self.total - step) / 60
        print(
            f"{self.label}: step {step}/{self.total}  loss {mean:.3f}  "
            f"{done * tokens / seconds:.0f} tokens/s  {left:.1f} min left",
            flush=True,
        )
        self.losses.clear()


def save_state(path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the training state so that a kill leaves either the old one or the new one."""
    part = path.with_suffix(".part")
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, part)
    part.replace(path)


def train(
    model: GPT2LMHeadModel,
    sentences: Encoded,
    recipe: Recipe,
    *,
    seed: int,
    label: str,
    state: Path | None = None,
) -> None:
    """Train in place with warm-up and cosine decay, going on from `state` if it exists."""
    rows = pack(sentences, recipe, model.config.eos_token_id, random.Random(seed))
    batches = rows.split(recipe.batch)  # type: ignore[no-untyped-call]
    optimizer = optimizer_for(model, recipe.learning_rate)
    start = 0
    if state and state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    warmup = max(1, round(recipe.warmup * len(batches)))
    stop = min(len(batches), recipe.stop or len(batches))
    progress = Progress(label, start, stop, every=20)
    model.train()
    for step, batch in enumerate(batches[start:stop], start):
        # Seeded per step, so that an interrupted run drops out the same as a whole one.
        torch.manual_seed(seed + step)
        rate = recipe.learning_rate * schedule(step, warmup, len(batches))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        progress.step(step + 1, loss.item(), recipe.batch * BLOCK)
        if state and ((step + 1) % 200 == 0 or step + 1 == stop):
            save_state(state, step + 1, model, optimizer)
    model.eval()


def schedule(step: int, warmup: int, total: int) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a half cosine."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


@torch.inference_mode()
def perplexity(model: GPT2LMHeadModel, sentences: Encoded, batch: int = 16) -> float:
    """Per-token perplexity, each sentence alone, its final <|endoftext|> counted too."""
    end = model.config.eos_token_id
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(sentences), batch):
        part = [torch.tensor([end, *ids, end]) for ids in sentences[start : start + batch]]
        rows = nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=end)
        targets = nn.utils.rnn.pad_sequence(
            [ids[1:] for ids in part], batch_first=True, padding_value=IGNORE
        )
        logits = model(rows[:, :-1]).logits.flatten(0, 1)
        total += nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum").item()
        count += int((targets != IGNORE).sum())
    return math.exp(total / count)


def encode(tokenizer: Tokenizer, sentences: Sequence[str]) -> Encoded:
    """Encode each sentence by itself, cut to what fits a block with its end marks."""
    return [encoding.ids[: BLOCK - 1] for encoding in tokenizer.encode_batch(list(sentences))]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=HERE / ".work",
        help="folder for the downloaded speeches, the tokenizer and the base model",
    )
    parser.add_argument(
        "--out", type=Path, default=HERE, help="where the folders of the checkpoints go"
    )
    parser.add_argument("--epochs", type=float, default=6, help="epochs of the base model")
    parser.add_argument(
        "--steps", type=int, default=BASE_STEPS, help="stop the base model's epochs at this step"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seed", type=int, default=1790, help="seed of everything random")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch, train the base model, fine-tune and publish each author."""
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    authors = corpus.load_authors(corpus.fetch(args.work))
    everything = [text for author in authors.values() for text in author.train]
    print(f"{len(authors)} authors, {len(everything)} sentences", flush=True)
    vocabulary = args.work / "tokenizer"
    tokenizer = corpus.train_tokenizer(everything, VOCAB_SIZE, vocabulary)

    torch.manual_seed(args.seed)
    base = new_model()
    train(
        base,
        encode(tokenizer, everything),
        Recipe(args.epochs, batch=8, learning_rate=1.5e-3, warmup=0.03, stop=args.steps),
        seed=args.seed,
        label="base",
        state=args.work / "base.pt",
    )
    held_out = [text for author in authors.values() for text in author.held_out]
    overall = perplexity(base, encode(tokenizer, held_out))
    print(f"base: held-out perplexity {overall:.1f}", flush=True)

    results = {"base": {"parameters": base.num_parameters(), "held_out_perplexity": overall}}
    for handle in AUTHORS:
        results[handle] = fine_tune(base, authors[handle], tokenizer, args)
    (args.work / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return 0


def fine_tune(
    base: GPT2LMHeadModel, author: corpus.Author, tokenizer: Tokenizer, args: argparse.Namespace
) -> dict[str, float]:
    """Fine-tune a copy of the base model to one author and write the author's folder."""
    held_out = encode(tokenizer, author.held_out)
    model = copy.deepcopy(base)
    before = perplexity(model, held_out)
    recipe = Recipe(epochs=1, repeats=4, batch=4, learning_rate=5e-4, warmup=0.1)
    train(model, encode(tokenizer, author.train), recipe, seed=args.seed, label=author.handle)
    # What is measured is what is published: the weights as they are after rounding.
    after = perplexity(model.half().float(), held_out)
    print(f"{author.handle}: held-out perplexity {before:.1f} -> {after:.1f}", flush=True)
    scores = publish.Scores(before=before, after=after)
    publish.write_folder(args.out, model, author, args.work / "tokenizer", scores)
    return {"before": before, "after": after}


if __name__ == "__main__":
    sys.exit(main())
