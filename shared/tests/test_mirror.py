"""Artifacts go to a mirror and come back the same: through a real S3 server, through a shared directory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "toy"))
from sim2or.artifacts.lineage import chain
from sim2or.artifacts.manifest import Manifest
from sim2or.artifacts.mirror import Mirror
from sim2or.artifacts.mirrored import MirroredStore, check_mirror, open_store
from sim2or.artifacts.store import Store, manifest_name, object_name
from sim2or.errors import ConfigError, JobError, TransientError
from sim2or.stage import Cancelled
from sim2or_toy.object_server import BUCKET, ObjectServer, object_server

LARGE_BYTES = 12_000_000
"""Three parts of an upload."""


@dataclass
class Far:
    """The far end of a mirror, seen from outside.

    Attributes:
        url: Its address.
        names: The names of what is there.
        read: The bytes behind a name.
        write: Overwrites them.
    """

    url: str
    names: Callable[[], set[str]]
    read: Callable[[str], bytes]
    write: Callable[[str, bytes], None]


@pytest.fixture(scope="session")
def server() -> Iterator[ObjectServer]:
    """An S3 server that lets everybody in."""
    with object_server() as running:
        yield running


@pytest.fixture(scope="session")
def guarded() -> Iterator[ObjectServer]:
    """An S3 server that checks signatures and rights."""
    with object_server(rights=True) as running:
        yield running


def far_s3(server: ObjectServer, prefix: str) -> Far:
    """A prefix of a bucket."""
    return Far(
        url=f"s3://{BUCKET}/{prefix}",
        names=lambda: {name.removeprefix(f"{prefix}/") for name in server.names(f"{prefix}/")},
        read=lambda name: server.read(f"{prefix}/{name}"),
        write=lambda name, data: server.write(f"{prefix}/{name}", data),
    )


@pytest.fixture(params=["s3", "file"])
def far(
    request: pytest.FixtureRequest,
    server: ObjectServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Far:
    """An empty place for a mirror."""
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    if request.param == "s3":
        return far_s3(server, tmp_path.name)
    root = tmp_path / "share"
    root.mkdir()
    return Far(
        url=root.as_uri(),
        names=lambda: {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()},
        read=lambda name: (root / name).read_bytes(),
        write=lambda name, data: (root / name).write_bytes(data) and None,
    )


@pytest.fixture
def mirror(far: Far) -> Mirror:
    """A mirror at the far end."""
    return Mirror(far.url)


@pytest.fixture
def here(tmp_path: Path) -> Store:
    """The store of one host."""
    return Store(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Store:
    """The store of another host."""
    return Store(tmp_path / "there")


def tree(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def put(store: Store, path: Path, data: bytes = b"1", **rest: object) -> Manifest:
    """Stores an artifact of one file."""
    return store.put(tree(path, {"x": data}), kind="thing", **rest)  # type: ignore[arg-type]


def test_an_artifact_comes_back_the_same(mirror: Mirror, here: Store, there: Store, tmp_path: Path) -> None:
    """Every file comes back with its bytes: large, empty, twice there, deep."""
    files = {"large": os.urandom(LARGE_BYTES), "empty": b"", "one": b"1", "again": b"1", "a/b/c": b"deep"}
    digest = here.put(tree(tmp_path / "a", files), kind="thing", meta={"fps": 30}).digest
    mirror.push(here, digest)
    mirror.fetch(there, digest)
    out = there.checkout(digest)
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} == files
    assert there.manifest(digest) == here.manifest(digest)
    assert list((there.root / "partial").iterdir()) == []


def test_names_are_the_stores_own(mirror: Mirror, far: Far, here: Store, tmp_path: Path) -> None:
    """A file lies under its digest, an artifact under that of its manifest, and nothing else is made."""
    manifest = put(here, tmp_path / "a")
    mirror.push(here, manifest.digest)
    assert far.names() == {object_name(manifest.files[0].digest), manifest_name(manifest.digest)}
    assert far.read(object_name(manifest.files[0].digest)) == b"1"


def test_what_is_there_does_not_travel_again(
    mirror: Mirror, far: Far, here: Store, there: Store, tmp_path: Path
) -> None:
    """A second push and a second fetch move no file; another artifact moves only the file that is new."""
    first = here.put(tree(tmp_path / "a", {"x": b"12", "y": b"345"}), kind="thing").digest
    second = here.put(tree(tmp_path / "b", {"x": b"12", "z": b"6789"}), kind="thing").digest
    for digest in (first, first, second):
        mirror.push(here, digest)
    for digest in (first, first, second):
        mirror.fetch(there, digest)
    assert mirror.counts.sent_bytes == mirror.counts.received_bytes == 2 + 3 + 4
    assert (mirror.counts.pushed, mirror.counts.fetched) == (3, 3)


def test_lineage_comes_along(mirror: Mirror, here: Store, there: Store, tmp_path: Path) -> None:
    """The whole chain is known where an artifact was fetched, though its ancestors' files never travelled."""
    root = put(here, tmp_path / "r", b"root").digest
    middle = put(here, tmp_path / "m", b"middle", parents={"from": [root]}).digest
    end = put(here, tmp_path / "e", b"end", parents={"of": [middle]}).digest
    mirror.push(here, end)
    mirror.fetch(there, end)
    assert [ancestor.digest for ancestor in chain(there, end)] == [end, middle, root]
    assert [there.holds(digest) for digest in (end, middle, root)] == [True, False, False]
    assert mirror.digests() == [end]


def test_ancestors_that_went_before_are_not_sent_as_lineage(
    mirror: Mirror, far: Far, here: Store, tmp_path: Path
) -> None:
    """Where an input is in the mirror already, nothing of its chain is sent again."""
    root = put(here, tmp_path / "r", b"root").digest
    middle = put(here, tmp_path / "m", b"middle", parents={"from": [root]}).digest
    end = put(here, tmp_path / "e", b"end", parents={"of": [middle]}).digest
    mirror.push(here, middle)
    before = far.names()
    mirror.push(here, end)
    added = {name.partition("/")[0] for name in far.names() - before}
    assert added == {"objects", "manifests"}


def test_altered_bytes_are_refused(
    mirror: Mirror, far: Far, here: Store, there: Store, tmp_path: Path
) -> None:
    """Other bytes under the name are never taken, and sending the artifact anew repairs them."""
    manifest = put(here, tmp_path / "a", b"right")
    mirror.push(here, manifest.digest)
    name = object_name(manifest.files[0].digest)
    for wrong in (b"wrong", b"short"[:3], b"much too long"):
        far.write(name, wrong)
        with pytest.raises(JobError, match=f"{name}.*sim2or store push --anew {manifest.digest}"):
            mirror.fetch(there, manifest.digest)
        assert not list(there.digests())
        assert not [path for path in (there.root / "objects").rglob("*") if path.is_file()]
    mirror.push(here, manifest.digest, anew=True)
    mirror.fetch(there, manifest.digest)
    assert (there.checkout(manifest.digest) / "x").read_bytes() == b"right"


def test_an_altered_manifest_is_refused(
    mirror: Mirror, far: Far, here: Store, there: Store, tmp_path: Path
) -> None:
    """A manifest with another content than its name says is not believed, nor is one that tells nothing."""
    digest = put(here, tmp_path / "a").digest
    mirror.push(here, digest)
    name = manifest_name(digest)
    far.write(name, far.read(name).replace(b"thing", b"thong"))
    with pytest.raises(JobError, match="was altered"):
        mirror.fetch(there, digest)
    far.write(name, b"{}")
    with pytest.raises(JobError, match="is not a manifest"):
        mirror.fetch(there, digest)


def test_damage_here_is_not_spread(mirror: Mirror, far: Far, here: Store, tmp_path: Path) -> None:
    """A file that was altered in the store does not leave it, small or large."""
    for data in (b"right", b"r" * LARGE_BYTES):
        manifest = put(here, tmp_path / str(len(data)), data)
        path = here.object_path(manifest.files[0].digest)
        path.chmod(0o644)
        path.write_bytes(b"w" + data[1:])
        with pytest.raises(JobError, match="stored bytes have digest"):
            mirror.push(here, manifest.digest)
    assert far.names() == set()


def test_a_missing_object_is_told(
    mirror: Mirror, server: ObjectServer, here: Store, there: Store, tmp_path: Path, far: Far
) -> None:
    """Where a file is gone from the mirror although its manifest is there, the message says what to do."""
    manifest = put(here, tmp_path / "a")
    mirror.push(here, manifest.digest)
    name = object_name(manifest.files[0].digest)
    if far.url.startswith("s3"):
        server.client().delete_object(Bucket=BUCKET, Key=f"{tmp_path.name}/{name}")
    else:
        (tmp_path / "share" / name).unlink()
    with pytest.raises(JobError, match=r"it is missing; send it again .* sim2or store push --anew"):
        mirror.fetch(there, manifest.digest)


def test_an_unknown_artifact_is_told(mirror: Mirror, there: Store) -> None:
    """An artifact that the mirror does not have is asked for with the command that brings it there."""
    with pytest.raises(ConfigError, match=r"no artifact sha256:0.*sim2or store push"):
        mirror.fetch(there, "sha256:" + "0" * 64)


def test_a_transfer_ends_where_its_job_ends(
    mirror: Mirror, far: Far, here: Store, there: Store, tmp_path: Path
) -> None:
    """What progress raises ends a push with nothing to see; the next push completes it."""
    digest = put(here, tmp_path / "a", os.urandom(LARGE_BYTES)).digest

    def cancelled(done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        mirror.push(here, digest, progress=cancelled)
    assert not mirror.holds(digest)
    told: list[tuple[int, int]] = []
    mirror.push(here, digest, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (LARGE_BYTES, LARGE_BYTES)
    mirror.fetch(there, digest)
    assert there.holds(digest)


def test_two_push_the_same_at_once(far: Far, here: Store, there: Store, tmp_path: Path) -> None:
    """Two hosts that send the same artifact at the same time both succeed, and it is whole."""
    data = os.urandom(LARGE_BYTES)
    other = Store(tmp_path / "other")
    digest = put(here, tmp_path / "a", data).digest
    assert put(other, tmp_path / "b", data).digest == digest
    problems: list[BaseException] = []

    def push(store: Store) -> None:
        try:
            Mirror(far.url).push(store, digest)
        except BaseException as error:  # noqa: BLE001 - told to the test's thread
            problems.append(error)

    threads = [threading.Thread(target=push, args=(store,)) for store in (here, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    Mirror(far.url).fetch(there, digest)
    assert (there.checkout(digest) / "x").read_bytes() == data


def test_who_comes_first_stays(here: Store, tmp_path: Path) -> None:
    """A file that came twice does not replace the one that somebody reads; a shortened one is replaced."""
    (entry,) = (manifest := put(here, tmp_path / "a", b"right")).files
    out = here.checkout(manifest.digest)
    for again in ("first", "second"):
        (tmp_path / again).write_bytes(b"right")
        if again == "second":
            here.object_path(entry.digest).unlink()
            here.object_path(entry.digest).write_bytes(b"ri")
        here.adopt(tmp_path / again, entry)
        assert not (tmp_path / again).exists()
        assert (out / "x").samefile(here.object_path(entry.digest)) == (again == "first")
    assert here.object_path(entry.digest).read_bytes() == b"right"


def test_two_fetch_the_same_at_once(mirror: Mirror, far: Far, here: Store, tmp_path: Path) -> None:
    """Two workers of one host that fetch the same input at the same time both have it."""
    digest = put(here, tmp_path / "a", os.urandom(LARGE_BYTES)).digest
    mirror.push(here, digest)
    found: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(open_store(tmp_path / "there", far.url).checkout(digest))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3
    assert (found[0] / "x").stat().st_size == LARGE_BYTES
    assert list((tmp_path / "there" / "partial").iterdir()) == []


def test_memory_is_bounded(far: Far, here: Store, tmp_path: Path) -> None:
    """Four files of 50 MB, on their way at once, go and come in a process that grows by less than 130 MB."""
    files = {str(number): os.urandom(1000) * 50_000 for number in range(4)}
    digest = here.put(tree(tmp_path / "a", files), kind="thing").digest
    program = """
import sys
from pathlib import Path
from sim2or.artifacts.mirror import Mirror
from sim2or.artifacts.store import Store
url, here, there, digest = sys.argv[1:]
mirror = Mirror(url)
mirror.check()
def peak_kb():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak_kb()
mirror.push(Store(Path(here)), digest)
mirror.fetch(Store(Path(there)), digest)
print((peak_kb() - before) // 1000)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, far.url, here.root, tmp_path / "there", digest],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert int(done.stdout) < 130


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/x", "unknown scheme 'ftp'; valid: az, file, gs, s3"),
        ("sim2or", "unknown scheme ''"),
        ("s3:///prefix", "give s3://BUCKET/PREFIX"),
        ("file://host/x", "give s3://BUCKET/PREFIX or file:///DIRECTORY"),
        ("file:///", "give s3://BUCKET/PREFIX or file:///DIRECTORY"),
        ("s3://bucket/../other", "the prefix '/../other' holds '..'"),
        ("s3://key:hidden@bucket/x", "credentials belong into AWS_ACCESS_KEY_ID"),
        ("s3://bucket/x?secret=hidden", "credentials belong into AWS_ACCESS_KEY_ID"),
        ("file:///nowhere/at/all", "no such directory on this host; make it or mount it"),
    ],
)
def test_a_wrong_address_is_refused_at_the_start(url: str, said: str) -> None:
    """The message names the setting and what would be right, and never repeats a secret."""
    with pytest.raises(ConfigError, match="SIM2OR_MIRROR") as caught:
        check_mirror(url)
    assert said in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_server_of_ones_own_needs_a_key(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody goes looking for a cloud's credentials when the endpoint is no cloud's."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    with pytest.raises(ConfigError, match="set AWS_ACCESS_KEY_ID"):
        check_mirror(f"s3://{BUCKET}/x")


@pytest.mark.parametrize(
    ("bucket", "changes", "said"),
    [
        ("nowhere", {}, "NoSuchBucket.*make the bucket, or correct SIM2OR_MIRROR"),
        (BUCKET, {"AWS_SECRET_ACCESS_KEY": "hidden"}, "SignatureDoesNotMatch.*check AWS_ACCESS_KEY_ID"),
        (BUCKET, {"AWS_ACCESS_KEY_ID": "unknown"}, "InvalidAccessKeyId.*check AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_server_that_refuses_ends_the_start(
    guarded: ObjectServer,
    monkeypatch: pytest.MonkeyPatch,
    bucket: str,
    changes: dict[str, str],
    said: str,
) -> None:
    """A missing bucket and a wrong key are found before any job is taken; no secret is in the message."""
    for name, value in (guarded.variables | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"(?s)SIM2OR_MIRROR=s3://{bucket}/x at http.*{said}") as caught:
        check_mirror(f"s3://{bucket}/x")
    assert "hidden" not in str(caught.value)
    assert guarded.secret not in str(caught.value)


def test_a_key_that_is_right_is_let_in(
    guarded: ObjectServer, monkeypatch: pytest.MonkeyPatch, here: Store, there: Store, tmp_path: Path
) -> None:
    """With list, get and put on the bucket everything works; a right lost later is worth another try."""
    for name, value in guarded.variables.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{BUCKET}/{tmp_path.name}"
    check_mirror(url)
    digest = put(here, tmp_path / "a").digest
    Mirror(url).push(here, digest)
    Mirror(url).fetch(there, digest)
    assert there.holds(digest)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    with pytest.raises(TransientError, match="check AWS_ACCESS_KEY_ID") as caught:
        Mirror(url).push(here, put(here, tmp_path / "b", b"2").digest)
    assert "hidden" not in str(caught.value)


def test_a_server_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch, server: ObjectServer) -> None:
    """A service starts before its object store does; whoever needs it then is told where it should be."""
    for name, value in server.through(1).items():
        monkeypatch.setenv(name, value)
    check_mirror(f"s3://{BUCKET}/x")
    with pytest.raises(
        TransientError, match=r"s3://.* at http://127\.0\.0\.1:1: .*no connection.*AWS_ENDPOINT_URL"
    ):
        Mirror(f"s3://{BUCKET}/x", patience_s=1.0).holds("sha256:" + "0" * 64)


def test_a_record_is_written_once(mirror: Mirror, far: Far) -> None:
    """The first record of a name stays, whoever comes later; names lead nowhere else."""
    name = "answers/ab/cdef.json"
    assert mirror.get_record(name) is None
    assert mirror.put_record(name, b'{"a": 1}') == b'{"a": 1}'
    assert mirror.put_record(name, b'{"a": 2}') == b'{"a": 1}'
    assert mirror.get_record(name) == b'{"a": 1}'
    for wrong in ("../x.json", "answers/../x.json", "/x.json", "x", "Answers/x.json"):
        with pytest.raises(ConfigError, match="expected lower-case"):
            mirror.put_record(wrong, b"{}")
    with pytest.raises(ConfigError, match="at most"):
        mirror.put_record(name, bytes(100_000))


def test_a_mirrored_store_fetches_what_it_lacks(
    mirror: Mirror, far: Far, here: Store, tmp_path: Path
) -> None:
    """Where a mirror is set, an artifact is checked out, found, and counted as held, wherever it was made."""
    digest = put(here, tmp_path / "a", b"mirrored").digest
    mirror.push(here, digest)
    store = open_store(tmp_path / "there", far.url)
    assert store.holds(digest)
    assert store.find(digest[:15]) == digest
    assert not Store(store.root).holds(digest)
    assert (store.checkout(digest) / "x").read_bytes() == b"mirrored"
    assert Store(store.root).holds(digest)
    with pytest.raises(ConfigError, match="sim2or store push"):
        store.manifest("sha256:" + "0" * 64)


def test_a_file_damaged_here_is_fetched_again(mirror: Mirror, far: Far, here: Store, tmp_path: Path) -> None:
    """A mirrored store puts a damaged file into quarantine and a whole one in its place."""
    manifest = put(here, tmp_path / "a", b"right")
    mirror.push(here, manifest.digest)
    path = here.object_path(manifest.files[0].digest)
    path.chmod(0o644)
    path.write_bytes(b"wrong")
    store = MirroredStore(here.root, mirror)
    assert (store.checkout(manifest.digest) / "x").read_bytes() == b"right"
    assert [p.name for p in (here.root / "quarantine").iterdir()] == [path.name]


def test_without_a_mirror_the_message_names_the_setting(here: Store) -> None:
    """A store that lacks an artifact says how hosts share theirs."""
    with pytest.raises(ConfigError, match="SIM2OR_MIRROR"):
        open_store(here.root).manifest("sha256:" + "0" * 64)
