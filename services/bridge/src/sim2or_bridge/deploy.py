"""The deploy stage: a verified model moves a robot in real time; the robot's own log says how it behaved.

Cancelling the job (``sim2or stop``) or SIGTERM trips the emergency stop, and the robot's last command is a
hold. A new attempt is a person's decision and starts with a new latch; the record keeps every stop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from sim2or.artifacts.record import Record, write_whole
from sim2or.artifacts.store import write_json
from sim2or.bus.keys import Keyring, load_keyring
from sim2or.clock import utc_now
from sim2or.contracts.robot import RobotProfile, load_robot
from sim2or.contracts.scenario import Scenario, scenario_list
from sim2or.contracts.task import TaskProfile, load_task
from sim2or.errors import HardwareError, JobError
from sim2or.messages.deploy import DeploySpec
from sim2or.messages.verdict import read_verdict
from sim2or.model_card import ModelCard
from sim2or.rollout.control import control_step
from sim2or.rollout.loop import observe
from sim2or.rollout.policy import PolicyLink
from sim2or.safety.stop import StopLatch, TorqueStage
from sim2or.settings import load_settings
from sim2or.stage import Cancelled, Context, StageResult
from sim2or.worlds.remote_robot import RemoteRobot

from sim2or_bridge.figures import describe, totals
from sim2or_bridge.gate import check_fit, refusal, score_of
from sim2or_bridge.hand_over import HandOver

FILE = "deployment.json"
TRIALS = "trials.jsonl"
ATTEMPTS = "attempts.jsonl"
COMMANDS = "commands"
STATUS_TIMEOUT_S = 5.0
RESET_TIMEOUT_S = 20.0
EXTRA_TICKS = 60
MAX_INTERRUPTIONS = 1
"""A robot that fell silent is looked for again so many times; its supervisor restarts it meanwhile."""

LATE_BEAT_PERIODS = 0.5
"""Kept back from the age limit: the robot may execute a command half a period later than planned."""


def run(spec: DeploySpec, context: Context) -> StageResult:
    """Runs the trials; those that an earlier attempt finished are kept.

    A model below the gate moves nothing: the deployment then records the refusal, with no trials.

    Args:
        spec: Robot, scenarios and gate.
        context: Inputs ``model`` (what moves the robot) and ``verdict`` (why it may).

    Returns:
        Output ``deployment``: ``deployment.json`` with the figures, ``trials.jsonl`` with one line a trial,
        ``attempts.jsonl`` with stops and interruptions, ``commands/`` with the robot's log of every trial.

    Raises:
        JobError: The verdict is not about this model, or model and robot do not fit.
        HardwareError: The robot does not answer, or fell silent twice.
    """
    artifact, evidence = _digest(context, "model"), _digest(context, "verdict")
    verdict = read_verdict(context.inputs["verdict"][0])
    score = score_of(verdict, artifact)
    deployment = Deployment(
        spec=spec,
        card=ModelCard.read(context.inputs["model"][0]),
        robot=load_robot(spec.robot),
        task=load_task(spec.task),
        artifact=artifact,
        evidence=evidence,
        context=context,
    )
    terms = {
        "artifact": artifact,
        "verdict": evidence,
        "verdict_lower95": score.interval[0],
        "robot": spec.robot,
        "task": spec.task,
        "list": spec.list,
        "torque_stage": spec.torque_stage,
        "refused": refusal(verdict, score, spec),
    }
    if not terms["refused"]:
        deployment.finish()
    summary = deployment.figures() | terms
    write_json(deployment.out / FILE, summary | {"per_trial": deployment.trials.lines})
    return StageResult({"deployment": deployment.out}, summary)


@dataclass
class Deployment:
    """The trials of one model on one robot, and their record.

    Attributes:
        artifact: Digest of the model.
        evidence: Digest of the verdict.
        out: Directory of the record.
        trials: One line a finished trial.
        attempts: What happened to the job: promotions, interruptions, stops.
    """

    spec: DeploySpec
    card: ModelCard
    robot: RobotProfile
    task: TaskProfile
    artifact: str
    evidence: str
    context: Context

    def __post_init__(self) -> None:
        self.out = self.context.work / "deployment"
        (self.out / COMMANDS).mkdir(parents=True, exist_ok=True)
        self.trials, self.attempts = Record(self.out / TRIALS), Record(self.out / ATTEMPTS)
        chosen = scenario_list(self.task, self.spec.list, self.spec.trials, self.spec.offset)
        self._scenarios = chosen[self.context.shard :: self.context.shards]
        self._latch = StopLatch()

    def finish(self) -> None:
        """Runs the trials that are not finished; a robot that falls silent is looked for once more."""
        if not self._open():
            return
        settings = load_settings()
        if not settings.robot_endpoint or not settings.policy_endpoint:
            raise JobError("deploy: set SIM2OR_ROBOT_ENDPOINT and SIM2OR_POLICY_ENDPOINT")
        keys = load_keyring(settings.keys, "bridge")
        self._latch.promote(TorqueStage.named(self.spec.torque_stage), self.evidence)
        self._note(latch=self._latch.journal)
        for attempt in range(1 + MAX_INTERRUPTIONS):
            try:
                self._connected(settings.robot_endpoint, settings.policy_endpoint, keys)
                return
            except HardwareError as error:
                self._note(interrupted=str(error), finished=len(self.trials.lines))
                if attempt == MAX_INTERRUPTIONS:
                    raise

    def figures(self) -> dict[str, Any]:
        """The figures of all trials and what happened in all attempts."""
        notes = self.attempts.lines
        return totals(self.trials.lines, period_s=self.task.period_s) | {
            "latch": [entry for note in notes for entry in note.get("latch", ())],
            "interruptions": [note["interrupted"] for note in notes if "interrupted" in note],
            "ended_at": notes[-1]["at"] if notes else "",
        }

    def _connected(self, robot_endpoint: str, policy_endpoint: str, keys: Keyring | None) -> None:
        """Runs what is open over one connection to robot and policy."""
        spec, task = self.spec, self.task
        step = control_step(
            self.robot,
            task,
            self._latch,
            horizon=self.card.horizon,
            max_age_s=spec.max_age_s,
            reserve_periods=LATE_BEAT_PERIODS,
        )
        arm = RemoteRobot(robot_endpoint, keys=keys)
        with ExitStack() as connections:
            connections.callback(arm.close)
            arm.connect(timeout_s=spec.start_timeout_s)
            check_fit(self.card, self.robot, arm.spec)
            link = PolicyLink(policy_endpoint, self.artifact, deadline_ms=spec.policy_deadline_ms, keys=keys)
            connections.callback(link.close)
            hand_over = HandOver(
                arm,
                link,
                step,
                artifact=self.artifact,
                max_ticks=task.limit_steps + EXTRA_TICKS,
                may_go_on=self._report,
            )
            try:
                self._warm_up(arm, link)
                for scenario in self._open():
                    self._trial(scenario, arm, link, hand_over)
            except (Cancelled, KeyboardInterrupt) as error:
                hand_over.stop(f"the job was told to stop ({type(error).__name__})")
                self._note(latch=self._latch.journal[1:])
                raise
        self._note(finished=len(self.trials.lines))

    def _trial(self, scenario: Scenario, arm: RemoteRobot, link: PolicyLink, hand_over: HandOver) -> None:
        """Runs one hand-over and records it, the robot's own log first."""
        before = Counter(link.counts)
        episode, timing = hand_over.run(scenario, reset_timeout_s=RESET_TIMEOUT_S)
        if link.refusal:
            raise JobError(f"deploy: the policy server refuses: {link.refusal}")
        status = arm.status(timeout_s=STATUS_TIMEOUT_S)
        log = arm.log(timeout_s=STATUS_TIMEOUT_S)
        write_whole(self.out / COMMANDS / f"{scenario.seed}.jsonl", log)
        line = describe(
            scenario,
            episode,
            timing,
            status,
            waits_s=link.waits_s,
            policy_link=link.counts - before,
            period_s=self.task.period_s,
        )
        self.trials.add(line)
        hand_over.counts.stale_executed += line["stale_executed"]
        hand_over.counts.violations += line["violations"]
        self._report()

    def _warm_up(self, arm: RemoteRobot, link: PolicyLink) -> None:
        """Lets the policy server load the model, before anything moves."""
        scenario = self._scenarios[0]
        arm.reset(scenario, timeout_s=RESET_TIMEOUT_S)
        sensed = arm.sense(timeout_s=STATUS_TIMEOUT_S)
        question = observe(sensed, arm.spec, scenario.request, arm.session, 0)
        link.warm_up(question, timeout_s=self.spec.start_timeout_s)

    def _open(self) -> Sequence[Scenario]:
        done = {trial["seed"] for trial in self.trials.lines}
        return [scenario for scenario in self._scenarios if scenario.seed not in done]

    def _report(self) -> None:
        """Reports the progress; raises ``Cancelled`` when the job must stop."""
        lines = self.trials.lines
        successes = sum(trial["success"] for trial in lines)
        misses = sum(trial["deadline_misses"] for trial in lines)
        total = len(self._scenarios)
        self.context.progress(len(lines), total, "hand-overs", successes=successes, deadline_misses=misses)

    def _note(self, **facts: Any) -> None:
        self.attempts.add({"at": utc_now()} | facts)


def _digest(context: Context, role: str) -> str:
    digests = context.digests.get(role, ())
    if not digests:
        raise JobError(f"deploy: input {role!r} is missing; it needs model and verdict")
    return digests[0]
