"""A PPO script as TRL's users write it: only imports name another package, that of the dataclasses beside the trainer's
too, as TRL is not installed here."""

import shutil

import torch
from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser

from rlhf_fast import PPOConfig, PPOTrainer
from rlhf_fast.trainer import (
    ModelConfig,
    ScriptArguments,
    get_kbit_device_map,
    get_peft_config,
    get_quantization_config,
)

if __name__ == "__main__":
    parser = HfArgumentParser((ScriptArguments, PPOConfig, ModelConfig))
    script_args, training_args, model_args = parser.parse_args_into_dataclasses()
    shutil.rmtree(training_args.output_dir, ignore_errors=True)

    quantization_config = get_quantization_config(model_args)
    loading = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype if model_args.dtype in ("auto", None) else getattr(torch, model_args.dtype),
        "device_map": get_kbit_device_map() if quantization_config is not None else None,
        "quantization_config": quantization_config,
    }
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    value_model = AutoModelForSequenceClassification.from_pretrained(
        training_args.reward_model_path, num_labels=1, **loading
    )
    reward_model = AutoModelForSequenceClassification.from_pretrained(
        training_args.reward_model_path, num_labels=1, **loading
    )
    policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path, **loading)
    peft_config = get_peft_config(model_args)
    ref_policy = None
    if peft_config is None:
        ref_policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path, **loading)

    dataset = load_dataset("json", data_files=script_args.dataset_name, split=script_args.dataset_train_split)

    def prepare(part):
        def tokenize(rows):
            return {"input_ids": tokenizer(rows["prompt"], padding=False)["input_ids"]}

        return part.map(
            tokenize, batched=True, remove_columns=part.column_names, num_proc=training_args.dataset_num_proc
        )

    with PartialState().local_main_process_first():
        train_dataset = prepare(dataset.select(range(len(dataset) - 4)))
        eval_dataset = prepare(dataset.select(range(len(dataset) - 4, len(dataset))))

    trainer = PPOTrainer(
        args=training_args,
        processing_class=tokenizer,
        model=policy,
        ref_model=ref_policy,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=peft_config,
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.generate_completions()
