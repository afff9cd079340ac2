"""`PPOTrainer` and its `PPOConfig`, with the arguments of TRL 1.12's: a script changes the line that imports them.

What lives here is the way in: models, data and callbacks as a TRL script hands them over, turned into what
`rlhf_fast.train.ppo` takes. The algorithm is there, not here.
"""

from rlhf_fast.trainer.config import (
    ModelConfig,
    PPOConfig,
    ScriptArguments,
    get_kbit_device_map,
    get_peft_config,
    get_quantization_config,
)
from rlhf_fast.trainer.ppo_trainer import PPOTrainer

__all__ = [
    "ModelConfig",
    "PPOConfig",
    "PPOTrainer",
    "ScriptArguments",
    "get_kbit_device_map",
    "get_peft_config",
    "get_quantization_config",
]
