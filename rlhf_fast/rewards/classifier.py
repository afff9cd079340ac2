"""Any `AutoModelForSequenceClassification` with one output as a reward, with a tokenizer of its own if it needs one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_fast.rewards.source import RewardBatch
from rlhf_fast.runtime.errors import UsageError


@dataclass
class ClassifierReward:
    """Scores the text of prompt and response, tokenised by the classifier's own tokenizer.

    A batch is padded on the right with its attention mask, so the pad token's id does not matter to the model; models
    that find the last token by looking for the pad id (decoder-only classifiers) are run one sequence at a time.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 16

    @classmethod
    def load(cls, name: str, path: str, *, dtype: torch.dtype, device: torch.device) -> ClassifierReward:
        try:
            model = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(path)
        except Exception as error:
            raise UsageError(f"cannot open the reward model {path!r}: {type(error).__name__}: {error}.") from error
        if model.config.num_labels != 1:
            raise UsageError(
                f"reward model {path!r} has {model.config.num_labels} outputs; expected one (num_labels=1)."
            )
        return cls(name, model.to(device).eval(), tokenizer)

    @torch.no_grad()
    def score(self, batch: RewardBatch) -> Tensor:
        texts = [prompt + response for prompt, response in zip(batch.prompts, batch.responses, strict=True)]
        decoder = hasattr(self.model, "score")
        size = 1 if decoder or self.tokenizer.pad_token is None else self.batch_size
        scores = []
        for start in range(0, len(texts), size):
            encoded = self.tokenizer(
                texts[start : start + size], return_tensors="pt", padding=size > 1, truncation=False
            ).to(self.model.device)
            if decoder:  # the last token is the last one: say so by giving no id that could pass for padding
                scores.append(self._last_token_score(encoded["input_ids"]))
            else:
                scores.append(self.model(**encoded).logits[:, 0])
        return torch.cat(scores).float().cpu()

    def _last_token_score(self, ids: Tensor) -> Tensor:
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
        return cast(nn.Module, self.model.score)(hidden)[:, 0]
