"""Bridge to TextArena: the model plays a game as player 0, the model of `user` plays the others.

id: the game (`GuessTheNumber-v0`). settings: `players` (1), `system`, and what `textarena.make` takes. A task is a
number, which makes the game's seed with the rollout's. The reward is player 0's.
"""

from __future__ import annotations

import os
import random
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lines import Job, chat, main

sys.path.pop(0)
_PLAYING = threading.Lock()


class Game:
    def __init__(self, id, settings):
        import textarena

        given = dict(settings)
        self.players, self.system = int(given.pop("players", 1)), given.pop("system", None)
        self.make = lambda: textarena.make(env_id=id, **given)
        self.make()

    def tasks(self, most):
        return [{"task": number} for number in range(most)]

    def play(self, job: Job):
        seed = job.seed ^ int(job.task.get("task", 0))
        world = Drawn(seed)
        with world:
            env = self.make()
            env.reset(num_players=self.players, seed=seed)
        seats = [Seat(job if player == 0 else job.user, self.system) for player in range(self.players)]
        done = False
        while not done:
            with world:
                player, seen = env.get_observation()
            move = seats[player].answer(str(seen))
            with world:
                done, _ = env.step(action=move)
        with world:
            rewards, _ = env.close()
        return float((rewards or {}).get(0, 0.0)), {"turns": float(env.state.turn)}


class Drawn:
    """The state of Python's global generator, which games draw from: each rollout has its own."""

    def __init__(self, seed):
        self.state = random.Random(seed).getstate()

    def __enter__(self):
        _PLAYING.acquire()
        self.before = random.getstate()
        random.setstate(self.state)

    def __exit__(self, *_):
        self.state = random.getstate()
        random.setstate(self.before)
        _PLAYING.release()


class Seat:
    """One player's conversation: a game shows all that was said so far, of which the new part is the next message."""

    def __init__(self, place, system):
        self.place, self.seen = place, ""
        self.messages = [{"role": "system", "content": system}] if system else []

    def answer(self, seen):
        new = seen[len(self.seen) :] if self.seen and seen.startswith(self.seen) else seen
        self.seen = seen
        self.messages.append({"role": "user", "content": new.strip() or seen})
        message = chat(self.place, self.messages)
        self.messages.append(message)
        return message.get("content") or ""


def load(id, settings):
    return Game(id, settings)


if __name__ == "__main__":
    main(load, "textarena")
