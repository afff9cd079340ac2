"""`GenerateConfig`: every choice of a generation."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_fast.runtime.inference_config import InferenceConfig


@dataclass
class GenerateConfig(InferenceConfig):
    """Answer prompts with a model or an adapter."""

    model_path: str | None = field(default=None, metadata={"help": "A model or adapter folder, or a hub name."})
    prompts: list[str] = field(
        default_factory=list,
        metadata={"help": "Prompts as text, instead of dataset_name; a user's turn each if there is a chat template."},
    )
    top_k: int = field(default=0, metadata={"help": "Sample from the k likeliest tokens; 0: from all."})
    top_p: float = field(default=1.0, metadata={"help": "Sample from the likeliest tokens of this probability."})
    num_responses: int = field(default=1, metadata={"help": "Responses to each prompt."})
    output_file: str = field(
        default="responses.jsonl", metadata={"help": "One JSON object a response: prompt, response, finished."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.top_k >= 0, "top_k", "0 (off) or more")
        self.require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        self.require(self.num_responses >= 1, "num_responses", "at least 1")
        self.require(not (self.prompts and self.dataset_name), "prompts", "nothing beside dataset_name")
