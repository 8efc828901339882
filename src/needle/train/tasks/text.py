"""Character language models: predict the next character of a text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from needle import models, nn
from needle.creation import asarray
from needle.data import CharText
from needle.errors import ArgumentError, DataNotFoundError
from needle.random import Generator
from needle.tensor import Tensor
from needle.train.evaluation import evaluation_mode
from needle.train.tasks.images import ModelChoice, choose
from needle.train.tasks.task import Recipe, Task, TaskOptions

WINDOW = 64  # characters that the LSTM sees at once; its state remembers those before
CONTEXT = 128  # characters that the GPT sees at once
TEST_SHARE = 0.1
SAMPLE_CHARACTERS = 600
TEMPERATURE = 0.8


def text(options: TaskOptions) -> Task:
    """Return the task of modelling a text; its last tenth is for testing.

    `options.data` is the text file (UTF-8), or a folder with exactly one `*.txt`.
    """
    path = _text_file(options.data)
    whole = CharText(path)
    train, test = whole.split(TEST_SHARE)
    size = whole.vocabulary_size
    # Compiling these steps takes seconds, so there is one size of batch.
    recipe = Recipe(
        epochs=2, batch_size=32, lr=4e-3, weight_decay=0.01, clip_norm=1.0, drop_last=True
    )
    gpt = models.GPTConfig(size, CONTEXT, layers=4, heads=6, width=192, dropout=0.1)
    choices = {
        "lstm": ModelChoice(lambda: models.LSTMLanguageModel(size, 64, 192), recipe),
        "gpt": ModelChoice(
            lambda: models.GPT(gpt), replace(recipe, epochs=8, lr=2e-3, weight_decay=0.1)
        ),
    }
    name, choice = choose("text", options.model, choices)
    model = choice.make()
    window = CONTEXT if isinstance(model, models.GPT) else WINDOW
    return Task(
        model=model,
        train_data=train.windows(window, window),
        test_data=test.windows(window, window),
        loss=next_character_loss,
        name="text",
        model_name=name,
        kind="language",
        recipe=choice.recipe,
        sample=lambda: write_text(model, whole, _prompt(test), options.seed, SAMPLE_CHARACTERS),
        signature={"vocabulary": whole.vocabulary},
    )


def next_character_loss(outputs: Any, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of each next character, in nats.

    Args:
        outputs: Logits `[batch, characters, vocabulary]`, alone or first of a tuple (recurrent
            models also return their state).
        targets: The characters that follow, int64 `[batch, characters]`.
    """
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    size = logits.shape[-1]
    return nn.functional.cross_entropy(logits.reshape((-1, size)), targets.reshape((-1,)))


def write_text(
    model: nn.Module,
    text: CharText,
    prompt: str,
    seed: int,
    characters: int,
    temperature: float = TEMPERATURE,
) -> tuple[str, str]:
    """Let a language model continue a prompt, one character at a time.

    Args:
        model: Returns logits `[batch, characters, vocabulary]`, and its state if it takes one.
        text: Its vocabulary.
        prompt: What to continue.
        seed: Of the draws.
        characters: How many to write.
        temperature: Divides the logits; below 1 prefers probable characters.

    Returns:
        The prompt and what follows it.
    """
    tokens = text.encode(prompt).tolist()
    if isinstance(model, models.GPT):
        written = _generate(model, tokens, seed, characters, temperature)
    else:
        written = _unroll(model, tokens, seed, characters, temperature)
    return prompt, text.decode(written)


def _generate(
    model: models.GPT, tokens: list[int], seed: int, count: int, temperature: float
) -> list[int]:
    """Return what a GPT continues tokens with. When its context is full, the later half stays."""
    context, generator = model.config.context, Generator(seed)
    written: list[int] = []
    while len(written) < count:
        seen = (tokens + written)[-max(context // 2, 1) :]
        more = min(context - len(seen), count - len(written))
        (row,) = model.generate([seen], more, temperature=temperature, generator=generator)
        written += row[len(seen) :]
    return written


def _unroll(
    model: nn.Module, tokens: list[int], seed: int, count: int, temperature: float
) -> list[int]:
    """Return what any other model continues tokens with, one after the other."""
    written: list[int] = []
    with evaluation_mode(model):
        state: tuple[Any, ...] = ()
        fresh = tokens
        for draw in np.random.default_rng(seed).random(count):
            outputs = model(asarray(np.array([fresh], np.int64)), *state)
            if isinstance(outputs, tuple):  # recurrent: the state stands for what was read
                logits, state = outputs[0], (outputs[1],)
            else:
                logits = outputs
            scores = logits.numpy()[0, -1].astype(np.float64) / temperature
            shares = np.cumsum(np.exp(scores - scores.max()))
            written.append(int(np.searchsorted(shares, draw * shares[-1], side="right")))
            fresh = written[-1:] if state else (tokens + written)[-WINDOW:]
    return written


def _prompt(test: CharText) -> str:
    """Return the first whole line of the test text, so that no training text gives it away."""
    start = test.decode(test.tokens[:1000])
    lines = [line for line in start.split("\n")[1:-1] if line.strip()]
    return (lines[0] if lines else start)[:60] + "\n"


def _text_file(data: Path | None) -> Path:
    if data is None:
        raise ArgumentError(
            "the task text needs a text: give the file, or a folder with one *.txt, with --data"
        )
    data = data.expanduser()
    if not data.is_dir():
        return data
    found = sorted(data.glob("*.txt"))
    if not found:
        raise DataNotFoundError(f"{data}: holds no *.txt file to model")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ArgumentError(f"{data} holds several texts; give one of them with --data: {names}")
    return found[0]
