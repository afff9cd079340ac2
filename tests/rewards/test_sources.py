"""Functions, adapters and weighted sums as rewards, and what PPO hands them and logs of them."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from rlhf_fast.data.prompts import Prompts
from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.model.roles import adapter_critic
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rewards.classifier import AdapterReward
from rlhf_fast.rewards.function import FunctionReward
from rlhf_fast.rewards.source import RewardBatch, WeightedRewards
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import tiny_model, tokens
from tests.train.cases import run

BATCH = RewardBatch(["p0 ", "p1 "], ["a b", "c"], [[1, 2], [3]], {"target": [2, 5], "kind": ["x", "y"]})


def test_a_function_gets_prompts_responses_and_columns_in_order():
    def distance(prompts, responses, target, kind):
        assert prompts == ["p0 ", "p1 "] and kind == ["x", "y"]
        return [-abs(len(response.split()) - wanted) for response, wanted in zip(responses, target, strict=True)]

    assert FunctionReward("distance", distance).score(BATCH).tolist() == [0.0, -4.0]


def test_a_function_may_give_a_tensor_that_needs_gradients_and_a_score_of_zero_counts():
    reward = FunctionReward("f", lambda prompts, responses, **columns: torch.zeros(2, requires_grad=True))
    score = WeightedRewards([(reward, 1.0)]).score(BATCH).total
    assert score.tolist() == [0.0, 0.0] and not score.requires_grad


@pytest.mark.parametrize(
    ("function", "columns", "message"),
    [
        (lambda prompts: [], [], "too many positional"),
        (lambda prompts, responses: [], ["kind"], "unexpected keyword argument 'kind'.*columns are kind.*Add"),
        (lambda prompts, responses, target: [], [], "missing a required argument: 'target'"),
        (lambda prompts, responses, **columns: [], ["prompts"], "multiple values.*rename a column"),
    ],
)
def test_a_function_that_cannot_be_called_with_the_columns_is_refused_without_calling_it(function, columns, message):
    with pytest.raises(UsageError, match=message):
        FunctionReward("f", function).check_signature(columns)


def test_a_callable_whose_signature_cannot_be_read_is_let_through():
    FunctionReward("f", max).check_signature(["kind"])
    FunctionReward("f", lambda prompts, responses, **columns: []).check_signature(["kind"])


def test_the_shared_reward_model_reads_the_sampled_ids_and_never_the_text():
    shared = SharedModel(tiny_model())
    shared.add_adapter("reward", LoraConfig(r=4, target_modules="all-linear"), head=True)
    shared.heads["reward"].weight.data.normal_()
    critic = adapter_critic(shared, "reward")
    sequences = [[5, 0, 9], [7, 2, 2, 11, 13]]  # <unk> and EOS inside: decoding and encoding again loses them
    texts = RewardBatch(["nothing", "like it"], ["at", "all"], sequences)
    with torch.no_grad():
        alone = [float(critic.head(shared.hidden(torch.tensor(s), [0, len(s)], "reward")[-1])) for s in sequences]
    assert AdapterReward("r", critic).score(texts).tolist() == pytest.approx(alone, abs=1e-5)


def test_a_reward_model_that_runs_out_of_memory_goes_on_in_smaller_forwards(monkeypatch):
    shared = SharedModel(tiny_model())
    shared.add_adapter("reward", LoraConfig(r=4, target_modules="all-linear"), head=True)
    shared.heads["reward"].weight.data.normal_()
    batch = RewardBatch([""] * 3, [""] * 3, [[5, 6, 9], [7, 2, 2, 11, 13], [4] * 7])
    wanted = AdapterReward("r", adapter_critic(shared, "reward")).score(batch).tolist()
    hidden, sizes = shared.hidden, []

    def small(tokens, *rest, **options):
        sizes.append(len(tokens))
        if len(tokens) > 7:
            raise MemoryError
        return hidden(tokens, *rest, **options)

    monkeypatch.setattr(shared, "hidden", small)
    reward = AdapterReward("r", adapter_critic(shared, "reward"), MicroBatches(16, may_halve=True))
    assert reward.score(batch).tolist() == pytest.approx(wanted, abs=1e-5)
    assert sizes == [15, 8, 3, 5, 7] and reward.micro_batches.tokens == 4
    with pytest.raises(MemoryError):
        AdapterReward("r", adapter_critic(shared, "reward"), MicroBatches(16)).score(batch)


def test_ppo_hands_on_the_ids_that_were_sampled_the_columns_of_each_row_and_its_messages(tmp_path):
    seen = []

    class Spy:
        name = "spy"

        def score(self, batch):
            seen.append(batch)
            return torch.zeros(len(batch))

    ppo = run(tmp_path, stop_token="none")
    ids = tokens(3, 5, 4, 7, 2, 6, 3, 4)
    chats = [[{"role": "user", "content": str(i)}] if i % 2 else None for i in range(8)]
    ppo.prompts = Prompts(ids, [f"text {i}" for i in range(8)], {"row": list(range(8))}, chats)
    ppo.reward = WeightedRewards([(Spy(), 1.0)])
    rollout = ppo.collect()
    ppo.score(rollout)
    (batch,) = seen
    rows = rollout.prompt_rows.tolist()
    assert batch.sequences == rollout.sequences() and batch.columns == {"row": rows}
    assert batch.prompts == [f"text {row}" for row in rows] and batch.conversations == [chats[row] for row in rows]
    assert all(sequence[: len(ids[row])] == ids[row] for sequence, row in zip(batch.sequences, rows, strict=True))
    assert batch.responses == ppo.tokenizer.batch_decode(rollout.responses(), skip_special_tokens=True)


def test_each_of_several_rewards_is_logged_unweighted_under_its_own_name(tmp_path):
    ppo = run(tmp_path)
    parts = [(FunctionReward("two", lambda p, r, **c: [2.0] * len(r)), 3.0),
             (FunctionReward("minus", lambda p, r, **c: [-1.0] * len(r)), 0.5)]  # fmt: skip
    ppo.reward = WeightedRewards(parts)
    metrics = ppo.step()
    assert metrics["reward/two"] == 2.0 and metrics["reward/minus"] == -1.0
    assert metrics["objective/scores"] == pytest.approx(3 * 2.0 - 0.5)


def test_rewards_need_names_of_their_own():
    reward = FunctionReward("f", lambda prompts, responses, **columns: [])
    with pytest.raises(UsageError, match="each with a name of its own"):
        WeightedRewards([(reward, 1.0), (reward, 2.0)])
