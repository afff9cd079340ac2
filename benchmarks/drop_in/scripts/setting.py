"""The config is made with one option, given as JSON, beside those that nearly every script gives."""

import json
import sys

from accelerate import ParallelismConfig  # type: ignore[import-untyped]
from trl.experimental.ppo import PPOConfig

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    options = {
        "output_dir": "settings", "per_device_train_batch_size": 4, "total_episodes": 8, "response_length": 4,
        "num_sample_generations": 0, "report_to": "none", "use_cpu": True,
    }  # fmt: skip
    if "parallelism_config" in given:
        given["parallelism_config"] = ParallelismConfig(**given["parallelism_config"])
    PPOConfig(**(options | given))
