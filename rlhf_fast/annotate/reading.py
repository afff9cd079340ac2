"""Items from files: responses to compare, and check questions whose answer is known.

A row has `prompt` and `responses`, in any form that comparisons have, or `chosen` and `rejected`; or it is of a format
that the project knows (oasst, pandalm). `sources` says where each response came from. What people have said of it
before is kept beside the item, not shown and not counted; of check questions it is the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rlhf_fast.annotate.items import Item, Ranks, make_item
from rlhf_fast.data.columns import comparison
from rlhf_fast.data.readers import OnBadRow, read_comparisons
from rlhf_fast.data.schema import Comparison
from rlhf_fast.data.sources import BadRow, Raw, describe, raw_rows
from rlhf_fast.data.values import absent, shown
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import notices

LABELS = ("ranks", "votes", "probability")
MOST_RESPONSES = 9
"""That keys 1 to 9 rank."""


def read_items(source: str, *, format: str | None = None, on_bad_row: OnBadRow = "raise") -> list[Item]:
    """The items in a JSONL, CSV or Parquet file, or a hub data set. Raises `UsageError` with line and reason at the
    first bad row, unless on_bad_row="skip"; and where none is good."""
    if format is not None:
        rows = read_comparisons(source, format=format, on_bad_row=on_bad_row).rows
        items = [_known(row, source, labelled="ranks") for row in rows]
    else:
        items = list(_read(source, on_bad_row))
    _say(items, source)
    return items


def read_checks(source: str, *, format: str | None = None, on_bad_row: OnBadRow = "raise") -> list[Item]:
    """Check questions: comparisons whose ranks are the right answer, of which a tie is left out of the account.

    As `read_comparisons` reads them. Raises `UsageError` also where a row says nothing of its responses.
    """
    rows = read_comparisons(source, format=format, on_bad_row=on_bad_row).rows
    items = []
    for row in rows:
        if len(set(row.ranks)) == 1:
            raise UsageError(
                f"{describe(source)}: a check question's responses all tie ({shown(row.responses[0])} ...); expected "
                "an answer that is right."
            )
        items.append(_known(row, source, answer=_dense(row.ranks)))
    return items


def _read(source: str, on_bad_row: OnBadRow) -> Iterator[Item]:
    skipped: list[str] = []
    good = 0
    for where, raw in raw_rows(source):
        try:
            if isinstance(raw, BadRow):
                raise raw
            item = _item(raw)
        except BadRow as error:
            if on_bad_row == "raise":
                raise UsageError(
                    f"{where}: {error}. Mend the row, or set on_bad_row=skip to leave such rows out."
                ) from error
            skipped.append(f"{where}: {error}")
            continue
        good += 1
        yield item
    first = f" The first: {skipped[0]}." if skipped else ""
    if not good:
        raise UsageError(f"no usable row in {describe(source)} ({len(skipped)} skipped); expected at least one.{first}")
    if skipped:
        notices.warning("skipped %d bad rows of %s, kept %d.%s", len(skipped), describe(source), good, first)


def _item(row: Raw) -> Item:
    if absent(row.get("responses")) and (absent(row.get("chosen")) or absent(row.get("rejected"))):
        raise BadRow(f"columns are {', '.join(row)}; expected prompt and responses, or chosen and rejected")
    given = {name: row[name] for name in LABELS if not absent(row.get(name))}
    plain = {name: value for name, value in row.items() if name not in LABELS}
    if not absent(row.get("responses")):
        responses = row["responses"]
        plain["ranks"] = [1.0] * len(responses) if isinstance(responses, list) else []  # nobody has said anything yet
    read = comparison(plain)
    return _of_comparison(replace(read, meta=read.meta | given), "ranks" if absent(row.get("responses")) else None)


def _known(row: Comparison, source: str, labelled: str | None = None, answer: Ranks | None = None) -> Item:
    """Of a row that has been read; PandaLM's rows name their two models in one column."""
    models = str(row.meta.get("cmp_key", "")).split("_")
    if len(models) == len(row.responses) and not {"sources", "models"} & row.meta.keys():
        row = replace(row, meta=row.meta | {"models": models})
    try:
        return _of_comparison(row, labelled, answer)
    except BadRow as error:
        raise UsageError(f"{describe(source)}: {error}. Mend the row.") from error


def _of_comparison(row: Comparison, labelled: str | None, answer: Ranks | None = None) -> Item:
    """labelled: the name under which its ranks are kept, if they are."""
    if len(row.responses) > MOST_RESPONSES:
        raise BadRow(f"there are {len(row.responses)} responses; expected at most {MOST_RESPONSES}")
    meta = dict(row.meta)
    sources = _sources(meta.pop("sources", None), meta.pop("models", None), len(row.responses))
    if labelled is not None:
        meta[labelled] = list(row.ranks)
    return make_item(row.prompt, row.responses, sources, meta=meta, tools=row.tools, answer=answer)


def _sources(sources: Any, models: Any, responses: int) -> list[dict[str, Any]] | None:
    """One object for each response; a text, also under `models`, is the model's name."""
    given = models if absent(sources) else sources
    if absent(given):
        return None
    if not isinstance(given, list) or len(given) != responses:
        raise BadRow(f"sources is {shown(given)} for {responses} responses; expected a list with one for each")
    named = [{"model": one} if isinstance(one, str) else one for one in given]
    if not all(isinstance(one, dict) for one in named):
        raise BadRow(f"sources is {shown(given)}; expected the name of a model or an object for each response")
    return named


def _dense(ranks: Sequence[float]) -> Ranks:
    distinct = sorted(set(ranks))
    return [distinct.index(rank) + 1 for rank in ranks]


def _say(items: Sequence[Item], source: str) -> None:
    """Once for a file: what its items hold that nobody sees, and what nobody can tell apart."""
    name = describe(source)
    kept = sorted({key for item in items for key in item.meta} - {"id"})
    if kept:
        notices.info("%s: columns that annotators do not see, kept beside the items: %s", name, ", ".join(kept[:30]))
    same = sum(len(set(item.responses)) < len(item.responses) for item in items)
    if same:
        notices.warning("%d of %d items of %s have a response twice, word for word", same, len(items), name)
    twice = sum(count - 1 for count in Counter(item.id for item in items).values())
    if twice:
        notices.warning("%d of %d items of %s stand there twice; each is asked once", twice, len(items), name)
