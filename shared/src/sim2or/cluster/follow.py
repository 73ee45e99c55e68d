"""A pipeline on a cluster, one step after the other, from outside.

No pod waits for another one's output: it would hold what the other one needs to run. So whoever asks applies
a step when the one before it is complete. It may stop at any moment: what is finished is found again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from sim2or.cluster.render import DEADLINE_S, Manifest, to_yaml
from sim2or.errors import ConfigError, JobError, TransientError

CALL_TIMEOUT_S = 60.0
POLL_S = 5.0


def apply(manifests: Sequence[Manifest]) -> None:
    """Brings manifests to the cluster.

    Raises:
        ConfigError: No kubectl, no cluster, or the cluster refuses them; with its own words.
    """
    _kubectl(["apply", "-f", "-"], to_yaml(manifests))


def follow(job: Manifest, tell: Callable[[str], None], *, poll_s: float = POLL_S) -> None:
    """Waits for the end of a Job, JobSet or TrainJob and tells how far it is.

    Raises:
        JobError: It failed; says where to look.
        TransientError: It did not end in its own time.
    """
    name, space = job["metadata"]["name"], job["metadata"]["namespace"]
    kind = job["kind"].lower()
    total, told = job["spec"].get("completions", 1), ""
    deadline_s = time.monotonic() + DEADLINE_S + CALL_TIMEOUT_S
    while time.monotonic() < deadline_s:
        status = _status(kind, name, space)
        parts = status.get("replicatedJobsStatus") or status.get("jobsStatus")  # a JobSet's, a TrainJob's
        counts = parts[0] if parts else status
        text = f"{name}: {counts.get('succeeded', 0)}/{total} done, {counts.get('active', 0)} running"
        if text != told:
            tell(told := text)
        ended = {one["type"]: one for one in status.get("conditions", ()) if one["status"] == "True"}
        if ended.keys() & {"Complete", "Completed"}:
            return
        if "Failed" in ended:
            label = "job-name" if kind == "job" else "jobset.sigs.k8s.io/jobset-name"
            raise JobError(
                f"{kind} {name} failed: {ended['Failed'].get('message', 'no reason given')}; see it: "
                f"kubectl -n {space} logs -l {label}={name} --prefix; to try it again: "
                f"kubectl -n {space} delete {kind} {name}"
            )
        time.sleep(poll_s)
    raise TransientError(f"{kind} {name} did not end in {DEADLINE_S} s")


def _status(kind: str, name: str, space: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_kubectl(["-n", space, "get", kind, name, "-o", "json"]))
    return found.get("status", {}) or {}


def _kubectl(arguments: Sequence[str], text: str = "") -> str:
    program = shutil.which("kubectl")
    if program is None:
        raise ConfigError("no kubectl on PATH; install it (https://kubernetes.io/docs/tasks/tools)")
    try:
        done = subprocess.run(
            [program, *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=CALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TransientError(f"kubectl {arguments[0]}: no answer in {CALL_TIMEOUT_S:g} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise ConfigError(
            f"kubectl {arguments[0]}: {lines[-1]}; `kubectl cluster-info` tells which cluster it asks"
        )
    return done.stdout
