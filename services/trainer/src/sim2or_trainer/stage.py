"""The train stage: a dataset to a checkpoint. Pure: spec and context in, files out; resumable."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from sim2or.contracts.robot import RobotProfile, load_robot
from sim2or.contracts.task import TaskProfile, load_task
from sim2or.dataset_card import DatasetCard, check_dataset
from sim2or.errors import ConfigError, JobError, TransientError
from sim2or.messages.train import TrainSpec
from sim2or.settings import load_settings
from sim2or.stage import Cancelled, Context, Stage, StageResult
from torch import Tensor

from sim2or_trainer import resume
from sim2or_trainer.backends.lerobot import Recipe, make_recipe, read_metadata, read_table, read_videos
from sim2or_trainer.card import make_card
from sim2or_trainer.frames import Batches, Frames, Order, training_rows
from sim2or_trainer.group import Group, find_group
from sim2or_trainer.journal import Journal
from sim2or_trainer.memory import keep_freed_memory
from sim2or_trainer.threads import Threads
from sim2or_trainer.training import Training, find_device, learning_rate, parameter_count

JOURNAL_FILE = "train_log.jsonl"
CHECKPOINT_DIRECTORY = "checkpoint"
RESUME_DIRECTORY = "resume"
EVAL_BATCH = 128


def run(spec: TrainSpec, context: Context) -> StageResult:
    """Trains a policy on a dataset, in as many processes as torchrun started.

    Args:
        spec: What and how.
        context: ``inputs["dataset"]`` is one LeRobot dataset with our card.

    Returns:
        On rank 0 the checkpoint; nothing on the others.

    Raises:
        ConfigError: The dataset, the policy, the robot and the task do not fit one another, or the processes
            do not.
        JobError: The loss is not finite, or the dataset is damaged.
        TransientError: Another process was lost or told to stop.
    """
    group = find_group(os.environ)
    root = _dataset(context)
    robot, task = load_robot(spec.robot), load_task(spec.task)
    card = check_dataset(root, robot, task)
    device = find_device(spec.device)
    group.join(device, timeout_s=load_settings().group_s)
    keep_freed_memory()
    torch.manual_seed(spec.seed)
    metadata = read_metadata(root)
    recipe = make_recipe(spec, metadata, task, card)

    def decoded(done: int, total: int) -> None:
        context.progress(0, spec.steps, "steps", decoded_share=done / total)

    begun_s = time.monotonic()
    frames = _load(root, metadata, card, recipe, threads=group.cores, decoded=decoded)
    decode_s = time.monotonic() - begun_s
    session = Session(spec, context, recipe, frames, card, group=group, device=device)
    session.train()
    group.leave()
    return _finish(session, robot, task, card, decode_s=decode_s) if group.leads else StageResult({})


STAGES: Mapping[str, Stage[Any]] = {"train": Stage("train", TrainSpec, run)}


class Session:
    """One attempt at a training job."""

    def __init__(
        self,
        spec: TrainSpec,
        context: Context,
        recipe: Recipe,
        frames: Frames,
        card: DatasetCard,
        *,
        group: Group,
        device: torch.device,
    ) -> None:
        """Sets up, from rank 0's newest checkpoint where there is one."""
        self.spec, self.context, self.recipe, self.frames = spec, context, recipe, frames
        self.group = group
        ranges = [(int(f), int(e)) for f, e in _episode_rows(card)]
        train = training_rows(frames, [ranges[n] for n in card.split_episodes("train")])
        held_out = training_rows(frames, [ranges[n] for n in card.split_episodes("validation")])
        if not len(train):
            raise JobError("the dataset's train split is empty; collect more demonstrations")
        self.train_rows, self.held_out_rows = train, _thin(held_out, spec.eval_frames)
        self.order = Order(train, batch_size=spec.batch_size, seed=spec.seed)
        self.batches = Batches(frames, recipe, dtype=torch.bfloat16 if spec.bf16 else torch.float32)
        self.eval_batches = Batches(frames, recipe, dtype=torch.float32)
        self.training = Training(recipe.policy, spec, group=group, device=device)
        self.threads = Threads(self._same_everywhere())
        self.step, self.train_s = 0, 0.0
        self.heldout_loss: float | None = None
        self.resumed_from = self._resume()
        self.journal = Journal(context.work / JOURNAL_FILE, step=self.step)
        self.latest: dict[str, float] = {}

    @property
    def cut_short(self) -> bool:
        """Whether the wall limit ended training."""
        return self.step < self.spec.steps

    def train(self) -> None:
        """Takes the remaining steps; what stops one process stops all of them before the same step.

        Told to stop, it keeps a checkpoint first: a preempted training loses no step.
        """
        begun_s, before_s = time.monotonic(), self.train_s
        while not self._ends() and self.step < self.spec.steps:
            self._step()
            self.train_s = before_s + time.monotonic() - begun_s
            try:
                self._keep() if self.group.leads else self._listen()
            except Cancelled:
                try:
                    self.group.stop()
                finally:
                    self._save_on_leaving()
                raise

    def _ends(self) -> bool:
        try:
            return self.group.ends(over=self._out_of_time())
        except TransientError:
            self._save_on_leaving()
            raise

    def _save_on_leaving(self) -> None:
        """Keeps what was learnt, in this attempt's own workspace: whoever has the job now has another."""
        if self.group.leads and self.step > self.resumed_from:
            self._save()

    def _step(self) -> None:
        torch.set_num_threads(self.threads.count)
        begun_s = time.monotonic()
        rows = self.order.step(self.step)
        own = self.group.share(rows)
        self.latest = self.training.step(self.step, self.batches.make(own), share=len(own) / len(rows))
        self.threads.took(time.monotonic() - begun_s)
        self.step += 1

    def _keep(self) -> None:
        """Evaluates, reports and saves when it is time to."""
        spec = self.spec
        last = self.step == spec.steps or self._out_of_time()
        if last or self.step % spec.eval_every_steps == 0:
            self._evaluate()
        if last or self.step % spec.log_every_steps == 0:
            self._report()
        if last or self.step % spec.checkpoint_every_steps == 0:
            self._save()

    def _listen(self) -> None:
        """Hears whether this process must stop: what rank 0 does when it reports."""
        self.context.progress(self.step, self.spec.steps, "steps")

    def _out_of_time(self) -> bool:
        return self.spec.wall_limit_s is not None and self.train_s >= self.spec.wall_limit_s

    def _evaluate(self) -> None:
        if len(self.held_out_rows):
            self.heldout_loss = self.training.held_out_loss(self._held_out_batches())

    def _held_out_batches(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        for rows in self.held_out_rows.split(EVAL_BATCH):
            yield len(rows), self.eval_batches.make(rows)

    def _report(self) -> None:
        held_out = {} if self.heldout_loss is None else {"heldout_loss": self.heldout_loss}
        rate = learning_rate(self.step - 1, self.spec)
        self.journal.add(step=self.step, train_s=round(self.train_s, 3), lr=rate, **self.latest, **held_out)
        self.context.progress(self.step, self.spec.steps, "steps", **self.latest, **held_out)

    def _save(self) -> None:
        progress = resume.Progress(self._question(), self.step, self.train_s, self.heldout_loss)
        resume.save(self.context.work / RESUME_DIRECTORY, progress, self.training.tensors())

    def _resume(self) -> int:
        root = self.context.work / RESUME_DIRECTORY
        found = resume.newest(root, self._question()) if self.group.leads else None
        found = resume.shared(self.group, found)
        if found is None:
            self.training.follow()
            return 0
        progress, tensors = found
        self.training.restore(tensors)
        self.step, self.train_s, self.heldout_loss = progress.step, progress.train_s, progress.heldout_loss
        return self.step

    def _same_everywhere(self) -> int:
        """Agrees with the other processes on what they do, and on the threads that each uses.

        So many threads everywhere that sums round alike; 0, alone: what is faster now.

        Raises:
            ConfigError: They have different jobs or devices, or a step has no row for one of them.
        """
        if self.group.alone:
            return self.spec.threads
        if self.spec.batch_size < self.group.size:
            raise ConfigError(
                f"batch_size: {self.spec.batch_size} frames for {self.group.size} processes; valid: at least "
                f"{self.group.size}, or fewer processes"
            )
        own = {"question": self._question(), "device": self.training.device.type}
        told = self.group.agree(**own, threads=self.spec.threads or self.group.cores)
        for name, value in own.items():
            if told[name] != value:
                raise ConfigError(
                    f"rank {self.group.rank} has the {name} {value[:12]}, rank 0 {told[name][:12]}; start "
                    "all with the same plan, step, image and kind of machine"
                )
        return int(told["threads"])

    def _question(self) -> str:
        """A digest of what decides the result: the spec (a time limit aside) and the dataset."""
        spec = self.spec.model_dump(mode="json", exclude={"wall_limit_s", "threads"})
        asked = [spec, list(self.context.digests.get("dataset", ())), len(self.train_rows)]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _dataset(context: Context) -> Path:
    found = list(context.inputs.get("dataset", ()))
    if len(found) != 1:
        raise ConfigError(
            f"train takes one input of role dataset; {len(found)} were given: --input dataset=DIR"
        )
    return Path(found[0])


def _load(
    root: Path,
    metadata: Any,
    card: DatasetCard,
    recipe: Recipe,
    *,
    threads: int,
    decoded: Callable[[int, int], None],
) -> Frames:
    """Reads the table, and the videos when the policy sees."""
    columns = read_table(root, metadata)
    images = (
        read_videos(root, metadata, threads=threads, decoded=decoded)
        if recipe.policy.config.image_features
        else {}
    )
    ranges = _episode_rows(card)
    first = torch.cat([torch.full((end - begin,), begin) for begin, end in ranges])
    last = torch.cat([torch.full((end - begin,), end - 1) for begin, end in ranges])
    request = [episode.request for episode in card.episodes for _ in range(episode.frames)]
    return Frames(columns, images, first, last, request)


def _episode_rows(card: DatasetCard) -> list[tuple[int, int]]:
    """Each episode's first row and one past its last."""
    ranges, begin = [], 0
    for episode in card.episodes:
        ranges.append((begin, begin + episode.frames))
        begin += episode.frames
    return ranges


def _thin(rows: Tensor, most: int) -> Tensor:
    """At most so many rows, spread evenly."""
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most).round().long()]


def _finish(
    session: Session, robot: RobotProfile, task: TaskProfile, card: DatasetCard, *, decode_s: float
) -> StageResult:
    """Writes the checkpoint artifact."""
    spec, recipe = session.spec, session.recipe
    summary: dict[str, Any] = {
        "policy": spec.policy,
        "preset": "state (PRIVILEGED)" if recipe.privileged else spec.preset,
        "parameters": parameter_count(recipe.policy),
        "seed": spec.seed,
        "device": session.training.device.type,
        "processes": session.group.size,
        "steps": session.step,
        "cut_short": session.cut_short,
        "resumed_from_step": session.resumed_from,
        "episodes": len(card.split_episodes("train")),
        "frames": len(session.train_rows),
        "heldout_episodes": len(card.split_episodes("validation")),
        "heldout_loss": session.heldout_loss,
        "train_s": round(session.train_s, 2),
        "decode_s": round(decode_s, 2),
        "step_ms": round(1e3 * session.train_s / session.step, 2),
        **session.latest,
    }
    directory = session.context.work / CHECKPOINT_DIRECTORY
    shutil.rmtree(directory, ignore_errors=True)
    recipe.save(session.training.finished(), directory)
    sources = {"dataset": tuple(session.context.digests.get("dataset", ()))}
    make_card(recipe, robot, task, card, sources=sources, figures=summary).write(directory)
    shutil.copyfile(session.journal.path, directory / JOURNAL_FILE)
    return StageResult(outputs={"checkpoint": directory}, summary=summary)
