"""`rlhf-fast annotate`: fill a store with items, serve the page, and get the votes out again."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rlhf_fast.annotate.collect import (
    first,
    generated_items,
    logged_scores,
    open_rewards,
    priorities,
    run_items,
    score_items,
)
from rlhf_fast.annotate.config import COMPUTING, SAMPLING, AnnotateConfig
from rlhf_fast.annotate.export import Policy, export, write_export
from rlhf_fast.annotate.figures import as_dict, as_text, figures
from rlhf_fast.annotate.items import Item
from rlhf_fast.annotate.reading import read_checks, read_items
from rlhf_fast.annotate.security import address_refusal
from rlhf_fast.annotate.store import Store
from rlhf_fast.generate.config import GenerateConfig
from rlhf_fast.runtime.distributed import refuse_many
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.identity import weights_fingerprint
from rlhf_fast.runtime.shown import notices, show_notices
from rlhf_fast.train.rollout_log import ROLLOUTS_FILE

logger = logging.getLogger(__name__)
KEPT = {"overlap": "overlap", "lease_seconds": "lease_seconds", "repeats": "repeats", "checks": "checks_share",
        "seed": "seed"}  # fmt: skip
"""Settings of the store, and the fields that set them."""


def run_annotate(config: AnnotateConfig) -> str:
    """What was done, in a line or more (a report: itself). Items are read or made before the store is touched, so that
    what the user gave wrong leaves it as it was. Raises `UsageError`."""
    refuse_many("annotate")
    show_notices()
    if config.serves:
        address_refusal(config.host, config.token, config.names)
        _serve = _server()
    path = Path(config.store).expanduser()
    fills = any((config.items, config.from_run, config.model, config.checks))
    if not fills and not path.exists():
        raise UsageError(
            f"there is no store {config.store!r}, and nothing to put into a new one; give --items, --from_run or "
            "--model with --prompts, or the path of a store."
        )
    seed = _seed(config, path)
    items, ranked = _collect(config, seed)
    checks = _checks(config)
    guidelines = _guidelines(config)
    store = Store.open(path, create=True)
    try:
        _set(store, config, guidelines)
        _add(store, items, checks, ranked)
        _add_annotators(store, config)
        if config.serves:
            with Refresher(store, config, seed) if config.ranked else nullcontext():
                _serve(store, config)
            return f"{config.store}: {len(store.current_votes())} votes"
        return "\n".join(_results(store, config, seed))
    finally:
        store.close()


def _server() -> Any:
    try:
        from rlhf_fast.annotate.app import serve
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("rlhf_fast"):
            raise
        raise UsageError(f'the page needs more packages ({error.name}); `pip install "rlhf-fast[ui]"`.') from error
    return serve


def _seed(config: AnnotateConfig, path: Path) -> int:
    if config.seed is not None or not path.exists():
        return config.seed or 0
    store = Store.open(path)
    try:
        return int(store.settings["seed"])
    finally:
        store.close()


# Into the store


def _collect(config: AnnotateConfig, seed: int) -> tuple[list[Item], dict[str, float]]:
    """The items to add, and the priorities that are known."""
    if config.items is not None:
        return read_items(config.items, format=config.dataset_format, on_bad_row=config.on_bad_row), {}
    if config.model is not None:
        names = ("dataset_format", "on_bad_row", *SAMPLING, *COMPUTING)
        own: dict[str, Any] = {name: getattr(config, name) for name in names}
        own |= {"model_path": config.model, "dataset_name": config.prompts, "num_responses": config.candidates}
        return generated_items(GenerateConfig(**own, seed=seed)), {}
    if config.from_run is not None:
        return from_run(config, seed)
    return [], {}


def from_run(config: AnnotateConfig, seed: int) -> tuple[list[Item], dict[str, float]]:
    """The items of the run that `mode` chooses, and the priorities of all that it chose among."""
    assert config.from_run is not None
    items = run_items(
        config.from_run, prompts=config.prompts, format=config.dataset_format, responses=config.candidates,
        limit=config.max_items, seed=seed, every_pair=config.ranked,
    )  # fmt: skip
    if not config.ranked:
        return items, {}
    if config.reward_models:
        rewards = open_rewards(
            config.reward_models, dtype=config.dtype, use_cpu=config.use_cpu,
            max_tokens=config.max_tokens_per_micro_batch,
        )  # fmt: skip
        scores = score_items(items, config.reward_models, rewards)
    else:
        scores = logged_scores(items)
    ranked = priorities(items, scores, config.mode)
    return first(items, ranked, config.max_items), ranked


def _checks(config: AnnotateConfig) -> list[Item]:
    if config.checks is None:
        return []
    return read_checks(config.checks, format=config.dataset_format, on_bad_row=config.on_bad_row)


def _guidelines(config: AnnotateConfig) -> str | None:
    if config.guidelines is None:
        return None
    try:
        return Path(config.guidelines).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read guidelines={config.guidelines!r}: {error}. Expected a Markdown file.") from error


def _set(store: Store, config: AnnotateConfig, guidelines: str | None) -> None:
    given = {name: getattr(config, field) for name, field in KEPT.items()}
    store.update_settings(**{
        name: value for name, value in (given | {"guidelines": guidelines}).items() if value is not None
    })  # fmt: skip


def _add(store: Store, items: Sequence[Item], checks: Sequence[Item], ranked: dict[str, float]) -> None:
    for found, noun in ((items, "items"), (checks, "check questions")):
        if found:
            added = store.add_items(found)
            there = f", {len(found) - added} were there already" if added < len(found) else ""
            notices.info("%s: %d %s added%s", store.path, added, noun, there)
    if ranked:
        there_now = {item.id for item in store.items()}
        store.set_priorities({item_id: value for item_id, value in ranked.items() if item_id in there_now})


def _add_annotators(store: Store, config: AnnotateConfig) -> None:
    there = {one.name for one in store.annotators()}
    for name in config.annotators:
        if name.strip() in there:
            notices.info("%s is an annotator of %s already; the private link is as it was", name, store.path)
            continue
        from rlhf_fast.annotate.app import link

        token = store.add_annotator(name)
        there.add(name.strip())
        notices.info("private link of %s, shown this once: %s", name, link(config.host, config.port, token))


class Refresher:
    """While the page is served, a thread that looks every `refresh_seconds` whether a reward model or the log of
    rollouts has changed, and then adds and orders items anew. What goes wrong is said, and what was chosen stays."""

    def __init__(self, store: Store, config: AnnotateConfig, seed: int) -> None:
        self.store, self.config, self.seed = store, config, seed
        self.seen = self.state()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="annotate-refresher", daemon=True)

    def __enter__(self) -> Refresher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def state(self) -> tuple[str, int]:
        """A digest of the reward models, and the size of the run's log."""
        log = Path(str(self.config.from_run)).expanduser() / ROLLOUTS_FILE
        return weights_fingerprint(self.config.reward_models), log.stat().st_size if log.exists() else 0

    def look(self) -> bool:
        """Whether something had changed, and the items with it."""
        now = self.state()
        if now == self.seen:
            return False
        items, ranked = from_run(self.config, self.seed)
        _add(self.store, items, [], ranked)
        self.store.audit("command line", "items chosen anew", {"mode": self.config.mode})
        self.seen = now
        return True

    def _run(self) -> None:
        while not self._stop.wait(self.config.refresh_seconds):
            try:
                self.look()
            except Exception as error:  # a model that is being written; the page goes on
                logger.warning("items could not be chosen anew, which is tried again: %s", error)


# Out of the store


def _results(store: Store, config: AnnotateConfig, seed: int) -> list[str]:
    lines = []
    if config.backup is not None:
        store.backup(config.backup)
        store.audit("command line", "backup", {"file": config.backup})
        lines.append(f"{config.backup}: a copy of {config.store}")
    if config.export is not None:
        policy = Policy(
            config.ties, config.min_agreement, config.min_votes, config.soft_labels, config.pseudonyms
        )  # fmt: skip
        found = export(store, config.format, policy)
        files = write_export(found, config.export, test_fraction=config.test_fraction, seed=seed)
        store.audit("command line", "export", {"files": list(map(str, files)), "format": config.format})
        lines.append(f"{' and '.join(map(str, files))}: {found}")
    if config.report != "none":
        said = figures(store)
        lines.append(as_text(said) if config.report == "text" else json.dumps(as_dict(said), indent=2, default=str))
    return lines
