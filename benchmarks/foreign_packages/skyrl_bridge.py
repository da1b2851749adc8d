"""skyrl-gym behind a bridge of one's own: gsm8k over several turns, the model's text as the action."""

import os
import sys

import skyrl_gym

sys.path.insert(0, os.environ["COUNTERPOINT_BRIDGES"])
from lines import chat, main


class Gsm8k:
    def tasks(self, most):
        return [{"task": number} for number in range(min(most, 10))]

    def play(self, job):
        number = job.task["task"]
        spec = {"reward_spec": {"ground_truth": str(number + 2)}, "extra_info": {"max_turns": 3}}
        env = skyrl_gym.make("gsm8k_multi_turn", extras=spec)
        messages, _ = env.init([{"role": "user", "content": f"What is {number} + 2? End with #### ANSWER."}])
        reward, done = 0.0, False
        while not done:
            message = chat(job, messages)
            step = env.step(message["content"])
            reward, done = reward + step["reward"], step["done"]
            messages = [*messages, message, *step["observations"]]
        return reward, {"turns": env.turns}


main(lambda id, settings: Gsm8k(), "skyrl-gym")
