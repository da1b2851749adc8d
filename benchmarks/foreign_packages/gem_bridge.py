"""gem-llm behind a bridge of one's own: a game whose observations are the user's messages."""

import os
import sys

import gem

sys.path.insert(0, os.environ["COUNTERPOINT_BRIDGES"])
from lines import chat, main


class Game:
    def __init__(self, settings):
        self.game = settings.get("game", "game:GuessTheNumber-v0-easy")

    def tasks(self, most):
        return [{"task": number} for number in range(most)]

    def play(self, job):
        env = gem.make(self.game)
        seen, _ = env.reset(seed=job.seed + job.task["task"])
        messages, total, done = [], 0.0, False
        while not done:
            messages.append({"role": "user", "content": str(seen)})
            messages.append(chat(job, messages))
            seen, reward, ended, cut, _ = env.step(f"\\boxed{{{messages[-1]['content']}}}")
            total, done = total + float(reward), ended or cut
        return total, {"turns": len(messages) // 2}


main(lambda id, settings: Game(settings), "gem-llm")
