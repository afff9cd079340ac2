"""What the frozen base model knows about PandaLM's votes: a linear score on hidden states, cross-validated by prompt.

    python examples/probe_cross_validation.py --model runs/base --dataset runs/data/pandalm_testset-v1.json

A response's features are the hidden states that enter one decoder layer, pooled over the response: the last one (EOS,
where a reward model is read), their mean, or their maximum. The layer, the pooling and the strength of the L2 penalty
are chosen inside each training fold, by cross-validation over its prompts, so no held-out vote takes part in a choice.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import torch
from reward_cross_validation import has_majority
from torch import Tensor

from rlhf_fast.data.readers import read_comparisons
from rlhf_fast.data.schema import folds_by_prompt, prompt_key
from rlhf_fast.model.batches import cut_by_tokens
from rlhf_fast.model.load import load_shared, load_tokenizer
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.preferences.comparisons import EncodedComparison, encode_comparisons
from rlhf_fast.runtime.device import choose_device, choose_dtype
from rlhf_fast.runtime.statistics import wilson

LAYERS = (16, 20, 24)  # of 30
POOLS = {"last": lambda h: h[-1], "mean": lambda h: h.mean(0), "max": lambda h: h.amax(0)}  # (T, H) -> (H,)
PENALTIES = (1e-3, 3e-3, 1e-2)
FOLDS, SEED = 5, 42

Features = dict[tuple[int, str], Tensor]
"""(C, H) f32 for a layer and a pooling: features of the first minus those of the second response of C pairs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="runs/base")
    parser.add_argument("--dataset", default="runs/data/pandalm_testset-v1.json")
    arguments = parser.parse_args()
    device = choose_device(False)
    shared, _ = load_shared(arguments.model, dtype=choose_dtype("auto", device), device=device)
    rows = [row for row in json.loads(Path(arguments.dataset).read_text(encoding="utf-8")) if has_majority(row)]
    read = read_comparisons(rows, format="pandalm", on_bad_row="skip")
    pairs, _ = encode_comparisons(load_tokenizer(arguments.model), read.rows, max_length=1024)
    features = pair_features(shared, pairs)
    first_wins = torch.tensor([float(c.row.ranks[0] < c.row.ranks[1]) for c in pairs])
    for pools in (tuple(POOLS), *((pool,) for pool in POOLS)):
        choices = {key: value for key, value in features.items() if key[1] in pools}
        correct, chosen = nested(choices, first_wins, pairs)
        print(f"pooling {' or '.join(pools):<20} {wilson(float(correct.sum()), len(correct))}  chosen: {chosen}")


@torch.no_grad()
def pair_features(shared: SharedModel, pairs: Sequence[EncodedComparison]) -> Features:
    """One forward over each different response; what is pooled are its tokens and the EOS that ends it."""
    starts = {tuple(sequence): len(c.prompt) for c in pairs for sequence in c.sequences}
    pooled: dict[tuple[int, str], dict[tuple[int, ...], Tensor]] = {key: {} for key in product(LAYERS, POOLS)}
    for sequences, states in hidden_states(shared, sorted(starts, key=len)):
        for layer, hidden in states.items():
            for sequence, own in zip(sequences, hidden.split([len(s) for s in sequences]), strict=True):
                for pool, function in POOLS.items():
                    pooled[layer, pool][sequence] = function(own[starts[sequence] :].float())

    def of(values: dict[tuple[int, ...], Tensor], side: int) -> Tensor:
        return torch.stack([values[tuple(c.sequences[side])] for c in pairs])

    return {key: of(values, 0) - of(values, 1) for key, values in pooled.items()}


def hidden_states(
    shared: SharedModel, sequences: list[tuple[int, ...]]
) -> Iterator[tuple[list[tuple[int, ...]], dict[int, Tensor]]]:
    """Groups of sequences with the states (T, H) that enter each of `LAYERS`."""
    caught: dict[int, Tensor] = {}
    for layer in LAYERS:

        def catch(_module: object, arguments: tuple[Tensor, ...], layer: int = layer) -> None:
            caught[layer] = arguments[0][0].cpu()

        shared.decoder_layers[layer].register_forward_pre_hook(catch)
    for group in cut_by_tokens([len(sequence) for sequence in sequences], 2048):
        chosen = [sequences[i] for i in group]
        packed = Packed.from_sequences([list(sequence) for sequence in chosen], device=shared.device)
        shared.hidden(packed.tokens, packed.cu_seqlens, None)
        yield chosen, caught


def nested(
    features: Features, first_wins: Tensor, pairs: Sequence[EncodedComparison]
) -> tuple[Tensor, list[tuple[int, str]]]:
    """(C,) whether each pair is ordered right by a score that saw none of its prompt, and each fold's choice."""
    fold = fold_numbers(pairs, range(len(pairs)), SEED)
    correct, chosen = torch.zeros(len(pairs)), []
    for number in range(FOLDS):
        train, test = (fold != number).nonzero()[:, 0], (fold == number).nonzero()[:, 0]
        inner = fold_numbers(pairs, train.tolist(), SEED + 1)

        def right(key: tuple[int, str], penalty: float, train: Tensor = train, inner: Tensor = inner) -> float:
            parts = ((train[inner != k], train[inner == k]) for k in range(FOLDS))
            return sum(float(judge(features[key], first_wins, a, b, penalty).sum()) for a, b in parts)

        key, penalty = max(product(features, PENALTIES), key=lambda choice: right(*choice))
        correct[test] = judge(features[key], first_wins, train, test, penalty)
        chosen.append(key)
    return correct, chosen


def fold_numbers(pairs: Sequence[EncodedComparison], chosen: Sequence[int], seed: int) -> Tensor:
    """(len(chosen),): the fold that each of the chosen pairs is in, by prompt."""
    parts = folds_by_prompt([pairs[i].row for i in chosen], FOLDS, seed)
    number_of = {prompt_key(row.prompt): number for number, part in enumerate(parts) for row in part}
    return torch.tensor([number_of[prompt_key(pairs[i].row.prompt)] for i in chosen])


def judge(differences: Tensor, first_wins: Tensor, train: Tensor, test: Tensor, penalty: float) -> Tensor:
    """Fit -log sigmoid(score difference) + penalty |w|^2 on `train`; (len(test),) 1 where the sign is right."""
    scale = differences[train].std(0).clamp_min(1e-6) * differences.shape[1] ** 0.5
    scaled = differences / scale
    weight = torch.zeros(differences.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=40)

    def loss() -> Tensor:
        optimiser.zero_grad()
        fit = torch.nn.functional.binary_cross_entropy_with_logits(scaled[train] @ weight, first_wins[train])
        total = fit + penalty * weight.square().sum()
        total.backward()
        return total

    optimiser.step(loss)  # type: ignore[arg-type]
    return ((scaled[test] @ weight.detach() > 0).float() == first_wins[test]).float()


if __name__ == "__main__":
    main()
