"""The scripted expert hands over a batch of scenarios in Isaac Lab.

Run as a program it says how it went, as JSON: test_isaac_hand_overs.py [COUNT [FIRST]].
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import pytest
from sim2or.contracts.robot import load_robot
from sim2or.contracts.scenario import scenario_list
from sim2or.contracts.task import load_task
from sim2or_sim.backends import make_world
from sim2or_sim.expert import Expert

ROBOT, TASK = load_robot("so101"), load_task("handover")


@pytest.mark.isaac
@pytest.mark.slow
def test_the_expert_hands_over() -> None:
    """At least 19 of 20 scenarios of the validation list succeed, as one batch."""
    outcome = hand_overs(20, 0)
    print(json.dumps(outcome))
    assert outcome["successes"] >= 19, outcome


def hand_overs(count: int, first: int) -> dict[str, Any]:
    """Outcomes of scenarios of the validation list, all at once."""
    scenarios = scenario_list(TASK, "validation", count, first)
    world = make_world(ROBOT, TASK, batch=count, backend="isaaclab", render=False)
    experts = [Expert(ROBOT, TASK) for _ in scenarios]
    world.reset(scenarios)
    for index, (expert, scenario) in enumerate(zip(experts, scenarios, strict=True)):
        expert.reset(world, index, scenario)
    began_s, cpu_s, steps = time.monotonic(), time.process_time(), 0
    while not all(world.truth(index).done for index in range(count)):
        world.step(np.stack([expert.act(world, index)[1] for index, expert in enumerate(experts)]))
        steps += 1
    truths = [world.truth(index) for index in range(count)]
    world.close()
    return {
        "scenarios": count,
        "successes": sum(truth.success for truth in truths),
        "failures": {s.seed: t.failure for s, t in zip(scenarios, truths, strict=True) if not t.success},
        "steps": steps,
        "wall_s": round(time.monotonic() - began_s, 1),
        "cpu_s": round(time.process_time() - cpu_s, 1),
    }


if __name__ == "__main__":
    given = [int(value) for value in sys.argv[1:]]
    print(json.dumps(hand_overs(*(given + [20, 0][len(given) :]))))
