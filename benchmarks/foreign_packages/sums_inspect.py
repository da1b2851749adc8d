"""A task of inspect_ai with a tool."""

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool


@tool
def add():
    async def execute(a: int, b: int):
        """Adds two numbers.

        Args:
            a: The first.
            b: The second.
        """
        return str(a + b)

    return execute


@task
def sums():
    samples = [Sample(id=f"sum{n}", input=f"What is {n} + 2? Use add.", target=str(n + 2)) for n in range(5)]
    return Task(dataset=samples, solver=[use_tools(add()), generate()], scorer=includes())
