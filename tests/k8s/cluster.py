"""A cluster of one machine for tests: the pods of a rendered Job as processes of this installation.

It does what the Job controller and the kubelet do with the fields that our Jobs use: an index for each pod, a
new pod for a failed one, the failure policy in the order of its rules. Paths inside the container are put
under a directory of the test; the command is that of the image, taken from this environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim2or.process import PARENT_VARIABLE

TIMEOUT_S = 120.0


@dataclass
class Cluster:
    """Where the pods of a run live.

    Attributes:
        root: Stands for the volumes: ``runs/``, ``plan/``.
        modules: Image to the module that its entry point runs.
        variables: Of the environment, beside those of the containers.
        private: Whether an empty volume is each pod's own, as in a cluster; else shared like a claim.
        ended: (job, index, exit status) of every pod, in the order in which they ended.
    """

    root: Path
    modules: dict[str, str]
    variables: dict[str, str] = field(default_factory=dict)
    private: bool = False
    ended: list[tuple[str, int, int]] = field(default_factory=list)

    def apply(self, manifests: list[dict[str, Any]]) -> None:
        """Keeps config maps as files; Jobs are run by ``run``."""
        for manifest in manifests:
            if manifest["kind"] == "ConfigMap":
                place = self.root / manifest["metadata"]["name"]
                place.mkdir(exist_ok=True)
                for name, text in manifest["data"].items():
                    (place / name).write_text(text)

    def start(self, job: dict[str, Any], index: int) -> subprocess.Popen[bytes]:
        """Starts one pod of a Job."""
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {v["name"]: v for v in pod["volumes"]}
        places = {m["mountPath"]: self._place(volumes[m["name"]]) for m in container["volumeMounts"]}
        environment = os.environ | {
            one["name"]: self._inside(one["value"], places) for one in container["env"] if "value" in one
        }
        environment |= self.variables | {"JOB_COMPLETION_INDEX": str(index), "SIM2OR_METRICS_PORT": "0"}
        for name in ("SIM2OR_KEYS", PARENT_VARIABLE):
            environment.pop(name, None)
        module = self.modules[container["image"].partition(":")[0]]
        return subprocess.Popen(
            [sys.executable, "-m", module, *(self._inside(text, places) for text in container["args"])],
            env=environment,
            stdout=(self.root / "pods.log").open("ab"),
            stderr=subprocess.STDOUT,
        )

    def run(
        self, job: dict[str, Any], disturb: Callable[[int, subprocess.Popen[bytes]], None] = lambda *_: None
    ) -> set[int]:
        """Runs a Job to its end.

        Args:
            job: Its manifest.
            disturb: Called with each pod that was started first for an index.

        Returns:
            The indexes that failed for good.
        """
        name, spec = job["metadata"]["name"], job["spec"]
        failures: Counter[int] = Counter()
        failed: set[int] = set()
        waiting, running = list(range(spec["completions"])), dict[int, subprocess.Popen[bytes]]()
        seen: set[int] = set()
        while waiting or running:
            while waiting and len(running) < spec["parallelism"]:
                index = waiting.pop(0)
                running[index] = self.start(job, index)
                if index not in seen:
                    seen.add(index)
                    disturb(index, running[index])
            index, process = next(iter(running.items()))
            status = process.wait(TIMEOUT_S)
            del running[index]
            self.ended.append((name, index, status))
            action = self._action(spec, status)
            if action == "FailIndex":
                failed.add(index)
            elif action == "Count":
                failures[index] += 1
                again = failures[index] <= spec["backoffLimitPerIndex"]
                waiting += [index] if again else []
                failed |= set() if again else {index}
            elif action == "Ignore":
                waiting.append(index)
        return failed

    def _action(self, spec: dict[str, Any], status: int) -> str:
        if status == 0:
            return "Succeed"
        code = 128 - status if status < 0 else status
        for rule in spec.get("podFailurePolicy", {}).get("rules", ()):
            if code in rule.get("onExitCodes", {}).get("values", ()):
                return str(rule["action"])
        return "Count"

    def _place(self, volume: dict[str, Any]) -> Path:
        name = volume["configMap"]["name"] if "configMap" in volume else volume["name"]
        own = self.private and "emptyDir" in volume
        path = self.root / (f"{name}-{uuid.uuid4().hex[:8]}" if own else name)
        path.mkdir(exist_ok=True)
        return path

    def _inside(self, text: str, places: dict[str, Path]) -> str:
        for mount, path in places.items():
            if text == mount or text.startswith(f"{mount}/"):
                return f"{path}{text.removeprefix(mount)}"
        return text


def kill(process: subprocess.Popen[bytes]) -> None:
    """Takes a pod away without notice, as a node does that loses its power."""
    process.send_signal(signal.SIGKILL)
