"""A small task that PPO can learn in 50 short iterations: say more of the liked words, in sentences that stay likely.

Sentences are walks in a random graph of words. A language model is briefly trained on them, and a classifier to give
the share of liked words in the last ones, as a reward model would be.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedModel

from benchmarks.vs_trl.models import VOCABULARY, word_tokenizer

EOS = 1
FOLLOWERS, STOP = 8, 1 / 24  # words that may follow a word, and the chance that the sentence ends there
LENGTH, BATCH = 24, 32
LIKED = VOCABULARY // 4  # words below this id


def walk(length: int, draw: random.Random, graph: list[list[int]]) -> list[int]:
    """Word ids of a sentence of at most `length` words, EOS included."""
    words = [draw.randrange(2, VOCABULARY)]
    while len(words) < length and words[-1] != EOS:
        words.append(EOS if draw.random() < STOP else draw.choice(graph[words[-1]]))
    return words


def make_graph(seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [draw.sample(range(2, VOCABULARY), FOLLOWERS) for _ in range(VOCABULARY)]


def make_task(folder: Path) -> tuple[Path, Path]:
    """Train and save a language model and its classifier, float32, where `folder` does not have them."""
    model, classifier = folder / "model", folder / "classifier"
    if not (classifier / "config.json").is_file():
        graph = make_graph()
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=EOS, pad_token_id=0,
            tie_word_embeddings=True,
        )  # fmt: skip
        torch.manual_seed(0)
        fit(language := LlamaForCausalLM(config), 300, lambda draw: language_loss(language, draw, graph))
        config.num_labels = 1
        scorer = LlamaForSequenceClassification(config)
        scorer.model.load_state_dict(language.model.state_dict())
        fit(scorer, 600, lambda draw: share_loss(scorer, draw, graph))
        for trained, where in ((language, model), (scorer, classifier)):
            trained.save_pretrained(where)
            word_tokenizer(pad="<unk>").save_pretrained(where)
    return model, classifier


def fit(model: PreTrainedModel, steps: int, loss: Callable[[random.Random], Tensor]) -> None:
    optimiser, draw = torch.optim.AdamW(model.parameters(), lr=1e-3), random.Random(0)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(draw).backward()
        optimiser.step()


def language_loss(model: LlamaForCausalLM, draw: random.Random, graph: list[list[int]]) -> Tensor:
    rows = [walk(LENGTH, draw, graph) for _ in range(BATCH)]
    labels = torch.tensor([row + [-100] * (LENGTH - len(row)) for row in rows])
    return model(input_ids=labels.clamp_min(0), labels=labels).loss


def share_loss(model: LlamaForSequenceClassification, draw: random.Random, graph: list[list[int]]) -> Tensor:
    """Squared error of the score behind each word, on walks and on random words alike."""
    rows = [
        walk(LENGTH, draw, graph) if draw.random() < 0.5 else draw.choices(range(2, VOCABULARY), k=LENGTH)
        for _ in range(BATCH)
    ]
    ids = torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])
    scores = model.score(model.model(input_ids=ids).last_hidden_state)[..., 0]
    return (scores - liked_share(ids)).square()[ids != 0].mean()


def liked_share(ids: Tensor) -> Tensor:
    """(B, T): 4 times the share of liked words among those up to each place, less 1: 0 where words are drawn evenly."""
    liked = ((ids >= 2) & (ids < LIKED)).float().cumsum(1)
    return 4 * liked / torch.arange(1, ids.shape[1] + 1) - 1


def prompts(count: int) -> list[list[int]]:
    """Beginnings of sentences, 4 to 7 words."""
    draw, graph = random.Random(1), make_graph()
    found: list[list[int]] = []
    while len(found) < count:
        words = walk(4 + len(found) % 4, draw, graph)
        if EOS not in words:
            found.append(words)
    return found
