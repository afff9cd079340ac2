"""In the form of TRL's example ppo.py: everything from the command line, then training, saving, completions."""

import shutil
from pathlib import Path

import torch
from accelerate import PartialState  # type: ignore[import-untyped]
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks.drop_in import checks

if __name__ == "__main__":
    parser = HfArgumentParser((ScriptArguments, PPOConfig, ModelConfig))
    script_args, training_args, model_args = parser.parse_args_into_dataclasses()
    shutil.rmtree(training_args.output_dir, ignore_errors=True)

    model_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype if model_args.dtype in ["auto", None] else getattr(torch, model_args.dtype),
    }
    quantization_config = get_quantization_config(model_args)
    if quantization_config is not None:
        model_kwargs["quantization_config"] = quantization_config
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    value_model, reward_model = (
        AutoModelForSequenceClassification.from_pretrained(
            training_args.reward_model_path, num_labels=1, **model_kwargs
        )
        for _ in range(2)
    )
    policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path, **model_kwargs)
    peft_config = get_peft_config(model_args)
    ref_policy = None
    if peft_config is None:
        ref_policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path, **model_kwargs)

    dataset = load_dataset(script_args.dataset_name, name=script_args.dataset_config)

    def prepare_dataset(dataset):
        def tokenize(element):
            return {"input_ids": tokenizer(element["prompt"], padding=False)["input_ids"]}

        return dataset.map(
            tokenize, batched=True, remove_columns=dataset.column_names, num_proc=training_args.dataset_num_proc
        )

    with PartialState().local_main_process_first():
        train_dataset = prepare_dataset(dataset[script_args.dataset_train_split])
        eval_dataset = prepare_dataset(dataset[script_args.dataset_test_split])

    critic_before = checks.weights(value_model)
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

    assert checks.changed(critic_before, trainer.model.value_model)
    checks.opens(training_args.output_dir, training_args.sft_model_path)
    checks.says(trainer.accelerator.unwrap_model(trainer.model).policy, tokenizer)
    iterations = trainer.state.global_step
    kept = sorted(Path(training_args.output_dir).glob("checkpoint-*"))
    saves = getattr(training_args.save_strategy, "value", training_args.save_strategy)
    if saves == "steps" and 1 <= training_args.save_steps <= iterations:
        assert kept and len(kept) <= (training_args.save_total_limit or len(kept)), kept
        checks.opens(kept[-1], training_args.sft_model_path)
    if saves == "no":
        assert not kept, kept
    if training_args.logging_steps <= iterations:
        checks.logged(trainer)
