"""`GenerateConfig`: every choice of a generation."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_fast.runtime.config import Check, InferenceConfig, at_least, option, zero_or_more


@dataclass
class GenerateConfig(InferenceConfig):
    """Answer prompts with a model or an adapter."""

    model_path: str | None = option(None, "A model or adapter folder, or a hub name.")
    prompts: list[str] = option(
        [], "Prompts as text, instead of dataset_name; a user's turn each if there is a chat template."
    )
    top_k: int = option(0, "Sample from the k likeliest tokens; 0: from all.", check=zero_or_more("off"))
    top_p: float = option(
        1.0, "Sample from the likeliest tokens of this probability.",
        check=Check(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    )  # fmt: skip
    num_responses: int = option(1, "Responses to each prompt.", check=at_least(1))
    output_file: str = option("responses.jsonl", "One JSON object a response: prompt, response, finished.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(not (self.prompts and self.dataset_name), "prompts", "nothing beside dataset_name")
