"""A script with a `PPOTrainer` in several processes: each takes its share, process 0 writes and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from rlhf_fast.runtime.distributed import is_main, rank, world_size
from tests.distributed.cases import finish, launch, metrics, printed
from tests.distributed.test_runs import same_metrics
from tests.trainer.cases import rows, trainer


class Seen(TrainerCallback):
    """The files of a run that is over, and what each process thinks that it is."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert state.is_world_process_zero == is_main() and state.is_local_process_zero == (rank() == 0)
        assert (args.world_size, args.batch_size, args.local_batch_size) == (world_size(), 8, 8 // world_size())
        print(f"process {rank()} ends after {state.global_step} steps and {state.episode} episodes")


def script(output: Path) -> None:
    """Iterations of 8 responses, with an evaluation of 3 held-out prompts after each and completions printed."""
    options = {
        "per_device_train_batch_size": 8 // int(world_size()), "preset": "rlhf_fast", "num_mini_batches": 2,
        "eval_strategy": "steps", "eval_steps": 1, "num_sample_generations": 3,
    }  # fmt: skip
    run = trainer(output, options=options, eval_dataset=rows(3, 4, 2), callbacks=[Seen()])
    run.train()
    completions = run.generate_completions()
    assert len(completions) == (3 if is_main() else 0)


@pytest.mark.parametrize("world", [2, 4])
def test_a_trainer_in_several_processes_is_the_one_in_one(tmp_path, capsys, world):
    """Of 4 processes one has no held-out prompt."""
    script(tmp_path / "one")
    log = tmp_path / "log"
    assert finish(launch(world, script, tmp_path / "several", log=log)) == [0] * world, printed(log, 0)
    one, several = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "several"))
    assert several.keys() == one.keys()
    assert max(float((one[name] - several[name]).abs().max()) for name in one) < 1e-5
    wanted, got = metrics(tmp_path / "one"), metrics(tmp_path / "several")
    assert "eval_objective/kl" in wanted[0]
    for row in (*wanted, *got):
        del row["eps"]
    same_metrics(got, wanted)
    for process in range(world):
        assert f"process {process} ends after 3 steps and 24 episodes" in printed(log, process)
        assert ("model response" in printed(log, process)) == (process == 0)
