"""Open an OpenAI-compatible endpoint of a checkpoint on this machine: for evaluation tools, not for production.

examples:
  counterpoint serve runs/quickstart-20260101-120000
  counterpoint serve tiny --port 8001 --effort high
  lm_eval --model local-chat-completions \\
      --model_args model=tiny,base_url=http://127.0.0.1:8000/v1/chat/completions,num_concurrent=8 \\
      --apply_chat_template --tasks gsm8k

Clients show the key that it prints (lm_eval reads OPENAI_API_KEY).
Prompts are written as the run's data.serving says; /v1/chat/completions, /v1/responses and /v1/models are answered,
and /v1/completions with token ids as the prompt (for grpo.teacher.server, and with --enable-lora for
rollout.engine: server, which then needs no vLLM).
A client that sends the header X-Session-ID (or asks under /r/NAME/v1) continues the ids that were sampled there.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from counterpoint.recipes.commands.argument_types import count

if TYPE_CHECKING:
    from counterpoint.data.harmony.render import Renderer
    from counterpoint.train.endpoint.ledger import Ledger
    from counterpoint.train.endpoint.requests import Asked
    from counterpoint.train.sampling.engines import Engine
    from counterpoint.train.sampling.sample import Sampled

KEY_VARIABLE = "COUNTERPOINT_SERVE_KEY"
SESSIONS = 1024
"""Sessions that are remembered; the one that was asked longest ago is forgotten first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="run folder, checkpoint, adapter, model folder or name"
    )
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port on 127.0.0.1; 0 takes a free one (8000)"
    )
    parser.add_argument(
        "--effort", choices=("low", "medium", "high"), default="medium", help="of requests that name none (medium)"
    )
    parser.add_argument(
        "--max-new-tokens", type=count, default=4096, metavar="N", help="longest answer, whatever a request says (4096)"
    )
    parser.add_argument("--batch", type=count, default=32, metavar="N", help="requests sampled together (32)")
    parser.add_argument(
        "--return-routed-experts", action="store_true", help="/v1/completions tells the experts of tokens, as vLLM does"
    )
    parser.add_argument(
        "--enable-lora", action="store_true", help="clients load adapters (/v1/load_lora_adapter), as of vLLM"
    )
    parser.add_argument("--base", metavar="MODEL", help="base model of an adapter that names none")
    parser.add_argument("--no-adapter", action="store_true", help="the model under the adapter")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run(args: argparse.Namespace) -> int:
    from counterpoint.recipes.commands.places import check_checkpoint

    check_checkpoint(args.checkpoint)

    import os
    import threading
    from dataclasses import replace
    from pathlib import PurePath

    from counterpoint.configs.errors import ConfigError, RunError
    from counterpoint.configs.model_section import ModelSettings
    from counterpoint.data.harmony.render import Renderer
    from counterpoint.train.checkpoints.find import find_checkpoint, open_checkpoint
    from counterpoint.train.endpoint.completions import Completions
    from counterpoint.train.endpoint.served_adapters import ServedAdapters
    from counterpoint.train.endpoint.server import ChatServer
    from counterpoint.train.model.load import device_of
    from counterpoint.train.sampling.sample import Sampler

    found = find_checkpoint(args.checkpoint, ModelSettings(name=args.base) if args.base else None)
    if args.no_adapter:
        found = replace(found, adapter=None)
    if args.enable_lora and found.adapter is not None:
        raise ConfigError(
            f"--enable-lora: {args.checkpoint} has an adapter already: add --no-adapter, or serve its base"
        )
    loaded = open_checkpoint(found, device_of(args.device))
    renderer = Renderer(loaded.vocabulary, found.run.data if found.run is not None else None)
    name, lock = PurePath(found.source).name or found.source, threading.Lock()
    adapters = ServedAdapters(loaded, name, lock) if args.enable_lora else None
    sampler = Sampler(loaded, batch_rows=args.batch, routes=args.return_routed_experts)
    raw = Completions(sampler, args.max_new_tokens, adapters, lock)
    sessions, key = Sessions(raw, renderer, args), os.environ.get(KEY_VARIABLE)
    try:
        server = ChatServer(sessions.of, name, key, port=args.port, completions=raw.answer, adapters=adapters)
    except OSError as error:
        raise RunError(f"--port {args.port}: {error.strerror or error}: take another one") from None
    with server:
        print(f"{server.root}/v1  model {name}  (for evaluation, not for production)", flush=True)
        if KEY_VARIABLE not in os.environ:
            print(f"OPENAI_API_KEY={server.key}  ({KEY_VARIABLE} sets it)", flush=True)
        server.wait()
    return 0


class Sessions:
    """The ledgers of sessions by name; a request without one has a ledger of its own."""

    def __init__(self, engine: Engine, renderer: Renderer, args: argparse.Namespace) -> None:
        import threading
        from collections import Counter, OrderedDict

        from counterpoint.train.episodes.episodes import EpisodeLimits
        from counterpoint.train.sampling.request_batches import Batches

        self.batches, self.renderer, self.args = Batches(engine, args.batch), renderer, args
        self.limits = EpisodeLimits(args.max_new_tokens, completion_tokens=1 << 20, calls=1 << 20)
        self.ledgers: OrderedDict[str, Ledger] = OrderedDict()
        self.asked: Counter[tuple[int, ...]] = Counter()
        self.lock = threading.Lock()

    def of(self, name: str | None) -> Ledger:
        from counterpoint.train.endpoint.ledger import Ledger

        with self.lock:
            found = self.ledgers.get(name or "")
            if found is None:
                found = Ledger(self.renderer, self.sample, self.args.effort, self.limits, owned=False, lock=self.lock)
                if name is not None:
                    self.ledgers[name] = found
                    if len(self.ledgers) > SESSIONS:
                        self.ledgers.popitem(last=False)
            if name is not None:
                self.ledgers.move_to_end(name)
            return found

    def sample(self, ids: list[int], tokens: int, asked: Asked, seed: int) -> Sampled:
        """As the client asks. With a seed, or without, the n-th request for one prompt always gets the same sample."""
        from counterpoint.train.sampling.request_batches import Request
        from counterpoint.train.sampling.sample import sample_seed

        own = asked.want("seed", None)
        with self.lock:
            number = self.asked[tuple(ids)] if own is None else 0
            self.asked[tuple(ids)] += 1
        wanted = max(1, min(tokens, asked.want("max_tokens", tokens)))
        request = Request(ids, wanted, float(asked.want("temperature", 1.0)), sample_seed(own or 0, seed, number))
        return self.batches.put(request).result()
