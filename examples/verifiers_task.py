"""Use any text taskset of `verifiers` as a task; the name of its package follows the file's:

    pip install verifiers MY_TASKSET
    sdpo tasks check examples/verifiers_task.py:my_taskset
    sdpo train --model qwen --task examples/verifiers_task.py:my_taskset

For verifiers 0.4 (MIT). Its rewards grade one answer without a runtime; tools, containers and rewards that need a
runtime are refused. The feedback names each reward that was not reached; a taskset has no other text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice
from typing import Any

import verifiers.v1 as vf

MAX_TASKS = 1_000  # a taskset may be infinite


class Verifiers:
    """One taskset; `variant` is its id."""

    def __init__(self, variant: str) -> None:
        config = vf.taskset_config_type(variant)(id=variant)
        taskset = vf.load_taskset(config)
        self.tasks = list(islice(taskset, MAX_TASKS))
        if any(t.NEEDS_CONTAINER or type(t).toolsets(t.config) for t in self.tasks) or taskset.toolsets(config):
            raise ValueError(f"the taskset {variant} needs tools or a container; this example gives neither")

    def problems(self) -> Iterator[dict[str, Any]]:
        """Yield one row per task; one in five is held out."""
        for number, task in enumerate(self.tasks):
            system = [{"role": "system", "content": task.data.system_prompt}] if task.data.system_prompt else []
            messages = [*system, {"role": "user", "content": task.data.prompt_text}]
            yield {"id": str(number), "messages": messages, "task": task}

    def grade(self, problem: dict[str, Any], text: str) -> dict[str, Any]:
        """Return the weighted mean of the task's rewards; success means that all are reached."""
        task = problem["task"]
        rewards = asyncio.run(self._scored(task, text)).rewards
        if not rewards or any(reward is None for reward in rewards.values()):
            raise ValueError("a reward of this task needs a runtime, which this example does not give")
        missed = {name: reward.score for name, reward in rewards.items() if reward.score < 1 and reward.weight > 0}
        total = sum(reward.weight for reward in rewards.values() if reward.weight > 0)
        return {
            "reward": sum(reward.score * reward.weight for reward in rewards.values()) / (total or 1.0),
            "success": not missed,
            "feedback": "\n".join(f"{name.replace('_', ' ')}: {score:.2f} of 1" for name, score in missed.items()),
        }

    async def _scored(self, task: Any, text: str) -> Any:
        # No agent ran, so its record is empty; rewards of text tasks do not read it
        trace = vf.Trace(
            task=vf.TraceTask(type=type(task).__name__, data=task.data), agent=vf.AgentInfo.model_construct()
        )
        prompt = vf.MessageNode(message=vf.UserMessage(content=task.data.prompt_text))
        answer = vf.MessageNode(message=vf.AssistantMessage(content=text), sampled=True, parent=0)
        trace.nodes = [prompt, answer]
        await task.score(trace)
        return trace
