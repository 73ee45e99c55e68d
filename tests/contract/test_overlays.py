"""Every compose overlay, alone and in company: what compose makes of it is safe, complete and true."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from queries import COMMITTED, FOREIGN, ROOT, described, selectors
from sim2or.bus.jobs import Jobs
from sim2or.bus.server import connect, start
from sim2or.dashboards import WINDOW, expressions
from sim2or.messages.job import Job
from sim2or.stages import load_table

COMPOSE = ROOT / "compose"
OBSERVABILITY = COMPOSE / "observability"
OVERLAYS = ("gpu", "spark", "robot", "observability", "s3", "isaaclab", "rl")
FURTHER = ("isaaclab", "rl")
"""Overlays that add simulators of ours."""
COMBINATIONS = (
    *((name,) for name in OVERLAYS),
    ("gpu", "observability", "s3"),
    ("spark", "observability", "s3"),
    ("robot", "observability"),
    ("gpu", "robot", "observability", "s3"),
    ("isaaclab", "isaaclab-gpu"),
    ("gpu", "isaaclab", "isaaclab-gpu", "rl", "observability"),
)

GIVEN = {
    "SIM2OR_SERIAL": "/dev/serial/by-id/usb-arm",
    "SIM2OR_CAMERA_WRIST": "/dev/v4l/by-id/usb-wrist",
    "SIM2OR_CAMERA_ROOM": "/dev/v4l/by-id/usb-room",
    "SIM2OR_ROBOT_IMAGE": "example/arm:1.0",
    "SIM2OR_S3_ID": "sim2or",
    "SIM2OR_S3_SECRET": "not-a-known-one",
}
"""What the overlays ask the user for."""

HEALTH = ["CMD", "python", "-m", "sim2or.health"]
METRICS_PORT = 9464
TORCH = ("dataset", "trainer", "exporter", "policy")
SPARK_GB = 128
GIB = 2**30

Json = dict[str, Any]


@functools.cache
def has_compose() -> bool:
    """Whether ``docker compose`` is here; it needs no engine to merge files."""
    return shutil.which("docker") is not None and not subprocess.call(
        ["docker", "compose", "version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60
    )


def ask_compose(files: tuple[str, ...], given: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What ``docker compose config`` says to the base file with these overlays and variables."""
    if not has_compose():
        expected = os.environ.get("CI") and not os.environ.get("SIM2OR_NO_ENGINE")
        (pytest.fail if expected else pytest.skip)("no `docker compose`: it cannot be asked")
    named = [part for name in ("compose", *files) for part in ("-f", str(COMPOSE / f"{name}.yaml"))]
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["docker", "compose", "--project-directory", str(COMPOSE), *named, "config", "--format", "json"]
    return subprocess.run(command, env=kept | given, capture_output=True, text=True, timeout=60, check=False)


@functools.cache
def rendered(files: tuple[str, ...]) -> Json:
    """The stack with these overlays, as compose merges it."""
    answer = ask_compose(files, GIVEN)
    assert answer.returncode == 0, answer.stderr
    config: Json = json.loads(answer.stdout)
    return config


def services(*files: str) -> dict[str, Json]:
    """The services of the stack with these overlays."""
    found: dict[str, Json] = rendered(files)["services"]
    return found


def networks(service: Json) -> set[str]:
    """The networks of a service."""
    return set(service.get("networks") or ())


def watched(*files: str) -> set[str]:
    """Services of ours, with these overlays, that tell their health and metrics."""
    found = services(*files).items()
    return {name for name, one in found if one.get("healthcheck", {}).get("test") == HEALTH}


def seconds(files: tuple[str, ...]) -> str:
    """A name for a combination."""
    return "+".join(files)


every_combination = pytest.mark.parametrize("files", COMBINATIONS, ids=seconds)


@every_combination
def test_every_container_is_confined(files: tuple[str, ...]) -> None:
    """No root, no writable root, no capability, no way to more; bounded memory, processes and logs."""
    for name, one in services(*files).items():
        assert int(one["user"].partition(":")[0]) > 0, name
        assert one["read_only"] is True, name
        assert (one["cap_drop"], one.get("cap_add")) == (["ALL"], None), name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert not one.get("privileged"), name
        assert int(one["mem_limit"]) > 0, name
        assert one["pids_limit"] > 0, name
        assert one["logging"]["options"].keys() >= {"max-size", "max-file"}, name


@every_combination
def test_no_container_has_the_engine_or_the_host(files: tuple[str, ...]) -> None:
    """Nobody mounts the engine's socket or a directory of the host but our own files, read-only."""
    for name, one in services(*files).items():
        for mount in one.get("volumes", ()):
            assert "docker.sock" not in mount["source"], name
            if mount["type"] == "bind":
                assert Path(mount["source"]).is_relative_to(ROOT), name
                assert Path(mount["source"]).exists(), name
                assert mount["read_only"] is True, name
        assert {"host"}.isdisjoint({one.get(key) for key in ("network_mode", "pid", "ipc", "userns_mode")}), (
            name
        )


@every_combination
def test_only_this_host_reaches_what_is_published(files: tuple[str, ...]) -> None:
    """Ports are published on the loopback address; only who publishes one is on a network with a way out."""
    config = rendered(files)
    outward = {name for name, one in config["networks"].items() if not one.get("internal")}
    for name, one in config["services"].items():
        ports = one.get("ports", ())
        assert all(port["host_ip"] == "127.0.0.1" for port in ports), name
        assert bool(networks(one) & outward) == bool(ports), name
        assert networks(one) or one.get("network_mode") == "none", name


@every_combination
def test_every_image_is_pinned(files: tuple[str, ...]) -> None:
    """Every image has a tag, and none of them moves."""
    for name, one in services(*files).items():
        _, _, tag = one["image"].rpartition("/")[2].partition(":")
        assert tag, name
        assert tag not in ("latest", "main", "master", "nightly", "edge"), name


@every_combination
def test_every_volume_and_network_is_declared_and_used(files: tuple[str, ...]) -> None:
    """No overlay leaves a volume or a network behind that nobody uses."""
    config = rendered(files)
    mounted = {
        mount["source"]
        for one in config["services"].values()
        for mount in one.get("volumes", ())
        if mount["type"] == "volume"
    }
    assert set(config["volumes"]) == mounted
    assert set(config["networks"]) - {"default"} == set().union(*map(networks, config["services"].values()))


def scraped() -> Json:
    """The scrape configuration of our own services."""
    config = yaml.safe_load((OBSERVABILITY / "prometheus.yaml").read_text())
    (ours,) = (job for job in config["scrape_configs"] if job["job_name"] == "sim2or")
    found: Json = ours
    return found


@pytest.mark.parametrize(
    "also", [(), ("gpu",), ("spark",), ("s3",)], ids=lambda also: "+".join(also) or "base"
)
def test_every_service_is_scraped(also: tuple[str, ...]) -> None:
    """Prometheus asks every service that has metrics, by a name it can resolve, on the port it has."""
    (asked,) = scraped()["dns_sd_configs"]
    found = services(*FURTHER, *also, "observability")
    assert set(asked["names"]) == watched(*FURTHER)
    assert (asked["type"], asked["port"]) == ("A", METRICS_PORT)
    for name in asked["names"]:
        assert found[name]["environment"]["SIM2OR_METRICS_PORT"] == str(METRICS_PORT)
        assert networks(found[name]) <= networks(found["prometheus"]), name


def test_every_service_traces_to_the_collector() -> None:
    """Whoever has spans to tell is told where, and shares a network with the collector there."""
    found = services("observability")
    collector = yaml.safe_load((OBSERVABILITY / "collector.yaml").read_text())
    port = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    for name in (*watched(), "pipeline"):
        told = urllib.parse.urlsplit(found[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"])
        assert (told.hostname, told.port) == ("collector", int(port))
        assert networks(found[name]) & networks(found["collector"]), name


def test_the_collector_hands_on_to_what_listens() -> None:
    """Every part that a pipeline names is there, and the collector's exporter meets Jaeger's receiver."""
    for name in ("collector", "jaeger"):
        config = yaml.safe_load((OBSERVABILITY / f"{name}.yaml").read_text())
        for kind in ("receivers", "processors", "exporters"):
            used = {part for one in config["service"]["pipelines"].values() for part in one[kind]}
            assert used == set(config[kind]), f"{name}: {kind}"
        assert set(config["service"].get("extensions", ())) == set(config.get("extensions", ()))
    sender = yaml.safe_load((OBSERVABILITY / "collector.yaml").read_text())["exporters"]["otlp_grpc/jaeger"]
    receiver = yaml.safe_load((OBSERVABILITY / "jaeger.yaml").read_text())["receivers"]["otlp"]["protocols"]
    assert sender["endpoint"] == f"jaeger:{receiver['grpc']['endpoint'].rpartition(':')[2]}"
    found = services("observability")
    assert networks(found["collector"]) & networks(found["jaeger"])


def test_grafana_is_for_looking_only() -> None:
    """Nobody can log in, no password is known, and everybody who reaches it may look."""
    environment = services("observability")["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert (environment["GF_AUTH_DISABLE_LOGIN_FORM"], environment["GF_AUTH_BASIC_ENABLED"]) == (
        "true",
        "false",
    )
    assert not [name for name in environment if "PASSWORD" in name]


def test_grafana_finds_its_source_and_its_dashboards() -> None:
    """Source and dashboards are mounted where the provisioning says, under the id that the panels use."""
    grafana = services("observability")["grafana"]
    mounts = {mount["target"]: Path(mount["source"]) for mount in grafana["volumes"]}
    provisioning = mounts["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert (source["uid"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load((provisioning / "dashboards/sim2or.yaml").read_text())["providers"]
    assert mounts[provider["options"]["path"]] == COMMITTED
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (COMMITTED / home.name).exists()


def alerts() -> list[Json]:
    """The rules that Prometheus watches."""
    groups = yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_every_alert_watches_what_there_is(rule: Json) -> None:
    """A rule parses, names metrics and labels that exist, and its text uses only labels that it has left."""
    labels: set[str] = set()
    for name, matched, grouped in selectors(rule["expr"]):
        metric = described(name)
        assert metric is not None or name in FOREIGN, name
        assert matched | grouped <= {*(metric.labels if metric else ()), "service", "job"}
        labels |= grouped or {"service", "instance"}
    said = rule["annotations"]["summary"]
    used = {part.split(" ")[0] for part in said.split("$labels.")[1:]}
    assert used <= labels


def missing(what: str) -> None:
    """Passes a test over on a laptop; CI has what it needs."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What Prometheus's own checker says."""
    if shutil.which("promtool") is None:
        missing("no promtool on PATH: apt-get install prometheus")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    """Prometheus's own checker accepts the configuration, the alerts, and every query of every dashboard."""
    checked = promtool("check", "config", str(OBSERVABILITY / "prometheus.yaml"))
    assert checked.returncode == 0, checked.stderr
    asked = sorted(
        {
            expression.replace(WINDOW, "1m")
            for path in COMMITTED.glob("*.json")
            for expression in expressions(json.loads(path.read_text()))
        }
    )
    rules = [{"record": f"query:{number}", "expr": expression} for number, expression in enumerate(asked)]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    checked = promtool("check", "rules", str(path))
    assert checked.returncode == 0, checked.stderr
    assert f"{len(asked)} rules found" in checked.stdout


def test_alerts_come_when_they_should() -> None:
    """By Prometheus's own tester: nothing fires while all is well, and each fault has its alert in time."""
    tested = promtool("test", "rules", str(ROOT / "tests/contract/alerts.yaml"))
    assert tested.returncode == 0, tested.stderr


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def page(port: int) -> dict[str, set[str]]:
    """What a process shows: name of each series to its labels; empty while it does not serve yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            text = response.read().decode()
    except (urllib.error.URLError, ConnectionError):
        return {}
    shown: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            shown.setdefault(sample.name, set()).update(sample.labels)
    return shown


@contextmanager
def agent(directory: Path, eventually: Callable[..., None]) -> Iterator[int]:
    """The port of a real agent whose only job failed: its queue, attempts and worker have counts to tell."""
    server, port = start(directory / "redis"), free_port()
    told = {
        "SIM2OR_REDIS_URL": server.url,
        "SIM2OR_RUN_DIR": str(directory),
        "SIM2OR_METRICS_PORT": str(port),
    }
    command = [sys.executable, "-m", "sim2or_evaluator", "serve"]
    running = subprocess.Popen(
        command, env=os.environ | told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        Jobs(connect(server.url)).submit(Job(stage="evaluate", key="k", spec={"nonsense": 1}))
        eventually(
            lambda: running.poll() is not None or "sim2or_attempt_ended_total" in page(port), timeout_s=120
        )
        assert running.poll() is None, "the agent ended"
        yield port
    finally:
        running.terminate()
        running.wait(timeout=20)
        server.stop()


def test_a_real_page_has_what_the_dashboards_ask(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """What an agent shows holds every series and label that the dashboards ask about queues and workers."""
    with agent(tmp_path, eventually) as port:
        shown = page(port)
    overview = json.loads((COMMITTED / "overview.json").read_text())
    asked = [one for text in expressions(overview) for one in selectors(text)]
    told = ("sim2or_jobs_", "sim2or_attempt_", "process_")
    about = [one for one in asked if one[0].startswith(told)]
    assert len(about) >= 9
    for name, matched, grouped in about:
        assert matched | grouped <= shown[name] | {"service"}, name


def test_a_real_prometheus_answers_every_query(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """With our configuration Prometheus scrapes a real agent, and answers each query of each dashboard."""
    if shutil.which("prometheus") is None:
        missing("no prometheus on PATH: apt-get install prometheus")
    with agent(tmp_path, eventually) as port, prometheus(tmp_path, port) as ask:
        eventually(lambda: ask("sim2or_jobs_failed_total > 0"), timeout_s=60)
        up = ask("up")
        assert [(one["metric"]["service"], one["value"][1]) for one in up] == [("evaluator", "1")]
        for path in sorted(COMMITTED.glob("*.json")):
            for expression in expressions(json.loads(path.read_text())):
                ask(expression.replace(WINDOW, "1m"))
        dead = ask("max by (stage) (sim2or_jobs_dead_letters) > 0")
        assert [one["metric"] for one in dead] == [{"stage": "evaluate"}]
        assert {one["metric"]["service"] for one in ask("sim2or_attempt_ended_total")} == {"evaluator"}


@contextmanager
def prometheus(directory: Path, port: int) -> Iterator[Callable[[str], list[Json]]]:
    """A real Prometheus with our configuration, but for the names: it asks one process on this host."""
    config = yaml.safe_load((OBSERVABILITY / "prometheus.yaml").read_text())
    job = scraped() | {
        "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": {"__meta_dns_name": "evaluator"}}]
    }
    del job["dns_sd_configs"]
    config |= {"scrape_configs": [job], "rule_files": [str(OBSERVABILITY / "alerts.yaml")]}
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    path = directory / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    web = free_port()
    running = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={path}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{web}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(expression: str) -> list[Json]:
        assert running.poll() is None, "Prometheus ended"
        question = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{web}/api/v1/query?{question}", timeout=10
            ) as told:
                found: list[Json] = json.load(told)["data"]["result"]
                return found
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it starts
                return []
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        except urllib.error.URLError:
            return []

    try:
        yield ask
    finally:
        running.terminate()
        running.wait(timeout=20)


def gpus(service: Json) -> list[Json]:
    """The devices that a service reserves."""
    found: list[Json] = (
        service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    )
    return found


@pytest.mark.parametrize("overlay", ["gpu", "spark"])
def test_the_gpu_goes_to_those_who_can_use_it(overlay: str) -> None:
    """Simulator, trainer, exporter and policy reserve one NVIDIA GPU; the simulator also its graphics."""
    reserved = {name: gpus(one) for name, one in services(overlay).items() if gpus(one)}
    assert set(reserved) == {"sim", "trainer", "exporter", "policy"}
    for name, devices in reserved.items():
        (device,) = devices
        assert (device["driver"], device["device_ids"]) == ("nvidia", ["0"])
        assert ("graphics" in device["capabilities"]) == (name == "sim")
        assert {"gpu", "compute", "utility"} <= set(device["capabilities"])


def test_isaac_lab_computes_on_the_gpu_that_it_reserves() -> None:
    """Its overlay for a GPU sets the device, one worker and the driver's graphics; alone it has none."""
    plain = services("isaaclab")["sim-isaaclab"]
    assert (gpus(plain), "SIM2OR_ISAAC_DEVICE" in plain["environment"]) == ([], False)
    found = services("isaaclab", "isaaclab-gpu")["sim-isaaclab"]
    (device,) = gpus(found)
    assert {"gpu", "compute", "utility", "graphics"} == set(device["capabilities"])
    assert (found["environment"]["SIM2OR_ISAAC_DEVICE"], found["deploy"]["replicas"]) == ("cuda:0", 1)


@pytest.mark.parametrize("overlay", FURTHER)
def test_a_further_simulator_has_its_own_name_on_the_bus(overlay: str) -> None:
    """It logs in to Redis as itself, with its own keys, and takes the jobs of its own service."""
    (name,) = set(services(overlay)) - set(services())
    one = services(overlay)[name]
    assert one["environment"]["SIM2OR_REDIS_URL"] == f"redis://{name}@redis:6379/0"
    mounts = {mount["target"]: mount["source"] for mount in one["volumes"]}
    assert mounts == {"/runs": "runs", "/keys": f"keys-{name}"}
    served = one.get("command") or ["serve-isaaclab"]
    assert served == list(load_table().services[name].command)


@pytest.mark.parametrize("overlay", ["gpu", "spark"])
def test_all_torch_images_keep_one_layer(overlay: str) -> None:
    """The images that share their packages are built for the same CUDA, or they would share no longer."""
    args = [services(overlay)[name]["build"]["args"] for name in TORCH]
    assert [one["TORCH_INDEX"] for one in args] == ["cu130"] * len(TORCH)
    assert all(one == args[0] for one in args)


def test_a_spark_has_one_simulator_and_leaves_memory_to_cuda() -> None:
    """On the machine whose CPU and GPU share memory all limits together leave a third of it to CUDA."""
    found = services("spark")
    assert found["sim"]["deploy"]["replicas"] == 1
    limits_gb = (
        sum(int(one["mem_limit"]) * one.get("deploy", {}).get("replicas", 1) for one in found.values()) / GIB
    )
    assert limits_gb <= SPARK_GB * 2 / 3
    ours = {name: one for name, one in found.items() if one["image"].startswith("sim2or/")}
    assert {name: one.get("platform") for name, one in ours.items()} == dict.fromkeys(ours, "linux/arm64")


def test_only_the_arm_gets_its_devices() -> None:
    """Serial port and cameras go to the arm's process and to the check before it, under lasting names."""
    found = services("robot")
    assert {name for name, one in found.items() if one.get("devices")} == {"robot", "robot-check"}
    targets = {device["target"]: device["source"] for device in found["robot"]["devices"]}
    assert targets == {
        "/dev/arm": GIVEN["SIM2OR_SERIAL"],
        "/dev/video-wrist": GIVEN["SIM2OR_CAMERA_WRIST"],
        "/dev/video-room": GIVEN["SIM2OR_CAMERA_ROOM"],
    }
    for one in (found["robot"], found["robot-check"]):
        names = {name: one["environment"][name] for name in GIVEN if name in one["environment"]}
        assert set(names.values()) == set(targets)
    assert found["robot"]["depends_on"]["robot-check"]["condition"] == "service_completed_successfully"


def test_the_simulated_arm_is_gone_where_a_real_one_is() -> None:
    """The robot overlay runs the image that the user names with its own command, never ours instead."""
    arm = services("robot")["robot"]
    assert (arm["image"], arm.get("command")) == (GIVEN["SIM2OR_ROBOT_IMAGE"], None)
    assert networks(arm) == {"edge"}
    limits = {"rtprio": 49, "memlock": -1}
    assert arm["ulimits"] == services("robot")["bridge"]["ulimits"] == limits


@pytest.mark.parametrize(
    ("overlay", "variable", "said"),
    [
        ("robot", "SIM2OR_SERIAL", "ls /dev/serial/by-id"),
        ("robot", "SIM2OR_CAMERA_WRIST", "ls /dev/v4l/by-id"),
        ("robot", "SIM2OR_CAMERA_ROOM", "ls /dev/v4l/by-id"),
        ("robot", "SIM2OR_ROBOT_IMAGE", "none for a real arm yet"),
        ("s3", "SIM2OR_S3_ID", "SIM2OR_S3_ID=sim2or"),
        ("s3", "SIM2OR_S3_SECRET", "openssl rand -hex 20"),
    ],
)
def test_what_is_not_given_is_asked_for(overlay: str, variable: str, said: str) -> None:
    """Without a variable compose stops at once, names it, and says how to find its value."""
    answer = ask_compose((overlay,), {name: value for name, value in GIVEN.items() if name != variable})
    assert answer.returncode != 0
    assert variable in answer.stderr
    assert said in answer.stderr


def test_every_service_reaches_the_object_store() -> None:
    """Whoever makes or uses artifacts knows the store and its bucket, and shares a network with it."""
    found = services("s3")
    users = {name for name in watched() | {"pipeline"} if name != "robot"}
    store = found["s3"]["environment"]
    assert {name for name, one in found.items() if "SIM2OR_MIRROR" in (one.get("environment") or {})} == users
    (bucket,) = {urllib.parse.urlsplit(found[name]["environment"]["SIM2OR_MIRROR"]).netloc for name in users}
    assert f"-bucket={bucket}" in found["s3"]["command"]
    for name in users:
        environment = found[name]["environment"]
        assert environment["AWS_ENDPOINT_URL"] == "http://s3:8333"
        assert {key: environment[key] for key in store} == store
        assert networks(found[name]) & networks(found["s3"]), name
        assert found[name]["depends_on"]["s3"]["condition"] == "service_healthy"


def test_no_two_services_share_a_store_beside_the_bucket() -> None:
    """With the object store each service keeps a store of its own, as on hosts of their own."""
    found = services("s3")
    homes = [
        mount["source"]
        for name in watched() | {"pipeline"}
        if name != "robot"
        for mount in found[name]["volumes"]
        if mount["target"] == "/runs"
    ]
    assert len(set(homes)) == len(homes) == len(watched())
    assert {one["environment"]["SIM2OR_STORE"] for name, one in found.items() if name in watched()} == {
        "/runs/store"
    }
