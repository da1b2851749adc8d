"""Bridge to OpenEnv: the model acts on an environment server by its MCP tools, by one tool `step` with the schema of
its actions, or by what it says.

id: the server's address. settings: `command` that starts it for as long as this process lives, `system`, and `text`:
the field of an action that the model's final is, in place of tools. The reward is the sum over all steps. The row's
`reset` is given to `reset`, with the seed.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import time
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lines import Job, chat, main

sys.path.pop(0)
_TOLD = ("done", "reward", "metadata")


class Server:
    def __init__(self, address, settings):
        self.address, self.system, self.text = address.rstrip("/"), settings.get("system"), settings.get("text")
        if command := settings.get("command"):
            server = subprocess.Popen(command)
            atexit.register(server.kill)
            self.wait(server)
        with urllib.request.urlopen(f"{self.address}/schema", timeout=30) as reply:
            action = json.load(reply)["action"]
        action["properties"] = {k: v for k, v in action.get("properties", {}).items() if k != "metadata"}
        self.described = action.pop("description", "")
        self.action = action

    def wait(self, server):
        for _ in range(600):
            try:
                return urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
            except OSError:
                if server.poll() is not None:
                    raise RuntimeError(f"the server ended with exit code {server.returncode}") from None
                time.sleep(0.1)
        raise RuntimeError(f"no server answers at {self.address}")

    def tasks(self, most):
        return [{"task": number} for number in range(most)]

    def play(self, job: Job):
        from openenv.core.generic_client import GenericEnvClient

        with GenericEnvClient(base_url=self.address).sync() as env:
            return Episode(self, env, job).played()


class Episode:
    def __init__(self, server, env, job):
        self.server, self.env, self.job = server, env, job
        self.reward, self.steps = 0.0, 0

    def played(self):
        seed = self.job.seed ^ int(self.job.task.get("task") or 0)
        seen = self.env.reset(seed=seed, **self.job.task.get("reset", {}))
        self.reward += seen.reward or 0.0
        tools = [] if self.server.text else self.tools()
        messages = [{"role": "system", "content": self.server.system}] if self.server.system else []
        messages.append({"role": "user", "content": shown(seen.observation) or "Begin."})
        done = seen.done
        while not done:
            message = chat(self.job, messages, **({"tools": tools} if tools else {}))
            messages.append(message)
            calls = message.get("tool_calls") or []
            for call in calls:
                text, done = self.called(call["function"])
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})
            if not calls and not self.server.text:
                break
            if not calls:
                text, done = self.step({self.server.text: message["content"]})
                messages.append({"role": "user", "content": text})
        return self.reward, {"steps": float(self.steps)}

    def tools(self):
        """Those of an MCP environment, else its action as one."""
        self.mcp = False
        if not self.server.action["properties"].keys() - {"type", "tool_name", "arguments"}:
            self.mcp = True
            listed = self.env.step({"type": "list_tools"}).observation.get("tools", [])
            return [
                tool(t["name"], t.get("description"), t.get("input_schema") or t.get("inputSchema")) for t in listed
            ]
        return [tool("step", self.server.described, self.server.action)]

    def called(self, function):
        try:
            arguments = json.loads(function["arguments"] or "{}")
        except ValueError:
            return "error: the arguments are not a JSON object", False
        if self.mcp:
            return self.step({"type": "call_tool", "tool_name": function["name"], "arguments": arguments})
        if function["name"] != "step":
            return f"error: there is no tool `{function['name']}`", False
        return self.step(arguments)

    def step(self, action):
        try:
            result = self.env.step(action)
        except RuntimeError as error:  # the server refuses the action
            return f"error: {error}"[:2000], False
        self.reward += result.reward or 0.0
        self.steps += 1
        return shown(result.observation), bool(result.done)


def tool(name, description, schema):
    function = {"name": name, "description": description or "", "parameters": schema or {"type": "object"}}
    return {"type": "function", "function": function}


def shown(observation):
    """What the model reads of an observation: its one text, else JSON."""
    rest = {key: value for key, value in observation.items() if key not in _TOLD and value is not None}
    result = rest.get("result")
    if isinstance(result, dict) and "data" in result:
        rest = {"result": result["data"]}
    texts = [value for key, value in rest.items() if isinstance(value, str) and key != "tool_name"]
    alone = len(rest.keys() - {"tool_name"}) == 1
    return texts[0] if alone and texts else json.dumps(rest, ensure_ascii=False)


def load(id, settings):
    return Server(id, settings)


if __name__ == "__main__":
    main(load, "openenv")
