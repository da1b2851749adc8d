"""A run whose rollouts a server samples: the embedded model, a reward that differs from the first step on."""

from counterpoint.train.model.embedded import tiny_folder

RUN = f"""
recipe: grpo
extends: grpo/tiny_sums
model: {{name: '{tiny_folder()}'}}
output: .
lora: {{enabled: true, rank: 4, experts: false}}
rollout: {{engine: server, action_tokens: 10, completion_tokens: 10}}
rewards:
  - {{type: function, function: "reward.py:odd"}}
grpo: {{group: 4}}
train: {{steps: 5, batch_rows: 8, checkpoint_every: 2, learning_rate: 0.02}}
eval: {{at_start: false, at_end: false, samples: 1, max_new_tokens: 2, efforts: low}}
tracking: {{wandb: "off"}}
"""
REWARD = (
    "def odd(completion, reference):\n    return sum(i % 2 for i in completion.ids) / max(1, len(completion.ids))\n"
)
