"""A scenario of Korrel as an environment of verifiers 0.1: its own exporter makes it."""

from korrel import Persona, Rubric, Scenario
from korrel.exporters.verifiers import to_verifiers_env


def mentions_refund(completion, info, **more):
    return float(any(m.role == "assistant" and m.content and info["amount"] in m.content for m in completion))


def load_environment(**more):
    scenario = Scenario(
        id="refund",
        system="You work for a shop.",
        persona=Persona(goal="a refund"),
        opening_message="I want my 30 back for order A1.",
        info={"amount": "30"},
        rubric=Rubric([mentions_refund]),
    )
    return to_verifiers_env(scenario, persona=None)
