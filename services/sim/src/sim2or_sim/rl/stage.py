"""The reinforce stage: trial and error in many rooms to a policy that can be served. Resumable."""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import Any

import torch
from sim2or.artifacts.record import Record, write_whole
from sim2or.artifacts.store import fresh_directory
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.errors import ConfigError, choices
from sim2or.messages.reinforce import ReinforceSpec
from sim2or.stage import Cancelled, Context, Stage, StageResult

from sim2or_sim.rl import checkpoint
from sim2or_sim.rl.contract import Contract
from sim2or_sim.rl.curve import draw_curve
from sim2or_sim.rl.environment import make_environment
from sim2or_sim.rl.export import export_policy
from sim2or_sim.rl.ppo import Learner
from sim2or_sim.rl.starts import listed_starts
from sim2or_sim.rl.task import learning_task
from sim2or_sim.rl.trials import Trials

JOURNAL_FILE, CURVE_FILE, TRIALS_FILE, SPEC_FILE = (
    "learning.jsonl",
    "learning.png",
    "trials.json",
    "spec.json",
)
RESUME_DIRECTORY, CHECKPOINT_DIRECTORY, MODEL_DIRECTORY = "resume", "checkpoint", "model"


def run(spec: ReinforceSpec, context: Context) -> StageResult:
    """Learns, judges what was learnt on a list of episodes, and exports it.

    Args:
        spec: What and how.
        context: The input ``checkpoint``, if there is one, is where learning begins.

    Returns:
        ``checkpoint``: networks, optimiser, contract, learning curve and trials; ``model``: what a policy
        server takes.

    Raises:
        ConfigError: Unknown robot, task or instrument, or an engine that is not there.
        JobError: What was learnt is not finite, or its export differs from it.
    """
    torch.set_num_threads(1)  # the networks are small; the rooms take the processors
    session = Session(spec, context)
    try:
        session.learn()
        return session.finish()
    finally:
        session.close()


STAGE: Stage[Any] = Stage("reinforce", ReinforceSpec, run)


class Session:
    """One attempt at a job."""

    def __init__(self, spec: ReinforceSpec, context: Context) -> None:
        """Opens the rooms and sets up, from the newest checkpoint where there is one."""
        self.spec, self.context = spec, context
        self.robot, self.task = load_robot(spec.robot), load_task(spec.task)
        if spec.instrument not in self.task.instruments:
            raise ConfigError(
                f"instrument: {spec.instrument!r}; {choices(spec.instrument, self.task.instruments)}"
            )
        self.learning = learning_task(spec.goal, self.robot, self.task, spec.instrument)
        threads = spec.threads or int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
        self.env = make_environment(spec, self.learning, self.robot, self.task, threads=threads)
        self.learner = Learner(self.env, spec.ppo, seed=spec.seed, device=str(self.env.device))
        self.train_s, self.cpu_s = 0.0, 0.0
        self.resumed_from = self._resume()
        self.journal = self._open_journal()

    def learn(self) -> None:
        """Does the remaining iterations; told to stop, it keeps a checkpoint first."""
        spec = self.spec
        self.context.progress(self.learner.iteration, spec.iterations, "iterations")
        while self.learner.iteration < spec.iterations:
            self._iterate()
            last = self.learner.iteration == spec.iterations
            if last or self.learner.iteration % spec.checkpoint_every == 0:
                self._save()
            try:
                self.context.progress(
                    self.learner.iteration, spec.iterations, "iterations", **_shown(self.journal.lines[-1])
                )
            except Cancelled:
                self._save()
                raise

    def finish(self) -> StageResult:
        """Judges and exports."""
        spec, work = self.spec, self.context.work
        out = fresh_directory(work / CHECKPOINT_DIRECTORY)
        summary = self._summary()
        trials = self._judge()
        if trials is not None:
            report = trials.report(spec.evaluate_list)
            (out / TRIALS_FILE).write_text(json.dumps(report, indent=1) + "\n")
            summary |= {key: value for key, value in report.items() if key != "by_seed"}
        checkpoint.write_tensors(out, self.learner.tensors())
        self.learner.export(out)
        self.learning.contract(self.robot, self.task.control_hz).write(out)
        (out / SPEC_FILE).write_text(spec.model_dump_json(indent=1) + "\n")
        write_whole(out / JOURNAL_FILE, self.journal.path.read_bytes())
        if self.journal.lines:
            title = f"{spec.goal} on {spec.engine}, PPO, seed {spec.seed}"
            draw_curve(self.journal.lines, out / CURVE_FILE, title)
        parity = export_policy(
            self.learning,
            self.robot,
            self.task,
            network=self.learner.actor.as_jit(),
            instrument=spec.instrument,
            directory=work / MODEL_DIRECTORY,
            figures={key: value for key, value in summary.items() if key in _ON_THE_CARD},
        )
        return StageResult(
            outputs={"checkpoint": out, "model": work / MODEL_DIRECTORY}, summary=summary | parity
        )

    def close(self) -> None:
        """Frees the engine."""
        self.env.close()

    def _iterate(self) -> None:
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        figures = self.learner.learn()
        self.train_s += time.perf_counter() - begun_s
        self.cpu_s += time.process_time() - begun_cpu_s
        done = self.learner.iteration
        self.journal.add(
            {
                "iteration": done,
                "steps": done * self.spec.ppo.num_steps_per_env * self.spec.num_envs,
                "train_s": round(self.train_s, 3),
                "cpu_s": round(self.cpu_s, 3),
                **figures,
                **self.env.tally.take(),
            }
        )

    def _judge(self) -> Trials | None:
        spec = self.spec
        if not spec.evaluate_episodes:
            return None
        starts = listed_starts(spec.goal, self.robot, self.task, spec.evaluate_list, spec.evaluate_episodes)
        with torch.inference_mode():
            found: Trials = self.env.trials(starts, self.learner.act)
        return found

    def _summary(self) -> dict[str, Any]:
        spec = self.spec
        return {
            "goal": spec.goal,
            "engine": spec.engine,
            "num_envs": spec.num_envs,
            "iterations": self.learner.iteration,
            "steps": self.learner.iteration * spec.ppo.num_steps_per_env * spec.num_envs,
            "seed": spec.seed,
            "resumed_from": self.resumed_from,
            "train_s": round(self.train_s, 2),
            "cpu_s": round(self.cpu_s, 2),
        }

    def _save(self) -> None:
        arrays, chance = self.env.snapshot()
        groups = self.learner.tensors() | ({"rooms": arrays} if arrays else {})
        progress = checkpoint.Progress(
            self._question(), self.learner.iteration, self.train_s, self.cpu_s, chance
        )
        checkpoint.save(self.context.work / RESUME_DIRECTORY, progress, groups)

    def _resume(self) -> int:
        found = checkpoint.newest(self.context.work / RESUME_DIRECTORY, self._question())
        if found is None:
            self._begin_from_input()
            return 0
        progress, groups = found
        self.learner.restore(groups, progress.iteration)
        if "rooms" in groups:
            self.env.restore(groups["rooms"], progress.chance)
        self.train_s, self.cpu_s = progress.train_s, progress.cpu_s
        return progress.iteration

    def _begin_from_input(self) -> None:
        """Takes over what an earlier run learnt, perhaps on another engine."""
        for directory in self.context.inputs.get("checkpoint", ()):
            theirs = ReinforceSpec.model_validate_json((directory / SPEC_FILE).read_bytes())
            contract = self.learning.contract(self.robot, self.task.control_hz)
            for key, value, own in (
                ("contract", Contract.read(directory), contract),
                ("ppo.hidden_dims", theirs.ppo.hidden_dims, self.spec.ppo.hidden_dims),
                ("ppo.activation", theirs.ppo.activation, self.spec.ppo.activation),
            ):
                if value != own:
                    raise ConfigError(f"input checkpoint: its {key} is {value!r}; this job needs {own!r}")
            groups = checkpoint.read_tensors(directory)
            self.learner.restore({key: groups[key] for key in _LEARNT}, iteration=0)

    def _open_journal(self) -> Record:
        """The journal without lines after the checkpoint: they are written again."""
        path = self.context.work / JOURNAL_FILE
        kept = [line for line in Record(path).lines if line["iteration"] <= self.learner.iteration]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        return Record(path)

    def _question(self) -> str:
        """A digest of what decides what is learnt."""
        aside = {"threads", "checkpoint_every", "iterations", "evaluate_list", "evaluate_episodes"}
        asked = [
            self.spec.model_dump(mode="json", exclude=aside),
            list(self.context.digests.get("checkpoint", ())),
            self.learning.contract(self.robot, self.task.control_hz).model_dump(mode="json"),
            dict(self.learning.weights),
        ]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


_LEARNT = ("actor", "critic", "optimiser")
_ON_THE_CARD = ("goal", "engine", "iterations", "steps", "list", "episodes", "successes", "wilson_95")


def _shown(line: dict[str, Any]) -> dict[str, float]:
    return {key: line[key] for key in ("reward", "success", "error_m", "steps_per_s") if key in line}
