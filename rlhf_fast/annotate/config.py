"""`AnnotateConfig`: where items come from, how they are asked, and what is done with the votes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from rlhf_fast.generate.config import GenerateConfig
from rlhf_fast.runtime.config import SHARE, Check, Config, InferenceConfig, above, at_least, default_of, option, same
from rlhf_fast.runtime.errors import UsageError

SAMPLING = (
    "max_prompts", "response_length", "stop", "temperature", "top_k", "top_p", "max_rollout_batch", "max_kv_cache_gb",
    "chat_template_path",
)  # fmt: skip
COMPUTING = ("max_tokens_per_micro_batch", "dtype", "use_cpu")
EXPORTING = ("format", "ties", "min_agreement", "min_votes", "soft_labels", "pseudonyms", "test_fraction")


@dataclass
class AnnotateConfig(Config):
    """Collect human preferences on a page of this machine, and export them for a reward model.

    Without export, backup and report the page is served until Ctrl-C.
    """

    instead: ClassVar[dict[str, str]] = {
        "model_path": "model", "dataset_name": "prompts", "num_responses": "candidates", "run": "from_run",
        "reward_model_paths": "reward_models", "output_file": "export",
    }  # fmt: skip

    store: str = option("votes.db", "The file with items, annotators and votes; made if it is not there.")
    items: str | None = option(
        None, "Items to add: a JSONL, CSV or Parquet file of prompts with responses, or a hub name."
    )
    from_run: str | None = option(None, "Items to add from the rollouts of a PPO run: its output_dir.")
    model: str | None = option(None, "Items to add by generating now: a model or adapter folder, or a hub name.")
    prompts: str | None = option(
        None, "With model: the prompts, a JSONL, CSV or Parquet file. With from_run: where the run's data is now."
    )
    checks: str | None = option(
        None, "Check questions to add: comparisons whose ranks are the right answer, put among the items unseen."
    )
    dataset_format: str | None = same(InferenceConfig, "dataset_format")
    on_bad_row: Literal["raise", "skip"] = same(InferenceConfig, "on_bad_row")
    candidates: int = option(
        2, "Responses of an item, of those of a run or to generate.",
        check=Check(lambda value: 2 <= value <= 9, "from 2 to 9"),
    )  # fmt: skip
    mode: Literal["random", "margin", "disagreement"] = option(
        "random",
        "What is asked of a run: responses at random; pairs between which the reward model's margin is smallest; "
        "pairs of which reward models disagree most.",
    )
    reward_models: list[str] = option(
        [],
        "Reward models for mode: of margin one (default: the scores that the run logged), of disagreement two or more. "
        "Items are chosen and ordered anew as one is retrained.",
    )
    max_items: int = option(200, "Most items that are taken from a run at a time.", check=at_least(1))
    refresh_seconds: float = option(
        60.0, "How often to look, while the page is served, whether a reward model or the run's rollouts have changed.",
        check=above(0),
    )  # fmt: skip

    guidelines: str | None = option(None, "A Markdown file that annotators see beside the items. Kept in the store.")
    overlap: int | None = option(
        None, "Votes that each item needs, of as many annotators. Kept; at first 1.", check=at_least(1)
    )
    lease_seconds: float | None = option(
        None, "How long an item is kept for whoever has it open. Kept; at first 900.", check=above(0)
    )
    repeats: float | None = option(
        None, "Share of tasks that are hidden repeats of an annotator's earlier ones. Kept; at first 0.05.", check=SHARE
    )
    checks_share: float | None = option(
        None, "Share of tasks that are check questions, if there are any. Kept; at first 0.1.", check=SHARE
    )
    seed: int | None = option(
        None, "Of the order in which responses are shown, of repeats and checks, of what is drawn from a run, of "
        "sampling and of the split. Kept; at first 0.",
    )  # fmt: skip
    annotators: list[str] = option([], "Names of annotators to add; the private link of each is printed, once.")

    host: str = option("127.0.0.1", "The address to serve on. Any but this machine's own needs a token.")
    port: int = option(8017, "The port to serve on; 0: any that is free.", check=Check(
        lambda value: 0 <= value <= 65535, "from 0 to 65535"))  # fmt: skip
    names: list[str] = option(
        [], "Names under which the page is called beside its own address, as of a server with https before it."
    )
    token: str | None = option(None, "Of the administrator's private link. Default: a new one at each start.")

    export: str | None = option(None, "Write the votes to this file (.jsonl or .parquet) and end.")
    format: Literal["pairs", "ranks", "votes"] = option(
        "pairs", "Of the export: prompt, chosen and rejected; prompt, responses and ranks; or every vote as it is."
    )
    ties: Literal["drop", "half", "keep"] = option(
        "drop", "What a vote for a tie is: nothing; half a vote for either side; half, and ties are exported as ties."
    )
    min_agreement: float = option(
        0.5, "Export what at least this share of the votes say.", check=Check(lambda value: 0 <= value <= 1, "0 to 1")
    )
    min_votes: int = option(1, "Export what has at least so many votes, or was decided.", check=at_least(1))
    soft_labels: bool = option(False, "Export the share of votes as a pair's probability, to be learnt as such.")
    pseudonyms: bool = option(False, "Export numbers instead of annotators' names.")
    test_fraction: float = option(
        0.0, "Share of the prompts whose rows go to a file of their own beside the export, with -test in its name.",
        check=SHARE,
    )  # fmt: skip
    backup: str | None = option(None, "Write a whole copy of the store to this new file and end.")
    report: Literal["none", "text", "json"] = option(
        "none", "Print progress, agreement, careless annotators and the leaderboard, as text or json, and end."
    )

    max_prompts: int | None = same(InferenceConfig, "max_prompts")
    response_length: int = same(InferenceConfig, "response_length")
    stop: list[str] = same(InferenceConfig, "stop")
    temperature: float = same(InferenceConfig, "temperature")
    top_k: int = same(GenerateConfig, "top_k")
    top_p: float = same(GenerateConfig, "top_p")
    max_rollout_batch: int = same(InferenceConfig, "max_rollout_batch")
    max_kv_cache_gb: float | None = same(InferenceConfig, "max_kv_cache_gb")
    chat_template_path: str | None = same(InferenceConfig, "chat_template_path")
    max_tokens_per_micro_batch: int = same(InferenceConfig, "max_tokens_per_micro_batch")
    dtype: Literal["auto", "bfloat16", "float32"] = same(InferenceConfig, "dtype")
    use_cpu: bool = same(InferenceConfig, "use_cpu")

    def __post_init__(self) -> None:
        super().__post_init__()
        sources = [name for name in ("items", "from_run", "model") if getattr(self, name)]
        if len(sources) > 1:
            raise UsageError(f"{' and '.join(sources)} are given; expected one source of items at a time.")
        self.require(self.model is None or self.prompts is not None, "model", "prompts beside it")
        self._without(
            "the items are neither of a run nor of a model", ("prompts", "candidates"), self.from_run, self.model
        )
        self._without("nothing is generated (model)", SAMPLING, self.model)
        self._without("the items are not of a run", ("mode", "max_items"), self.from_run)
        self._without("no reward model is asked (from_run, mode)", ("reward_models",), self.ranked)
        self._without("no model runs", COMPUTING, self.model, self.reward_models)
        self._without("nothing is watched (from_run, mode)", ("refresh_seconds",), self.ranked and self.serves)
        self._without("nothing is exported", EXPORTING, self.export)
        self._without("the page is not served", ("host", "port", "token", "names"), self.serves or self.annotators)
        self._without(
            "no file of rows is read", ("dataset_format", "on_bad_row"), self.items, self.checks, self.prompts
        )
        self.require(self.port != 0 or not self.annotators, "port", "a number, as the links of annotators name it")
        self.require(self.mode != "margin" or len(self.reward_models) <= 1, "reward_models", "one at most for margin")
        self.require(
            self.mode != "disagreement" or len(self.reward_models) >= 2, "reward_models", "two or more for disagreement"
        )
        self.require(self.candidates == 2 or not self.ranked, "candidates", "2, as margins are between two responses")
        self._check_export()

    @property
    def serves(self) -> bool:
        """Whether the page is served."""
        return self.export is None and self.backup is None and self.report == "none"

    @property
    def ranked(self) -> bool:
        """Whether items of a run are chosen by what a reward model says."""
        return self.from_run is not None and self.mode != "random"

    def _check_export(self) -> None:
        votes = self.format == "votes"
        for name in ("ties", "min_agreement", "min_votes"):
            same_as = getattr(self, name) == default_of(type(self), name)
            self.require(same_as or not votes, name, "its default for format=votes, which holds every vote")
        self.require(not self.soft_labels or self.format == "pairs", "soft_labels", "false unless format=pairs")
        if self.export is not None:
            self.require(Path(self.export).suffix in (".jsonl", ".parquet"), "export", "a name in .jsonl or .parquet")

    def _without(self, why: str, names: tuple[str, ...], *users: object) -> None:
        """Raise `UsageError` for a field of `names` that is set where none of its `users` is: it would do nothing."""
        if any(users):
            return
        for name in names:
            if getattr(self, name) != default_of(type(self), name):
                raise UsageError(f"{name}={getattr(self, name)!r} would do nothing: {why}. Leave it out.")
