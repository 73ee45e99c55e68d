"""A policy behind a socket: as an actor that waits (simulation), and as a link that never does (robot)."""

from __future__ import annotations

import time
from collections import Counter
from uuid import UUID

from sim2or.bus.keys import Keyring
from sim2or.bus.rpc import PolicyClient
from sim2or.clock import now_ns
from sim2or.contracts.scenario import Scenario
from sim2or.errors import JobError, TransientError
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.envelope import Origin
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.rollout.actor import Chunk

ASK_AGAIN_S = 0.01
"""Pause before a server that was busy is asked again."""


def _chunk(answer: ActionChunk) -> Chunk:
    return Chunk(answer.actions_rad, answer.captured_ns, answer.episode, answer.inference_s)


class PolicyActor:
    """Asks a policy server and waits for its answer; simulated time stands still meanwhile.

    Args:
        endpoint: The server's address.
        artifact: Digest of the model that must answer.
        horizon: Actions per chunk.
        deadline_ms: Longest wait for one answer, loading the model included [ms].
        keys: Of the service that asks; needed beyond loopback.
    """

    sees = True

    def __init__(
        self, endpoint: str, artifact: str, *, horizon: int, deadline_ms: float, keys: Keyring | None = None
    ) -> None:
        self.horizon = horizon
        self._artifact, self._deadline_ms = artifact, deadline_ms
        self._question: UUID | None = None
        self._client = PolicyClient(endpoint, Origin("rollout"), keys=keys)

    def reset(self, scenario: Scenario) -> None:
        """Has nothing to forget: the server knows episodes by the observation's name."""

    def ask(self, observation: Observation) -> None:
        """Sends the question; where there is no way to the server yet, ``answer`` waits for one."""
        self._observation = observation
        self._end_ns = now_ns() + int(self._deadline_ms * 1e6)
        self._question = self._client.ask(self._request(self._deadline_ms))

    def answer(self) -> Chunk:
        """Waits for the answer; "busy" and "expired" are asked again until the deadline.

        Raises:
            TransientError: No answer before the deadline: the server is gone or overloaded.
            JobError: The server refuses the observation or the model, or another model answered.
        """
        while (left_ms := (self._end_ns - now_ns()) / 1e6) > 0:
            answer = self._wait(left_ms)
            if isinstance(answer, ActionChunk):
                return _chunk(_from_model(answer, self._artifact))
            if answer.code in ("refused", "failed"):
                raise JobError(f"policy server: {answer.code}: {answer.detail}")
            time.sleep(ASK_AGAIN_S)
        raise TransientError(f"policy server answered nothing but 'busy' for {self._deadline_ms:g} ms")

    def _wait(self, left_ms: float) -> ActionChunk | PolicyError:
        """The answer to the question that is under way; asks it where none is."""
        question, self._question = self._question, None
        if question is None:
            return self._client.call(self._request(left_ms), deadline_s=left_ms / 1000)
        return self._client.wait(question, deadline_s=left_ms / 1000)

    def _request(self, deadline_ms: float) -> PolicyRequest:
        return PolicyRequest(artifact=self._artifact, observation=self._observation, deadline_ms=deadline_ms)

    def close(self) -> None:
        """Closes the socket."""
        self._client.close()


class PolicyLink:
    """Asks a policy server without ever waiting; late answers are dropped, trouble is counted.

    Args:
        endpoint: The server's address.
        artifact: Digest of the model that must answer.
        deadline_ms: An answer that takes longer is useless [ms].
        keys: Of the service that asks; needed beyond loopback.
    """

    def __init__(
        self, endpoint: str, artifact: str, *, deadline_ms: float, keys: Keyring | None = None
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.waits_s: list[float] = []
        self.refusal = ""
        self.waiting = False
        self._artifact, self._deadline_ms = artifact, deadline_ms
        self._client = PolicyClient(endpoint, Origin("bridge"), keys=keys)

    def forget(self) -> None:
        """Starts an episode: answers to earlier questions are waited for no longer."""
        self.waits_s, self.waiting, self.refusal = [], False, ""

    def warm_up(self, observation: Observation, *, timeout_s: float) -> Chunk:
        """Asks once and waits, so that the model is loaded and fits before anything moves.

        Raises:
            TransientError: No answer in time, or the server cannot answer yet.
            JobError: The server refuses the observation or the model.
        """
        request = PolicyRequest(
            artifact=self._artifact, observation=observation, deadline_ms=timeout_s * 1000
        )
        answer = self._client.call(request, deadline_s=timeout_s)
        if isinstance(answer, PolicyError):
            final = answer.code in ("refused", "failed")
            raise (JobError if final else TransientError)(f"policy server: {answer.code}: {answer.detail}")
        return _chunk(_from_model(answer, self._artifact))

    def ask(self, observation: Observation) -> None:
        """Sends a question; a server that is away is counted, not waited for."""
        request = PolicyRequest(
            artifact=self._artifact, observation=observation, deadline_ms=self._deadline_ms
        )
        self.waiting = self._client.ask(request) is not None
        self.counts["asked" if self.waiting else "unsent"] += 1

    def answers(self, until_ns: int) -> list[Chunk]:
        """The chunks that have arrived; waits for the first until ``until_ns`` on this host's clock."""
        chunks: list[Chunk] = []
        while reply := self._client.poll(0.0 if chunks else max(0.0, (until_ns - now_ns()) / 1e9)):
            self.waiting = False
            if isinstance(reply.message, ActionChunk) and reply.message.artifact == self._artifact:
                chunks.append(_chunk(reply.message))
                self.waits_s.append(reply.waited_s)
                self.counts["answered"] += 1
            elif isinstance(reply.message, PolicyError):
                self.counts[reply.message.code] += 1
                self.refusal = reply.message.detail if reply.message.code == "refused" else self.refusal
            else:
                self.counts["other_model"] += 1
        return chunks

    def close(self) -> None:
        """Closes the socket."""
        self._client.close()


def _from_model(answer: ActionChunk, artifact: str) -> ActionChunk:
    if answer.artifact != artifact:
        raise JobError(f"policy server answered with model {answer.artifact}, asked for {artifact}")
    return answer
