"""A taskset of verifiers 0.2 and later: sums, alone or with a tool server."""

import verifiers.v1 as vf


class SumData(vf.TaskData):
    answer: str = ""


class SumTask(vf.Task[SumData]):
    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        return float(self.data.answer in (trace.last_reply or ""))


class SumTaskset(vf.Taskset[SumTask, vf.TasksetConfig]):
    def load(self):
        for n in range(5):
            yield SumTask(SumData(prompt=f"What is {n} + 2?", answer=str(n + 2)))


__all__ = ["SumTaskset"]
