"""MiniGrid behind a bridge of one's own: the grid as text, one tool that moves."""

import json
import os
import sys

import gymnasium
import minigrid

sys.path.insert(0, os.environ["COUNTERPOINT_BRIDGES"])
from lines import chat, main

MOVES = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
SCHEMA = {"type": "object", "properties": {"move": {"type": "string", "enum": list(MOVES)}}, "required": ["move"]}
TOOL = {"type": "function", "function": {"name": "act", "description": "Moves the agent.", "parameters": SCHEMA}}


class Grid:
    def __init__(self, settings):
        minigrid.register_minigrid_envs()
        self.name = settings.get("env", "MiniGrid-Empty-5x5-v0")

    def tasks(self, most):
        return [{"task": number} for number in range(most)]

    def play(self, job):
        env = gymnasium.make(self.name, max_steps=12)
        seen, _ = env.reset(seed=job.seed + job.task["task"])
        text = f"{seen['mission']}\n{env.unwrapped.pprint_grid()}"
        messages, total, done, steps = [{"role": "user", "content": text}], 0.0, False, 0
        while not done:
            message = chat(job, messages, tools=[TOOL])
            messages.append(message)
            if not message.get("tool_calls"):
                break
            call = message["tool_calls"][0]
            try:
                move = json.loads(call["function"]["arguments"])["move"]
                _, reward, ended, cut, _ = env.step(MOVES.index(move))
                text, total, done = env.unwrapped.pprint_grid(), total + float(reward), ended or cut
            except (ValueError, KeyError, TypeError) as error:
                text = f"error: {error!r}"
            steps += 1
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})
        return total, {"steps": steps}


main(lambda id, settings: Grid(settings), "minigrid")
