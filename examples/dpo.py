"""TRL's DPO script with two lines changed: the import, and with it the names.

    python examples/dpo.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \
        --dataset_name trl-lib/ultrafeedback_binarized --output_dir out

Every option of TRL's script is one of this, LoRA (`--use_peft`) among them; those of the strength
join them: `--family gamma`, `--mean_anchor prior`, `--annotator_column user_id`.
"""

from datasets import load_dataset
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config

from mixdpo_pyro import MixDPOConfig, MixDPOTrainer  # was: from trl import DPOConfig, DPOTrainer


def main() -> None:
    """Read the options, train, save."""
    parser = TrlParser((ScriptArguments, MixDPOConfig, ModelConfig))
    script_args, training_args, model_args = parser.parse_args_and_config()
    dataset = load_dataset(script_args.dataset_name, name=script_args.dataset_config)
    evaluates = training_args.eval_strategy != "no"
    trainer = MixDPOTrainer(
        model_args.model_name_or_path,
        args=training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if evaluates else None,
        peft_config=get_peft_config(model_args),
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    print(trainer.strength)


if __name__ == "__main__":
    main()
