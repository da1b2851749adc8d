"""reasoning-gym behind a bridge of one's own: its questions and its scores."""

import os
import sys

import reasoning_gym

sys.path.insert(0, os.environ["COUNTERPOINT_BRIDGES"])
from lines import chat, main


class Questions:
    def __init__(self, settings):
        self.data = reasoning_gym.create_dataset(settings.get("dataset", "chain_sum"), size=20, seed=0)

    def tasks(self, most):
        return [{"task": number} for number in range(min(most, 20))]

    def play(self, job):
        item = self.data[job.task["task"]]
        message = chat(job, [{"role": "user", "content": item["question"]}])
        return self.data.score_answer(message["content"], item)


main(lambda id, settings: Questions(settings), "reasoning-gym")
