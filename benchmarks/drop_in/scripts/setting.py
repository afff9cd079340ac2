"""A trainer is made with some options of the config, given as JSON."""

import json
import sys

import torch
from accelerate import ParallelismConfig  # type: ignore[import-untyped]
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    options = {
        "output_dir": f"settings/{abs(hash(sys.argv[1]))}", "per_device_train_batch_size": 4, "total_episodes": 8,
        "response_length": 4, "num_ppo_epochs": 1, "num_sample_generations": 0, "report_to": "none", "use_cpu": True,
    }  # fmt: skip
    if "parallelism_config" in given:
        given["parallelism_config"] = ParallelismConfig(**given["parallelism_config"])
    args = PPOConfig(**(options | given))
    tokenizer = AutoTokenizer.from_pretrained("policy", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained("policy", dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained("policy", dtype=torch.float32)
    if any(name.endswith("adapter_name") for name in given):
        model, reference = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])), None
        model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    classifiers = {
        role: AutoModelForSequenceClassification.from_pretrained("reward", num_labels=1, dtype=torch.float32)
        for role in ("reward_model", "value_model")
    }
    with open("rows/train.jsonl") as file:
        rows = Dataset.from_list([{"input_ids": tokenizer(json.loads(line)["prompt"])["input_ids"]} for line in file])
    PPOTrainer(
        args=args, processing_class=tokenizer, model=model, ref_model=reference, train_dataset=rows,
        eval_dataset=rows.select(range(4)), **classifiers,
    )  # fmt: skip
