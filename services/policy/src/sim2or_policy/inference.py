"""Inference: waiting requests become batches, batches become chunks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import batched

import numpy as np
from numpy.typing import NDArray
from sim2or.counts import LATENCY_BOUNDS_S, LIVE, Distribution
from sim2or.errors import MessageError, Sim2OrError, TransientError
from sim2or.log import get_logger
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyError, PolicyRequest

from sim2or_policy.admission import admit
from sim2or_policy.backends.backend import PolicyBackend
from sim2or_policy.shelf import Shelf

Answer = ActionChunk | PolicyError


@dataclass
class InferenceCounts:
    """What the models did.

    Attributes:
        events: Chunks answered, batches run, and refusals by code.
        duration_s: How long a batch was in the model.
    """

    events: Counter[str] = field(default_factory=Counter, metadata={"label": "kind"})
    duration_s: Distribution = field(default_factory=lambda: Distribution(LATENCY_BOUNDS_S))


class Inference:
    """Answers requests; those for one model that wait together are run together.

    Attributes:
        counts: How many of each since the start: chunks, batches, and refusals by code.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self.counts: Counter[str] = Counter()
        self._figures = InferenceCounts(self.counts)
        LIVE.watch(self, self._figures)

    def answer(self, requests: Sequence[PolicyRequest]) -> list[Answer]:
        """Answers every request, in order.

        Args:
            requests: All that wait and have not expired.
        """
        answers: dict[int, Answer] = {}
        by_artifact: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            by_artifact.setdefault(request.artifact, []).append(index)
        for artifact, indices in by_artifact.items():
            found = self._answer_model(artifact, [requests[index].observation for index in indices])
            answers.update(zip(indices, found, strict=True))
        self.counts.update(_name(answer) for answer in answers.values())
        return [answers[index] for index in range(len(requests))]

    def _answer_model(self, artifact: str, observations: list[Observation]) -> list[Answer]:
        try:
            backend = self._shelf.get(artifact)
        except TransientError as error:
            get_logger().warning("model not there yet", artifact=artifact, reason=str(error))
            return [PolicyError(code="busy", detail=str(error)[:4000]) for _ in observations]
        except Sim2OrError as error:
            return [PolicyError(code="refused", detail=str(error)[:4000]) for _ in observations]
        answers = [_refusal(observation, backend) for observation in observations]
        accepted = [index for index, answer in enumerate(answers) if answer is None]
        for indices in batched(accepted, backend.max_batch):
            for index, answer in zip(
                indices, self._infer(artifact, backend, [observations[i] for i in indices]), strict=True
            ):
                answers[index] = answer
        return [answer for answer in answers if answer is not None]

    def _infer(self, artifact: str, backend: PolicyBackend, observations: list[Observation]) -> list[Answer]:
        self.counts["batches"] += 1
        start = time.perf_counter()
        try:
            actions_rad = backend.infer(
                np.stack([observation.state_rad for observation in observations]),
                {
                    camera: np.stack([observation.images[camera] for observation in observations])
                    for camera in backend.card.cameras
                },
                {
                    name: np.stack([observation.channels[name].values for observation in observations])
                    for name in backend.card.channels
                },
            )
            inference_s = time.perf_counter() - start
            self._figures.duration_s.add(inference_s)
            return [
                _chunk(artifact, backend, observation, rows, inference_s)
                for observation, rows in zip(observations, actions_rad, strict=True)
            ]
        except Exception as error:  # noqa: BLE001 the handler's border: only this batch is lost
            get_logger().exception("inference failed", artifact=artifact, batch=len(observations))
            detail = f"inference failed: {type(error).__name__}: {error}"[:4000]
            return [PolicyError(code="failed", detail=detail) for _ in observations]


def _refusal(observation: Observation, backend: PolicyBackend) -> Answer | None:
    try:
        admit(observation, backend.card)
    except MessageError as error:
        return PolicyError(code="refused", detail=str(error)[:4000])
    return None


def _chunk(
    artifact: str,
    backend: PolicyBackend,
    observation: Observation,
    actions_rad: NDArray[np.float32],
    inference_s: float,
) -> ActionChunk:
    return ActionChunk(
        episode=observation.episode,
        tick=observation.tick,
        actions_rad=actions_rad,
        period_s=backend.card.period_s,
        captured_ns=observation.captured_ns,
        inference_s=inference_s,
        artifact=artifact,
    )


def _name(answer: Answer) -> str:
    return "chunks" if isinstance(answer, ActionChunk) else answer.code
