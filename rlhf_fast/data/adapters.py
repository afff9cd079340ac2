"""Formats of known data sets: a raw row becomes the rows of ours that it holds (several, for a message tree).

oasst    Open-Assistant message trees: human ranks of sibling replies; synthetic messages are dropped
pandalm  instruction, two responses, three votes (1, 2, or 0 for a tie)
sgd      schema-guided dialogues as chat messages
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rlhf_fast.data.columns import demonstration, prompt_row
from rlhf_fast.data.pairs import soft_ranks
from rlhf_fast.data.schema import Comparison, Demonstration, Message, PromptRow
from rlhf_fast.data.sources import BadRow, Raw
from rlhf_fast.data.values import instruction_of, number_of, text_of, votes_of

_ROLE = {"prompter": "user", "assistant": "assistant"}
_VOTES = ("annotator1", "annotator2", "annotator3")


def oasst_comparisons(row: Raw) -> Iterator[Comparison]:
    """One for each prompter message with two or more ranked replies."""
    for path, replies in _exchanges(row):
        ranked = [reply for reply in replies if reply.get("rank") is not None]
        if len(ranked) > 1:
            texts = tuple(text_of(reply["text"], "a reply") for reply in ranked)
            yield Comparison(path, texts, tuple(number_of(reply["rank"], "a rank") for reply in ranked))


def oasst_demonstrations(row: Raw) -> Iterator[Demonstration]:
    """The best-ranked reply to each prompter message; the first where none is ranked."""
    for path, replies in _exchanges(row):
        if replies:
            best = min(replies, key=lambda reply: float("inf") if reply.get("rank") is None else reply["rank"])
            yield Demonstration(path, text_of(best["text"], "a reply"))


def oasst_prompts(row: Raw) -> Iterator[PromptRow]:
    """Every prompter message, with the conversation before it."""
    for path, _ in _exchanges(row):
        yield PromptRow(path)


def _exchanges(row: Raw) -> Iterator[tuple[list[Message], list[Raw]]]:
    """Each prompter message of a tree in its own order: the conversation up to it, and the human replies to it.

    What hangs below a synthetic message goes with it, so a tree with a synthetic root gives nothing.
    """
    if not isinstance(row.get("prompt"), dict):
        raise BadRow(f"columns are {', '.join(row)}; expected a message tree, with its root under prompt")
    stack: list[tuple[Raw, list[Message]]] = [] if row["prompt"].get("synthetic") else [(row["prompt"], [])]
    while stack:
        node, before = stack.pop()
        if node.get("role") not in _ROLE:
            raise BadRow(f"a message has the role {node.get('role')!r}; expected {' or '.join(_ROLE)}")
        path = [*before, {"role": _ROLE[node["role"]], "content": text_of(node.get("text"), "a message")}]
        replies = [reply for reply in node.get("replies") or [] if not reply.get("synthetic")]
        if node["role"] == "prompter":
            yield path, replies
        stack += [(reply, path) for reply in reversed(replies)]


def pandalm_comparisons(row: Raw) -> Iterator[Comparison]:
    """An empty response stays: a model did answer so, and the annotators judged it."""
    responses = row.get("response1"), row.get("response2")
    if not all(isinstance(response, str) for response in responses):
        raise BadRow(f"response1 and response2 are {str(responses)[:80]}; expected two texts")
    first = votes_of([row.get(name) for name in _VOTES])
    prompt = _pandalm_prompt(row)
    used = {"instruction", "input", "response1", "response2", *_VOTES}
    meta = {name: value for name, value in row.items() if name not in used}
    yield Comparison(prompt, (str(responses[0]), str(responses[1])), soft_ranks(first), first, meta)


def pandalm_prompts(row: Raw) -> Iterator[PromptRow]:
    yield PromptRow(_pandalm_prompt(row))


def _pandalm_prompt(row: Raw) -> list[Message]:
    if "instruction" not in row:
        raise BadRow(f"columns are {', '.join(row)}; expected instruction, input, response1, response2 and votes")
    return [{"role": "user", "content": instruction_of(row)}]


def sgd_demonstrations(row: Raw) -> Iterator[Demonstration]:
    yield demonstration(row)


def sgd_prompts(row: Raw) -> Iterator[PromptRow]:
    yield prompt_row(row)


DEMONSTRATIONS: dict[str, Callable[[Raw], Iterator[Demonstration]]] = {
    "oasst": oasst_demonstrations, "sgd": sgd_demonstrations,
}  # fmt: skip
COMPARISONS: dict[str, Callable[[Raw], Iterator[Comparison]]] = {
    "oasst": oasst_comparisons, "pandalm": pandalm_comparisons,
}  # fmt: skip
PROMPTS: dict[str, Callable[[Raw], Iterator[PromptRow]]] = {
    "oasst": oasst_prompts, "pandalm": pandalm_prompts, "sgd": sgd_prompts,
}  # fmt: skip
