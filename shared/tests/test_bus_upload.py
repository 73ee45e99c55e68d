"""Artifacts on their way between two stores, over real sockets and onto a real disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq
from sim2or.artifacts.intake import StoreIntake
from sim2or.artifacts.manifest import FileEntry, Manifest, digest_of
from sim2or.artifacts.store import Store
from sim2or.bus import sockets
from sim2or.bus.descriptor import MAX_WAITING, Files, hand_over
from sim2or.bus.keys import Keyring, load_keyring, make
from sim2or.bus.receiver import Receiver
from sim2or.bus.reception import Limits
from sim2or.bus.upload import Uploader
from sim2or.errors import ConfigError, JobError, MessageError, TransientError
from sim2or.messages.codec import decode, encode
from sim2or.messages.envelope import Origin
from sim2or.messages.message import Message
from sim2or.messages.upload import (
    MAX_CHUNK_BYTES,
    UploadChunk,
    UploadError,
    UploadFile,
    UploadGrant,
    UploadOffer,
    UploadStored,
)

Eventually = Callable[..., None]
SMALL = Limits(window_bytes=64 * 1024, spare_bytes=0)
CHUNK = 16 * 1024


@pytest.fixture
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A unix socket in a short directory."""
    return f"ipc://{tmp_path_factory.mktemp('s')}/u"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The sender's store."""
    return Store(tmp_path / "from")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Root of the receiver's store."""
    return tmp_path / "there"


def made(store: Store, **files: bytes) -> str:
    """Stores an artifact with some files."""
    tree = store.root.parent / f"tree-{os.urandom(4).hex()}"
    tree.mkdir()
    for name, data in files.items():
        (tree / name).write_bytes(data)
    return store.put(tree, kind="episodes", meta={"stage": "collect"}, producer={"job": "j"}).digest


def stored(root: Path, digest: str) -> dict[str, bytes]:
    """The files of an artifact as another process would see them, verified."""
    return {path.name: path.read_bytes() for path in Store(root).checkout(digest).iterdir()}


@contextmanager
def receiving(
    endpoint: str, there: Path, limits: Limits = SMALL, ring: Keyring | None = None
) -> Iterator[Receiver]:
    """A receiver that serves in a thread."""
    stopped = threading.Event()
    with closing(StoreIntake(there)) as intake:
        receiver = Receiver(endpoint, intake, limits=limits, keys=ring)
        thread = threading.Thread(target=receiver.run, args=(stopped.is_set,))
        thread.start()
        try:
            yield receiver
        finally:
            stopped.set()
            thread.join(10)
            assert not thread.is_alive()


@contextmanager
def sending(endpoint: str, *, patience_s: float = 20.0, hand_over: bool = False) -> Iterator[Uploader]:
    """A sender with small messages."""
    uploader = Uploader(
        endpoint, Origin("sim"), chunk_bytes=CHUNK, patience_s=patience_s, hand_over=hand_over
    )
    with closing(uploader):
        yield uploader


@contextmanager
def stranger(endpoint: str) -> Iterator[Callable[[Message], Message]]:
    """A peer that sends single messages and returns the next answer."""
    raw, origin = sockets.open_socket(zmq.DEALER, hwm=100), Origin("stranger")
    sockets.connect(raw, endpoint)

    def tell(message: Message) -> None:
        assert raw.poll(5000, zmq.POLLOUT)
        assert sockets.send(raw, encode(message, origin.envelope(message)))

    def ask(message: Message) -> Message:
        tell(message)
        assert raw.poll(5000, zmq.POLLIN), "no answer"
        return decode(raw.recv_multipart(), UploadGrant, UploadStored, UploadError)[1]

    ask.tell = tell  # type: ignore[attr-defined]

    try:
        yield ask
    finally:
        raw.close()


def offer_of(manifest: Manifest, artifact: str = "") -> UploadOffer:
    """The offer of a manifest, perhaps under another name."""
    text = np.frombuffer(manifest.model_dump_json().encode(), np.uint8)
    return UploadOffer(artifact=artifact or manifest.digest, manifest=text)


def chunk_of(artifact: str, data: bytes, *, file: str = "", offset: int = 0) -> UploadChunk:
    """Some bytes of a file; of the file that they are themselves unless another is named."""
    return UploadChunk(
        artifact=artifact,
        file=file or digest_of(data),
        offset_bytes=offset,
        data=np.frombuffer(data, np.uint8),
    )


@pytest.mark.parametrize("endpoint", ["ipc", "tcp://127.0.0.1:*"])
def test_an_artifact_arrives_whole(
    endpoint: str, store: Store, there: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every file is there bit by bit, under the same digest, and what it was made from is told with it."""
    if endpoint == "ipc":
        endpoint = f"ipc://{tmp_path_factory.mktemp('s')}/u"
    files = {"large.h5": os.urandom(1_000_003), "small.json": b"{}", "empty.txt": b""}
    digest = made(store, **files)
    told: list[tuple[int, int]] = []
    with receiving(endpoint, there) as receiver, sending(receiver.endpoint) as uploader:
        uploader.push(store, digest, progress=lambda done, total: told.append((done, total)))
        assert stored(there, digest) == files
        assert Store(there).manifest(digest).producer == {"job": "j"}
        assert uploader.counts.sent_bytes == receiver.counts.received_bytes == 1_000_005
        assert (uploader.counts.pushed, uploader.counts.resent_bytes) == (1, 0)
        assert (receiver.counts.stored, receiver.counts.stored_files) == (1, 3)
    assert told[-1] == (1_000_005, 1_000_005)
    assert list((there / "incoming").iterdir()) == []


def test_on_one_host_the_file_itself_is_handed_over(endpoint: str, store: Store, there: Path) -> None:
    """No byte of a large file crosses the socket, also of one that broke off; small ones are sent."""
    files = {"large.h5": os.urandom(1_000_003), "begun.h5": os.urandom(700_000), "small.json": b"{}"}
    digest = made(store, **files)
    (there / "incoming").mkdir(parents=True)
    part = there / "incoming" / digest_of(files["begun.h5"]).removeprefix("sha256:")
    part.write_bytes(files["begun.h5"][:200_001])
    with receiving(endpoint, there) as receiver, sending(endpoint, hand_over=True) as uploader:
        uploader.push(store, digest)
        assert stored(there, digest) == files
        assert (uploader.counts.sent_bytes, receiver.counts.received_bytes) == (2, 2)
        assert uploader.counts.handed_bytes == receiver.counts.taken_bytes == 1_500_002
    assert not Path(f"{endpoint.removeprefix('ipc://')}.files").exists()


def test_what_cannot_be_handed_over_is_sent(endpoint: str, store: Store, there: Path) -> None:
    """A receiver beside which no file can be put, or which never got it, is sent the bytes."""
    first, second = made(store, a=os.urandom(600_000)), made(store, b=os.urandom(600_000))
    beside = Path(f"{endpoint.removeprefix('ipc://')}.files")
    with receiving(endpoint, there), sending(endpoint, hand_over=True) as uploader:
        beside.unlink()
        uploader.push(store, first)
        with closing(Files(endpoint)):  # somebody else takes the files
            uploader.push(store, second)
        assert uploader.counts.sent_bytes == 1_200_000
    assert all(Store(there).holds(digest) for digest in (first, second))


def test_only_plain_files_are_taken(endpoint: str, there: Path) -> None:
    """A pipe that is handed over, or a token of nothing, is answered; the receiver never waits for it."""
    wanted = digest_of(b"a" * 300_000)
    manifest = Manifest(kind="x", files=(FileEntry(path="f", digest=wanted, size_bytes=300_000),))
    read, write = os.pipe()
    with receiving(endpoint, there), stranger(endpoint) as ask:
        for token in (hand_over(endpoint, read), "0" * 32):
            assert isinstance(ask(offer_of(manifest)), UploadGrant)
            answer = ask(UploadFile(artifact=manifest.digest, file=wanted, token=token))
            assert isinstance(answer, UploadError)
            assert answer.code == "no_file"
    os.close(read)
    os.close(write)


def test_a_file_that_is_handed_over_too_short_is_told(endpoint: str, there: Path, tmp_path: Path) -> None:
    """The receiver does not wait for the rest of a file that ends early, and keeps nothing of it."""
    wanted = digest_of(b"a" * 300_000)
    manifest = Manifest(kind="x", files=(FileEntry(path="f", digest=wanted, size_bytes=300_000),))
    (tmp_path / "short").write_bytes(b"a" * 299_999)
    with receiving(endpoint, there), stranger(endpoint) as ask, (tmp_path / "short").open("rb") as file:
        assert isinstance(ask(offer_of(manifest)), UploadGrant)
        token = hand_over(endpoint, file.fileno())
        answer = ask(UploadFile(artifact=manifest.digest, file=wanted, token=token))
        assert isinstance(answer, UploadError)
        assert answer.code == "corrupt"
        assert "ends at 299999 of 300000 bytes" in answer.detail
    assert list((there / "incoming").iterdir()) == []


def test_files_that_nobody_asks_for_are_closed(endpoint: str, tmp_path: Path) -> None:
    """Whoever hands over files without end does not exhaust the receiver's descriptors."""
    (tmp_path / "f").write_bytes(b"x")
    with closing(Files(endpoint)) as files, (tmp_path / "f").open("rb") as file:
        first = hand_over(endpoint, file.fileno())
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3 * MAX_WAITING):
            hand_over(endpoint, file.fileno())
            files.take("none")
        assert len(os.listdir("/proc/self/fd")) - before <= MAX_WAITING
        assert files.take(first) is None


def test_many_files_that_only_lack_their_names_are_finished(endpoint: str, store: Store, there: Path) -> None:
    """After a crash between writing and flushing, hundreds of whole files get their names; none is sent."""
    files = {f"{number}.json": str(number).encode() for number in range(400)}
    digest = made(store, **files)
    (there / "incoming").mkdir(parents=True)
    for data in files.values():
        (there / "incoming" / digest_of(data).removeprefix("sha256:")).write_bytes(data)
    with receiving(endpoint, there) as receiver, sending(endpoint) as uploader:
        uploader.push(store, digest)
        assert (uploader.counts.sent_bytes, receiver.counts.stored_files) == (0, 400)
    assert stored(there, digest) == files


def test_many_small_files_are_sent(endpoint: str, store: Store, there: Path) -> None:
    """An artifact of hundreds of files needs no more descriptors than one of a few."""
    files = {f"{number}.json": str(number).encode() for number in range(300)}
    digest = made(store, **files)
    with receiving(endpoint, there), sending(endpoint) as uploader:
        uploader.push(store, digest)
    assert stored(there, digest) == files


def test_what_is_there_is_not_sent_again(endpoint: str, store: Store, there: Path) -> None:
    """An artifact that is there costs one question; one that shares a file sends only the other files."""
    first, both = made(store, a=b"a" * 50_000), made(store, a=b"a" * 50_000, b=b"b" * 1_000)
    with receiving(endpoint, there) as receiver, sending(endpoint) as uploader:
        uploader.push(store, first)
        uploader.push(store, first)
        assert (uploader.counts.deduplicated, uploader.counts.sent_bytes) == (1, 50_000)
        uploader.push(store, both)
        assert uploader.counts.sent_bytes == 51_000
        assert receiver.counts.deduplicated_files == 1
        assert stored(there, both) == {"a": b"a" * 50_000, "b": b"b" * 1_000}


def test_a_file_that_broke_off_is_gone_on_with(endpoint: str, store: Store, there: Path) -> None:
    """What an earlier receiver wrote before it was killed is not sent again."""
    data = os.urandom(300_000)
    digest = made(store, episode=data)
    (there / "incoming").mkdir(parents=True)
    (there / "incoming" / digest_of(data).removeprefix("sha256:")).write_bytes(data[:200_001])
    with receiving(endpoint, there) as receiver, sending(endpoint) as uploader:
        uploader.push(store, digest)
        assert uploader.counts.sent_bytes == 99_999
        assert uploader.counts.resumed_bytes == receiver.counts.resumed_bytes == 200_001
    assert stored(there, digest) == {"episode": data}


def test_a_damaged_beginning_is_thrown_away(endpoint: str, store: Store, there: Path) -> None:
    """When the disk lost what was written before a crash, the file is sent again from its start."""
    data = os.urandom(300_000)
    digest = made(store, episode=data)
    (there / "incoming").mkdir(parents=True)
    (there / "incoming" / digest_of(data).removeprefix("sha256:")).write_bytes(b"\0" * 200_000)
    with receiving(endpoint, there) as receiver, sending(endpoint) as uploader:
        uploader.push(store, digest)
        assert (receiver.counts.corrupt, uploader.counts.corrupt) == (1, 0)
    assert stored(there, digest) == {"episode": data}


def test_a_sender_survives_a_restart_of_its_receiver(endpoint: str, store: Store, there: Path) -> None:
    """A receiver that goes away in the middle and comes back gets the rest; nothing is sent for nothing."""
    data = os.urandom(2_000_000)
    digest = made(store, episode=data)
    with sending(endpoint) as uploader:
        thread = threading.Thread(target=uploader.push, args=(store, digest))
        with closing(StoreIntake(there)) as intake:
            first = Receiver(endpoint, intake, limits=SMALL)
            thread.start()
            while first.counts.received_bytes < 500_000:
                first.step(0.1)
            first.close()
        assert not Store(there).holds(digest)
        with receiving(endpoint, there) as second:
            thread.join(20)
            assert not thread.is_alive()
            assert second.counts.resumed == 1
            assert first.counts.received_bytes + second.counts.received_bytes == 2_000_000
    assert stored(there, digest) == {"episode": data}


def test_a_sender_never_exceeds_its_credits(endpoint: str, store: Store, there: Path) -> None:
    """While nobody writes at the other end, no more than the window is on its way."""
    digest = made(store, episode=os.urandom(500_000))
    with closing(StoreIntake(there)) as intake, sending(endpoint) as uploader:
        receiver = Receiver(endpoint, intake, limits=SMALL)
        thread = threading.Thread(target=uploader.push, args=(store, digest))
        thread.start()
        while thread.is_alive():
            receiver.step(0.01)
            assert uploader.counts.sent_bytes - receiver.counts.received_bytes <= SMALL.window_bytes
        thread.join()
        receiver.close()
    assert receiver.counts.rejected == 0


def test_uploads_share_the_credits(endpoint: str, store: Store, there: Path) -> None:
    """Many senders together have no more credits than the receiver has room for, and all get through."""
    limits = Limits(window_bytes=64 * 1024, in_flight_bytes=96 * 1024, spare_bytes=0)
    digests = [made(store, episode=os.urandom(200_000)) for _ in range(5)]

    def push(digest: str) -> None:
        with sending(endpoint) as uploader:
            uploader.push(store, digest)

    with receiving(endpoint, there, limits):
        threads = [threading.Thread(target=push, args=(digest,)) for digest in digests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
    assert all(Store(there).holds(digest) for digest in digests)


def test_two_senders_of_one_artifact_make_one_result(endpoint: str, store: Store, there: Path) -> None:
    """Who comes second does not write into the first one's file; both hear that it is stored."""
    data = os.urandom(1_000_000)
    digest = made(store, episode=data, other=data[:1000])
    start = threading.Barrier(4)

    def push() -> None:
        with sending(endpoint) as uploader:
            start.wait(10)
            uploader.push(store, digest)
            assert uploader.counts.pushed == 1

    with receiving(endpoint, there) as receiver:
        threads = [threading.Thread(target=push) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert receiver.counts.stored_files == 2
        assert receiver.counts.received_bytes == 1_001_000
    assert stored(there, digest) == {"episode": data, "other": data[:1000]}


def test_the_second_sender_takes_over_from_a_silent_one(endpoint: str, store: Store, there: Path) -> None:
    """A sender that says nothing more does not keep others from sending the same file."""
    data = os.urandom(200_000)
    digest = made(store, episode=data)
    limits = Limits(window_bytes=64 * 1024, spare_bytes=0, contested_s=0.2)
    with receiving(endpoint, there, limits) as receiver, stranger(endpoint) as ask:
        assert isinstance(ask(offer_of(store.manifest(digest))), UploadGrant)
        with sending(endpoint) as uploader:
            uploader.push(store, digest)
        assert receiver.counts.expired >= 1
    assert stored(there, digest) == {"episode": data}


def test_too_many_uploads_hear_busy_and_wait(endpoint: str, store: Store, there: Path) -> None:
    """A sender beyond the limit is told the numbers and gets through when there is room."""
    first, second = made(store, a=b"a" * 1000), made(store, b=b"b" * 1000)
    limits = Limits(uploads=1, spare_bytes=0, idle_s=0.5)
    with receiving(endpoint, there, limits) as receiver, stranger(endpoint) as ask:
        assert isinstance(ask(offer_of(store.manifest(first))), UploadGrant)
        with sending(endpoint) as uploader:
            uploader.push(store, second)
            assert uploader.counts.busy >= 1
        assert receiver.counts.busy >= 1
    assert Store(there).holds(second)


def test_a_full_disk_is_told_with_its_numbers(endpoint: str, store: Store, there: Path) -> None:
    """No byte is taken that the disk has no room for; the error names what is needed, free and spared."""
    digest = made(store, a=b"a" * 1000)
    limits = Limits(spare_bytes=2**62)
    with receiving(endpoint, there, limits) as receiver, stranger(endpoint) as ask:
        answer = ask(offer_of(store.manifest(digest)))
        assert isinstance(answer, UploadError)
        assert answer.code == "no_space"
        assert answer.detail.startswith("1000 bytes are to come and 0 of others, ")
        assert f"{2**62} stay free" in answer.detail
        with (
            sending(endpoint, patience_s=0.5) as uploader,
            pytest.raises(TransientError, match="1000 of 1000"),
        ):
            uploader.push(store, digest)
        assert receiver.counts.received_bytes == 0
    with receiving(endpoint, there), sending(endpoint) as uploader:
        uploader.push(store, digest)


def test_without_a_receiver_a_push_ends_in_time(endpoint: str, store: Store) -> None:
    """Nobody there: a TransientError that names the endpoint and what is still to come."""
    digest = made(store, a=b"a" * 1000)
    with sending(endpoint, patience_s=0.3) as uploader:
        with pytest.raises(
            TransientError, match=f"to {endpoint}: nothing came forward for 0.3 s; 1000 of 1000"
        ):
            uploader.push(store, digest)
        assert uploader.counts.offered == 0


def test_a_push_can_be_cancelled(endpoint: str, store: Store) -> None:
    """What the progress raises ends the push, also while there is nobody to send to."""

    class Stop(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    with sending(endpoint) as uploader, pytest.raises(Stop):
        uploader.push(store, made(store, a=b"a"), progress=stop)


def test_damaged_files_are_found_out(endpoint: str, store: Store, there: Path) -> None:
    """Bytes that lost their digest in the sender's store are refused there, and the error says which file."""
    data = os.urandom(100_000)
    digest = made(store, episode=data)
    damaged = store.root / "objects" / digest_of(data)[7:9] / digest_of(data)[9:]
    damaged.chmod(0o644)
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with receiving(endpoint, there) as receiver, sending(endpoint) as uploader:
        with pytest.raises(JobError, match="episode: stored bytes have digest"):
            uploader.push(store, digest)
        assert (receiver.counts.corrupt, uploader.counts.corrupt) == (1, 1)
    assert not Store(there).holds(digest)
    assert list((there / "incoming").iterdir()) == []
    assert list((there / "objects").glob("*/*")) == []


def test_a_file_of_the_wrong_size_is_not_sent(endpoint: str, store: Store, there: Path) -> None:
    """A truncated file is a JobError before a byte of it leaves."""
    data = os.urandom(1000)
    digest = made(store, episode=data)
    damaged = store.root / "objects" / digest_of(data)[7:9] / digest_of(data)[9:]
    damaged.chmod(0o644)
    damaged.write_bytes(data[:-1])
    with (
        receiving(endpoint, there),
        sending(endpoint) as uploader,
        pytest.raises(JobError, match="has 999 bytes, expected 1000"),
    ):
        uploader.push(store, digest)


def test_a_digest_that_the_bytes_do_not_have_is_told(endpoint: str, there: Path) -> None:
    """The sender hears which digest its bytes have; nothing of them stays."""
    wanted = digest_of(b"what was promised")
    manifest = Manifest(kind="x", files=(FileEntry(path="f", digest=wanted, size_bytes=5),))
    with receiving(endpoint, there) as receiver, stranger(endpoint) as ask:
        assert isinstance(ask(offer_of(manifest)), UploadGrant)
        answer = ask(chunk_of(manifest.digest, b"other", file=wanted))
        assert isinstance(answer, UploadError)
        assert (answer.code, answer.artifact) == ("corrupt", manifest.digest)
        assert digest_of(b"other") in answer.detail
        assert wanted in answer.detail
        assert receiver.counts.corrupt == 1
    assert list((there / "incoming").iterdir()) == []


def test_only_digests_name_files(endpoint: str, there: Path) -> None:
    """A manifest whose paths leave the artifact, or whose digests are paths, is refused with its reason."""
    good = FileEntry(path="f", digest=digest_of(b"x"), size_bytes=1)
    with receiving(endpoint, there) as receiver, stranger(endpoint) as ask:
        for wrong, said in (
            (good.model_copy(update={"path": "../../etc/passwd"}), "leaves the artifact"),
            (good.model_copy(update={"path": "/etc/passwd"}), "leaves the artifact"),
            (good.model_copy(update={"digest": "../../../../tmp/x"}), "is not a digest"),
            (good.model_copy(update={"size_bytes": -1}), "files.0.size_bytes"),
        ):
            answer = ask(offer_of(Manifest.model_construct(kind="x", files=(wrong,)), digest_of(b"y")))
            assert isinstance(answer, UploadError)
            assert answer.code == "refused"
            assert said in answer.detail
        assert receiver.counts.rejected == 4
    assert not [path for path in there.rglob("*") if path.is_file() and path.name != "incoming.lock"]


def test_a_contradictory_manifest_is_refused(endpoint: str, there: Path) -> None:
    """Another artifact's manifest, and one file with two sizes, are refused."""
    entries = [
        FileEntry(path=name, digest=digest_of(b"x"), size_bytes=size) for name, size in (("a", 1), ("b", 2))
    ]
    one, two = (Manifest(kind="x", files=tuple(entries[:count])) for count in (1, 2))
    with receiving(endpoint, there), stranger(endpoint) as ask:
        answers = [ask(offer_of(one, two.digest)), ask(offer_of(two))]
    assert all(isinstance(answer, UploadError) and answer.code == "refused" for answer in answers)
    assert "the offer says" in answers[0].detail  # type: ignore[attr-defined]
    assert "b: " in answers[1].detail  # type: ignore[attr-defined]
    assert "another size" in answers[1].detail  # type: ignore[attr-defined]


def test_a_message_that_was_lost_is_asked_for_again(endpoint: str, there: Path) -> None:
    """After a gap the receiver says once where to go on; what comes twice is written once."""
    data = os.urandom(15_000)
    parts = [data[at : at + 5_000] for at in (0, 5_000, 10_000)]
    entry = FileEntry(path="f", digest=digest_of(data), size_bytes=15_000)
    manifest = Manifest(kind="x", files=(entry,))

    def chunk(number: int) -> UploadChunk:
        return chunk_of(manifest.digest, parts[number], file=entry.digest, offset=5_000 * number)

    with receiving(endpoint, there) as receiver, stranger(endpoint) as ask:
        first = ask(offer_of(manifest))
        rewound = ask(chunk(1))
        assert isinstance(first, UploadGrant)
        assert rewound == first
        for number in (2, 0, 0, 1, 0):
            ask.tell(chunk(number))  # type: ignore[attr-defined]
        assert isinstance(ask(chunk(2)), UploadStored)
        assert (receiver.counts.gaps, receiver.counts.repeated_bytes) == (2, 10_000)
    assert stored(there, manifest.digest) == {"f": data}


def test_with_keys_only_known_senders_are_let_in(store: Store, there: Path, tmp_path: Path) -> None:
    """Over encrypted tcp a stage's upload works; a sender without keys gets nothing through."""
    digest = made(store, a=os.urandom(100_000))
    make(tmp_path / "keys")
    with receiving("tcp://127.0.0.1:*", there, ring=load_keyring(tmp_path / "keys", "dataset")) as receiver:
        with sending(receiver.endpoint, patience_s=1.0) as unknown, pytest.raises(TransientError):
            unknown.push(store, digest)
        assert receiver.counts.offered == 0
        ring = load_keyring(tmp_path / "keys", "sim")
        with closing(Uploader(receiver.endpoint, Origin("sim"), keys=ring)) as uploader:
            uploader.push(store, digest)
    assert Store(there).holds(digest)


def test_who_ignores_the_protocol_is_told(endpoint: str, there: Path) -> None:
    """Bytes without an offer, beyond the credits, or too many in one message: each has its answer."""
    wanted = digest_of(b"a" * 200_000)
    manifest = Manifest(kind="x", files=(FileEntry(path="f", digest=wanted, size_bytes=200_000),))
    with receiving(endpoint, there) as receiver, stranger(endpoint) as ask:
        unknown = ask(chunk_of(manifest.digest, b"a", file=wanted))
        assert isinstance(unknown, UploadError)
        assert unknown.code == "unknown"
        grant = ask(offer_of(manifest))
        assert isinstance(grant, UploadGrant)
        assert (grant.file, grant.written_bytes, grant.limit_bytes) == (wanted, 0, 65_536)
        gap = ask(chunk_of(manifest.digest, b"a" * 10, file=wanted, offset=10))
        assert isinstance(gap, UploadGrant)
        assert gap.rewind
        greedy = ask(chunk_of(manifest.digest, b"a" * 65_537, file=wanted))
        assert isinstance(greedy, UploadError)
        assert greedy.detail == "bytes up to 65537 came, 65536 were granted; wait for credits"
        assert receiver.counts.received_bytes == 0
        assert (receiver.counts.unknown, receiver.counts.gaps, receiver.counts.rejected) == (1, 1, 1)


def test_a_chunk_that_is_too_large_cannot_be_made() -> None:
    """The message names the limit."""
    with pytest.raises(ValueError, match=f"{MAX_CHUNK_BYTES + 1} bytes; at most {MAX_CHUNK_BYTES}"):
        chunk_of("sha256:" + "0" * 64, bytes(MAX_CHUNK_BYTES + 1), file="sha256:" + "0" * 64)


def test_a_malformed_message_is_refused_and_survived(endpoint: str, store: Store, there: Path) -> None:
    """Rubbish at the receiver's socket is answered and counted, and the next upload works."""
    with receiving(endpoint, there) as receiver:
        raw = sockets.open_socket(zmq.DEALER, hwm=10)
        sockets.connect(raw, endpoint)
        for wrong in ([b"x"], [b"upload_chunk", b"{}"], [b"", b"\xff", b""]):
            assert raw.poll(5000, zmq.POLLOUT)
            raw.send_multipart(wrong)
            assert raw.poll(5000, zmq.POLLIN)
            _, answer = decode(raw.recv_multipart(), UploadError)
            assert answer.code == "refused"
        raw.close()
        assert receiver.router_counts.malformed == 3
        with sending(endpoint) as uploader:
            uploader.push(store, made(store, a=b"a"))


def test_a_refusal_ends_a_push(endpoint: str, store: Store, there: Path) -> None:
    """A receiver that does not accept the artifact's manifest: a MessageError, which is not tried again."""
    digest = made(store, a=b"a")
    manifest = store.manifest(digest)
    path = store.root / "manifests" / digest[7:9] / f"{digest[9:]}.json"
    path.chmod(0o644)
    path.write_text(manifest.model_copy(update={"producer": {"note": "x" * 9_000_000}}).model_dump_json())
    with (
        receiving(endpoint, there),
        sending(endpoint) as uploader,
        pytest.raises(MessageError, match="8388608"),
    ):
        uploader.push(store, digest)


def test_an_unknown_artifact_is_told_at_once(endpoint: str, store: Store) -> None:
    """A digest that is not in the sender's store is an error before anything is sent."""
    with sending(endpoint) as uploader, pytest.raises(ConfigError, match="no artifact"):
        uploader.push(store, "sha256:" + "0" * 64)


def test_one_receiver_has_a_store(there: Path) -> None:
    """A second receiver on the same store refuses to start."""
    with closing(StoreIntake(there)), pytest.raises(ConfigError, match="another receiver"):
        StoreIntake(there)
    StoreIntake(there).close()


def test_what_nobody_goes_on_with_is_removed(there: Path) -> None:
    """Beginnings of files that are older than the limit are gone at the next start; younger ones stay."""
    (there / "incoming").mkdir(parents=True)
    old, young = (there / "incoming" / (digit * 64) for digit in "01")
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    StoreIntake(there).close()
    assert not old.exists()
    assert young.exists()
