"""Annotators who are simulated: how much of the truth votes recover, how fast the store takes them, and a stand-in for
people in a dry run.

    python -m benchmarks.annotators                         # recovery by quality and number of annotators, as a table
    python -m benchmarks.annotators --store_rate            # votes a second, each waited for on the disk
    python -m benchmarks.annotators --vote votes.db         # three stand-ins answer all that is open in a store

Sources have strengths, and of two responses the truth prefers the stronger source's by Bradley-Terry's chance. An
annotator says what is true with a probability, the quality. The stand-ins of `--vote` prefer the response that holds
more of the prompt's words, and err one time in ten.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
import time
from pathlib import Path

from rlhf_fast.annotate.agreement import alpha, annotator_figures
from rlhf_fast.annotate.export import aggregate
from rlhf_fast.annotate.items import Annotator, Item, Task, Vote, make_item
from rlhf_fast.annotate.ranking import leaderboard
from rlhf_fast.annotate.store import Store

STRENGTHS = {"A": 1.0, "B": 0.5, "C": 0.0, "D": -0.5, "E": -1.0}


def simulated(
    qualities: list[float], items: int, seed: int
) -> tuple[dict[str, Item], list[Vote], dict[str, list[int]]]:
    """Items, everybody's votes on all of them, and the truth by item id."""
    draw, by_id, votes, truth = random.Random(seed), dict[str, Item](), list[Vote](), dict[str, list[int]]()
    for number in range(items):
        one, other = draw.sample(sorted(STRENGTHS), 2)
        item = make_item(f"prompt {number}", ["first answer", "second answer"], [{"model": one}, {"model": other}])
        first_wins = draw.random() < 1 / (1 + math.exp(STRENGTHS[other] - STRENGTHS[one]))
        by_id[item.id], truth[item.id] = item, [1, 2] if first_wins else [2, 1]
        for who, quality in enumerate(qualities):
            said = truth[item.id] if draw.random() < quality else truth[item.id][::-1]
            person = Annotator(who, f"person {who}", "annotator")
            votes.append(Vote(0, "vote", item.id, person, list(said), False, "", 20.0, [0, 1], 0.0))
    return by_id, votes, truth


def recovery(items: int, seeds: int) -> None:
    print(f"{items} pairs of 5 sources, means of {seeds} seeds\n")
    print("| annotators | pairs right by majority | sources in the true order | alpha | flagged as careless |")
    print("| --- | --- | --- | --- | --- |")
    for qualities in ([0.7], [0.7] * 3, [0.7] * 5, [0.9], [0.9] * 3, [0.9] * 5, [0.9, 0.9, 0.5], [0.9] * 4 + [0.5]):
        right, ordered, agreement, flagged = [], [], [], []
        for seed in range(seeds):
            by_id, votes, truth = simulated(qualities, items, seed)
            own: dict[str, list[Vote]] = {}
            for vote in votes:
                own.setdefault(vote.item_id, []).append(vote)
            right.append(statistics.mean(aggregate(by_id[name], said) == truth[name] for name, said in own.items()))
            board = leaderboard(by_id, votes, resamples=0)
            ordered.append([one.source for one in board.standings] == sorted(STRENGTHS))
            found = alpha(votes, resamples=0) if len(qualities) > 1 else None
            agreement.append(math.nan if found is None else found.value)
            people = {vote.annotator.id: vote.annotator for vote in votes}.values()
            figures = annotator_figures(people, votes, by_id, {})
            flagged.append([sum(bool(one.flags) for one in figures if (qualities[one.annotator.id] == 0.5) is guesses)
                            for guesses in (True, False)])  # fmt: skip
        guesses, careful = (sum(row[n] for row in flagged) for n in (0, 1))
        print(
            f"| {' '.join(f'{q:.1f}' for q in qualities)} | {statistics.mean(right):.3f} | "
            f"{sum(ordered)} of {seeds} | {statistics.mean(agreement):.2f} | {guesses} of "
            f"{seeds * qualities.count(0.5)} who guess, {careful} of {seeds * sum(q > 0.5 for q in qualities)} others |"
        )


def store_rate(votes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "votes.db", create=True)
        store.add_items([make_item(f"prompt {n}", ["one", "two"]) for n in range(votes)])
        person = store.annotator_of(store.add_annotator("person"))
        assert person is not None
        waits: dict[str, list[float]] = {"next_item": [], "vote": []}
        begun = time.perf_counter()
        for _ in range(votes):
            start = time.perf_counter()
            task = store.next_item(person.id)
            assert task is not None
            middle = time.perf_counter()
            store.vote(person.id, task.item.id, [1, 2])
            waits["next_item"].append(middle - start)
            waits["vote"].append(time.perf_counter() - middle)
        print(f"{votes / (time.perf_counter() - begun):.0f} votes a second, one after another, each with its commit")
        for name, seconds in waits.items():
            ordered = sorted(seconds)
            print(f"{name}: median {1e3 * ordered[votes // 2]:.2f} ms, p99 {1e3 * ordered[int(votes * 0.99)]:.2f} ms")
        with store.together():
            store.add_items([make_item(f"more {n}", ["one", "two"]) for n in range(votes)])
        begun = time.perf_counter()
        for _ in range(votes // 20):
            with store.together():
                for _ in range(20):
                    if task := store.next_item(person.id):
                        store.vote(person.id, task.item.id, [1, 2])
        print(f"{votes / (time.perf_counter() - begun):.0f} votes a second, twenty to a commit")
        store.close()


def stand_in(path: str, people: int) -> None:
    store = Store.open(path)
    names = {one.name: one.id for one in store.annotators()}
    draw, number = random.Random(0), 0
    for who in (f"stand-in {n}" for n in range(1, people + 1)):
        if who not in names:
            found = store.annotator_of(store.add_annotator(who))
            assert found is not None
            names[who] = found.id
        while task := store.next_item(names[who]):
            store.vote(names[who], task.item.id, preferred(task, draw), seconds=draw.uniform(8, 40))
            number += 1
    print(f"{number} votes of {people} stand-ins")
    store.close()


def preferred(task: Task, draw: random.Random) -> list[int | None]:
    """Ranks by the number of the prompt's words of four letters or more; equal numbers tie."""
    asked = {word for message in task.item.messages for word in words(message["content"] or "")}
    held = [len(asked & words(text)) for text in task.item.responses]
    levels = sorted(set(held), reverse=True)
    ranks: list[int | None] = [levels.index(number) + 1 for number in held]
    if draw.random() < 0.1:
        ranks.reverse()
    return ranks


def words(text: str) -> set[str]:
    return {word for word in "".join(c if c.isalpha() else " " for c in text.lower()).split() if len(word) > 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--store_rate", action="store_true")
    parser.add_argument("--vote", metavar="STORE")
    parser.add_argument("--people", type=int, default=3)
    given = parser.parse_args()
    if given.vote:
        stand_in(given.vote, given.people)
    elif given.store_rate:
        store_rate(1000)
    else:
        recovery(given.items, given.seeds)


if __name__ == "__main__":
    main()
