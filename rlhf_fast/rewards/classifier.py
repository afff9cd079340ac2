"""Reward models as rewards: any `AutoModelForSequenceClassification` with one output, with a tokenizer of its own if it
needs one, and an adapter of the shared base, which reads the sampled ids."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_fast.model.attention import has_softcap
from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.model.fused_blocks import is_served
from rlhf_fast.model.load import refuse_missing
from rlhf_fast.model.roles import Critic, sequence_scores
from rlhf_fast.model.rope import rope_threshold
from rlhf_fast.model.shared import ScoreHead, SharedModel, context_length
from rlhf_fast.model.template import opening, render, without_end
from rlhf_fast.rewards.source import Conversation, RewardBatch
from rlhf_fast.runtime.errors import UsageError

logger = logging.getLogger(__name__)


EXPORTED = "rlhf_fast_reward"
"""In the config of a classifier that was a reward adapter: {"score_bias": what its scores are above its logits}."""


@dataclass
class ClassifierReward:
    """Scores prompt and response as text, tokenised by the classifier's own tokenizer.

    One that `rlhf-fast export` wrote from a reward adapter reads the sampled ids, as the adapter does, where these say
    in its tokenizer what the text says; else the text, with EOS where the response is finished. To its logits the bias
    is added that `transformers` has no place for, so that its scores are the adapter's.

    A conversation goes through the classifier's own chat template; where it has none, the contents of the turns are
    joined with blank lines. A plain-text prompt is followed by its response. Of a text that is longer than the
    classifier's context the end is kept, and a warning says so once.

    A decoder-only classifier, which would look for the pad id to find the last token, is read here where the text ends;
    texts go side by side without padding through the families that `fused_blocks` serves. Else batches are of texts of
    similar length, padded on the right, so that the pad token's id does not matter: an encoder gets its attention mask.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 16
    max_tokens: int = 2048  # of texts side by side
    warned: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        layer, self.packed = getattr(self.model, "score", None), None
        self.exported: dict[str, float] | None = getattr(self.model.config, EXPORTED, None)
        if isinstance(layer, nn.Linear) and is_served(self.model):
            self.packed = Critic(SharedModel(self.model), None, ScoreHead(layer))

    @classmethod
    def load(cls, name: str, path: str, *, dtype: torch.dtype, device: torch.device) -> ClassifierReward:
        """Raises `UsageError` for a folder that is not there or not whole, or a model with more than one output."""
        refuse_missing(path)
        try:
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except Exception as error:
            raise UsageError(
                f"cannot open the reward model {path!r}: {type(error).__name__}: {error}. Expected a reward adapter "
                "folder, or a sequence-classification model as `save_pretrained` writes it."
            ) from error
        if model.config.num_labels != 1:
            raise UsageError(
                f"reward model {path!r} has {model.config.num_labels} outputs; expected one (num_labels=1)."
            )
        if loading["missing_keys"]:
            raise UsageError(
                f"reward model {path!r} is incomplete: {', '.join(sorted(loading['missing_keys'])[:3])} would be "
                "random. Give a trained sequence-classification model, not a language model."
            )
        if has_softcap(model.config):
            model.set_attn_implementation("eager")
        return cls(name, model.to(device).eval(), tokenizer)

    def score(self, batch: RewardBatch) -> Tensor:
        """(B,) f32 on the CPU."""
        return self._logits(batch) + (self.exported or {"score_bias": 0.0})["score_bias"]

    @torch.no_grad()
    def _logits(self, batch: RewardBatch) -> Tensor:
        encoded = [self._encode(batch, i) for i in range(len(batch))]
        if self.packed is not None:
            return sequence_scores(self.packed, [text["input_ids"] for text in encoded], self.max_tokens)
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
        decoder = hasattr(self.model, "score")
        alone = rope_threshold(self.model.config) is not None  # a batch would rotate all by its longest text
        size = 1 if alone or not (decoder or self.tokenizer.pad_token) else self.batch_size
        scores = torch.empty(len(batch))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            part = [encoded[i] for i in rows]
            scores[rows] = (self._score_decoder(part) if decoder else self._score_encoder(part)).float().cpu()
        return scores

    def _score_encoder(self, encoded: list[BatchEncoding]) -> Tensor:
        padded = self.tokenizer.pad(
            encoded, padding=len(encoded) > 1, padding_side="right", return_tensors="pt", verbose=False
        )
        return self.model(**padded.to(self.model.device)).logits[:, 0]

    def _score_decoder(self, encoded: list[BatchEncoding]) -> Tensor:
        """What comes after a token changes nothing before it, so the padding needs no mask."""
        ids = [torch.tensor(text["input_ids"], device=self.model.device) for text in encoded]
        hidden = self.model.base_model(input_ids=pad_sequence(ids, batch_first=True), use_cache=False).last_hidden_state
        last = torch.tensor([len(text) - 1 for text in ids], device=hidden.device)
        rows = torch.arange(len(ids), device=hidden.device)
        return cast(nn.Module, self.model.score)(hidden[rows, last])[:, 0]

    @property
    def max_length(self) -> int | None:
        """Tokens that the classifier can read, where it or its tokenizer states a number."""
        config = self.model.config
        context = context_length(config)
        if context is not None and "roberta" in config.model_type:  # positions start after the pad id
            context -= (config.pad_token_id or 0) + 1
        limits = [limit for limit in (context, self.tokenizer.model_max_length) if limit is not None and limit < 10**9]
        return min(limits, default=None)

    def _encode(self, batch: RewardBatch, i: int) -> BatchEncoding:
        if self.exported is not None:
            return BatchEncoding({"input_ids": self._encode_exported(batch, i)})
        conversation, response = batch.conversations[i], batch.responses[i]
        templated = conversation is not None and self.tokenizer.chat_template is not None
        text = self._with_one_bos(batch.prompts[i] + response)
        if conversation is not None:
            turns = self._turns([*conversation, {"role": "assistant", "content": response}])
            text = self._render(turns, batch.tools[i]) if templated else "\n\n".join(turn["content"] for turn in turns)
        encoded = self.tokenizer(text, add_special_tokens=not templated, verbose=False)
        limit = self.max_length
        if limit is None or len(encoded["input_ids"]) <= limit:
            return encoded
        self._warn(len(encoded["input_ids"]), limit)
        self.tokenizer.truncation_side = "left"
        return self.tokenizer(text, add_special_tokens=not templated, truncation=True, max_length=limit)

    def _encode_exported(self, batch: RewardBatch, i: int) -> list[int]:
        """What the reward adapter would read: the sampled ids, or what stands for them in this tokenizer."""
        ids, limit = batch.sequences[i] if self._sampled_here(batch, i) else self._as_trained(batch, i), self.max_length
        if limit is None or len(ids) <= limit:
            return ids
        self._warn(len(ids), limit)
        return ids[-limit:]

    def _sampled_here(self, batch: RewardBatch, i: int) -> bool:
        """Whether the sampled ids are of this tokenizer: whether they say what the texts do."""
        sampled, prompt, response = batch.sequences[i], self._ids(batch.prompts[i]), self._ids(batch.responses[i])
        if batch.response_ids is None:
            return self._said(sampled) == self._said(prompt + response)
        start = len(sampled) - len(batch.response_ids[i])
        said = self._said(sampled[start:])
        return self._said(sampled[:start]) == self._said(prompt) and said in (batch.responses[i], self._said(response))

    def _as_trained(self, batch: RewardBatch, i: int) -> list[int]:
        """Prompt and response, each by itself, as a reward model is trained on them, and EOS after a finished one."""
        conversation, eos = batch.conversations[i], self.tokenizer.eos_token_id
        turns = None if conversation is None else self._turns(conversation)
        if turns is not None and self.tokenizer.chat_template is not None:
            prompt = self._ids(self._render(turns, batch.tools[i], open_reply=True))
        else:
            text = batch.prompts[i] if turns is None else "\n\n".join(turn["content"] for turn in turns)
            plain, prompt = self._ids(text), self._ids(text, special=True)
            while len(prompt) > len(plain) and prompt[-1:] != plain[-1:]:
                prompt.pop()  # what closes a text: the response goes on here
        ends = batch.finished is not None and batch.finished[i] and eos is not None
        return prompt + self._ids(batch.responses[i]) + [eos] * ends

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def _said(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _turns(self, turns: Conversation) -> Conversation:
        """The same turns, the assistant's without an EOS of their own, which a template would double.

        Raises `UsageError` for a turn without text where there is no template that could show what it has instead.
        """
        bare = [turn["role"] for turn in turns if turn.get("content") is None]
        if bare and self.tokenizer.chat_template is None:
            raise UsageError(
                f"reward {self.name!r} has no chat template, and a turn of the {bare[0]} has no text but tool calls, "
                "which it cannot read. Use a reward model with a chat template."
            )
        eos = self.tokenizer.eos_token
        return [
            turn | {"content": without_end(turn["content"], eos)}
            if turn["role"] == "assistant" and turn.get("content") else turn
            for turn in turns
        ]  # fmt: skip

    def _with_one_bos(self, text: str) -> str:
        """Plain text without the BOS that it begins with, where the tokenizer puts one before it."""
        bare = text.removeprefix(self.tokenizer.bos_token or "")
        return bare if bare != text and opening(self.tokenizer, bare) == [self.tokenizer.bos_token_id] else text

    def _render(self, turns: Conversation, tools: list[dict[str, Any]] | None, *, open_reply: bool = False) -> str:
        name = f"the chat template of reward {self.name!r}"
        return render(self.tokenizer, turns, tools, open_reply=open_reply, name=name, remedy="use another reward model")

    def _warn(self, length: int, limit: int) -> None:
        if not self.warned:
            self.warned = True
            logger.warning(
                "reward %r reads %d tokens and a prompt with its response has %d: of such texts only the end is scored",
                self.name, limit, length,
            )  # fmt: skip


@dataclass
class AdapterReward:
    """The scalar of `model` at the last token of prompt + response."""

    name: str
    model: Critic
    micro_batches: MicroBatches = field(default_factory=lambda: MicroBatches(2048))

    def score(self, batch: RewardBatch) -> Tensor:
        return sequence_scores(self.model, batch.sequences, self.micro_batches)
