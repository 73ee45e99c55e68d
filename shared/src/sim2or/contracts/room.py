"""Rooms: the parts of an operating room of one's own, each a file with its pose, mass, label and licence.

A manifest is a YAML file beside its parts. It names every file that is read, with its digest, so that the
manifest's digest stands for the whole room.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from sim2or.contracts.geometry import Fraction, Friction, Positive, Quaternion, Vector
from sim2or.contracts.profile import Profile, load_profile
from sim2or.errors import ConfigError, choices
from sim2or.messages.message import Spec

FORMATS = {".obj": "OBJ", ".glb": "GLB", ".usd": "USD", ".usda": "USD", ".usdc": "USD", ".xml": "MJCF"}
MANIFEST = "room.yaml"
_BUNDLED = Path(__file__).with_name("rooms")
_UNIT_TOLERANCE = 1e-3
_MAX_BYTES = 64 * 2**20
_DIGITS = re.compile(r"[0-9a-f]{64}")


class Label(StrEnum):
    """What a part is, for segmentation."""

    TABLE = "table"
    BED = "bed"
    LAMP = "lamp"
    STAND = "stand"
    MONITOR = "monitor"
    PATIENT = "patient"
    STAFF = "staff"
    INSTRUMENT = "instrument"
    CONTAINER = "container"
    CART = "cart"
    CABINET = "cabinet"
    CHAIR = "chair"
    CABLE = "cable"
    DRAPE = "drape"
    FLOOR = "floor"
    WALL = "wall"
    DOOR = "door"
    OTHER = "other"


class Fitting(StrEnum):
    """What of the built-in room may stay beside one's own parts."""

    FLOOR = "floor"
    WALLS = "walls"
    MONITOR = "monitor"
    LAMPS = "lamps"
    DRAPE = "drape"


def _license(expression: str) -> str:
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression  # not everywhere

    try:
        return str(canonicalize_license_expression(expression))
    except InvalidLicenseExpression as error:
        raise ValueError(
            f"{error}; give an SPDX expression such as Apache-2.0, CC-BY-4.0 or LicenseRef-ours"
        ) from error


def _unit(quaternion: Quaternion) -> Quaternion:
    length = sum(value * value for value in quaternion) ** 0.5
    if abs(length - 1.0) > _UNIT_TOLERANCE:
        raise ValueError(
            f"length {length:.4g}; a turn has length 1 (order w, x, y, z; no turn: [1, 0, 0, 0])"
        )
    return quaternion


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise ValueError(
            "outside the manifest's directory; copy the file beside the manifest and name it there"
        )
    return name


Inside = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
License = Annotated[str, AfterValidator(_license)]


class RoomPart(Spec):
    """One rigid thing in the room. Its frame: the file's own, turned so that z is up.

    Attributes:
        name: Its name in both engines.
        file: OBJ, GLB, USD or MJCF, relative to the manifest.
        sha256: Of that file.
        beside: Further files that the file reads (``table.mtl``), to their digests; nothing else is read.
        label: What it is.
        license: SPDX expression under which the file may be used.
        source: Who made it, or where it is from.
        at_m: Origin, in the robot's base frame: x forward, y left, z up from the robot's table [m].
        turn_wxyz: Unit quaternion, its frame in the robot's base frame.
        scale: Multiplies the file's lengths; 0.001 for a file in millimetres.
        up: Which axis of the file is up; default as the format has it (GLB y, OBJ and MJCF z, USD says it).
        collision: What touches pads, instruments and free parts: nothing, its box, its convex hull, or the
            hull of each connected piece of its surface.
        motion: Whether it stays where it is, or moves when it is pushed.
        mass_kg: Mass; needed by what moves [kg].
        friction: Of its surface.
        color: Red, green, blue in 0–1 instead of the file's own colours.
        gloss: 0 dull … 1 mirror-like.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
    file: Inside
    sha256: Sha256
    beside: dict[Inside, Sha256] = Field(default_factory=dict)
    label: Label
    license: License
    source: str = ""
    at_m: Vector
    turn_wxyz: Annotated[Quaternion, AfterValidator(_unit)] = (1.0, 0.0, 0.0, 0.0)
    scale: Positive = 1.0
    up: Literal["y", "z"] | None = None
    collision: Literal["none", "box", "hull", "pieces"] = "none"
    motion: Literal["fixed", "free"] = "fixed"
    mass_kg: Positive | None = None
    friction: Friction = Friction(slide=0.6)
    color: tuple[Fraction, Fraction, Fraction] | None = None
    gloss: Fraction = 0.3

    @model_validator(mode="after")
    def _possible(self) -> Self:
        suffix = PurePosixPath(self.file).suffix.lower()
        if suffix not in FORMATS:
            raise ValueError(f"file {self.file!r}: {choices(suffix, FORMATS)}")
        if self.motion == "free" and (self.mass_kg is None or self.collision == "none"):
            raise ValueError(
                f"motion 'free' needs mass_kg (given: {self.mass_kg}) and a collision (given: "
                f"{self.collision!r}), else it falls through everything; or leave it 'fixed'"
            )
        return self

    @property
    def format(self) -> str:
        """OBJ, GLB, USD or MJCF."""
        return FORMATS[PurePosixPath(self.file).suffix.lower()]


class RoomManifest(Profile):
    """An operating room of one's own; the robot's table, tray, instruments and the hand stay the task's.

    Attributes:
        title: Its name for people.
        keep: What of the built-in room stays.
        parts: What stands in it.
    """

    kind: Literal["room"]
    title: str
    keep: tuple[Fitting, ...] = (Fitting.FLOOR, Fitting.WALLS, Fitting.DRAPE)
    parts: tuple[RoomPart, ...] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [part.name for part in self.parts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"parts with the same name: {', '.join(twice)}; give each part its own")
        return self


class PartRecord(Spec):
    """What an artifact says about a part of the room it was made in; as ``RoomPart``."""

    name: str
    file: str
    sha256: Sha256
    beside: dict[str, Sha256] = Field(default_factory=dict)
    label: Label
    license: License
    source: str = ""


class RoomRecord(Spec):
    """What an artifact says about the room it was made in; one without its parts' licences is refused.

    Attributes:
        name: The manifest's.
        digest: The manifest's, which names every file's.
        parts: What stood in it.
    """

    name: str
    digest: str
    parts: tuple[PartRecord, ...]


@dataclass(frozen=True)
class RoomFiles:
    """A manifest and its parts' files, read once and checked.

    Attributes:
        manifest: What stands where.
        files: Each part's name to the files it reads, by name as the manifest gives it.
    """

    manifest: RoomManifest
    files: Mapping[str, Mapping[str, bytes]]

    @property
    def digests(self) -> dict[str, str]:
        """As an episode's header has them: kind to digest."""
        return {"room": self.manifest.digest()}

    def record(self) -> RoomRecord:
        """What an artifact that was made in this room says about it."""
        keys = set(PartRecord.model_fields)
        parts = [PartRecord.model_validate(part.model_dump(include=keys)) for part in self.manifest.parts]
        return RoomRecord(name=self.manifest.name, digest=self.manifest.digest(), parts=tuple(parts))


def room_names() -> tuple[str, ...]:
    """Names of the bundled rooms, sorted."""
    return tuple(sorted(path.parent.name for path in _BUNDLED.glob(f"*/{MANIFEST}")))


def manifest_path(name: str) -> Path:
    """The manifest that a bundled name or a path means.

    Raises:
        ConfigError: No such room or file.
    """
    if name in room_names():
        return _BUNDLED / name / MANIFEST
    path = Path(name)
    if path.is_dir():
        path /= MANIFEST
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"room: {name!r} is no bundled room and no manifest (a .yaml file); {choices(name, room_names())}"
        )
    if not path.is_file():
        raise ConfigError(f"room: no manifest {str(path)!r}; bundled rooms: {', '.join(room_names())}")
    return path


def read_room(name: str) -> RoomFiles:
    """Reads a room by a bundled name or its manifest's path; every file is there and has its digest.

    Raises:
        ConfigError: Names the manifest, the part and what to do: a key is wrong or missing, or a file is
            missing, outside the manifest's directory, too large or another one than the manifest says.
    """
    path = manifest_path(name)
    manifest = load_profile(RoomManifest, "room", path)
    return RoomFiles(manifest, {part.name: _files(path, part) for part in manifest.parts})


def check_reference(reference: str) -> None:
    """Refuses what cannot name a room in a job, without looking for the files of a path.

    Raises:
        ConfigError: An unknown name, or a path without its whole digest.
    """
    name, digest = _split(reference)
    if not digest and name not in room_names():
        manifest_path(name)
        raise ConfigError(
            f"room: {reference!r} needs its digest, so that a job names one room; "
            f"`sim2or room check {reference}` prints the whole name"
        )


def _split(reference: str) -> tuple[str, str]:
    """Name and digest; only what ends in a digest has one, for a path may have an ``@`` of its own.

    Raises:
        ConfigError: The digest is none.
    """
    name, mark, digits = reference.rpartition("@sha256:")
    if not mark:
        return reference, ""
    if not _DIGITS.fullmatch(digits):
        raise ConfigError(
            f"room: {reference!r}: a digest has 64 digits of 0-9 and a-f, this one is {digits!r}; "
            f"`sim2or room check {name}` prints the whole name"
        )
    return name, f"sha256:{digits}"


def read_pinned(reference: str) -> RoomFiles:
    """Reads a room as a job names it: a bundled name, or a path and the digest that its content must have.

    A path alone names no content: two jobs with the same configuration would not be the same question.

    Args:
        reference: ``theatre`` or ``/data/mine/room.yaml@sha256:…``.

    Raises:
        ConfigError: As ``read_room``; a path without its digest, or with another one.
    """
    name, digest = _split(reference)
    room = read_room(name)
    found = room.manifest.digest()
    if not digest and name not in room_names():
        raise ConfigError(
            f"room: {reference!r} needs its digest, so that a job names one room: {name}@{found}"
        )
    if digest and digest != found:
        raise ConfigError(
            f"room: {name} has digest {found}, the job names {digest}; restore the room or name the new one"
        )
    return room


def _files(manifest: Path, part: RoomPart) -> dict[str, bytes]:
    wanted = {part.file: part.sha256} | part.beside
    return {name: _read(manifest, part.name, name, digest) for name, digest in wanted.items()}


def _read(manifest: Path, part: str, name: str, sha256: str) -> bytes:
    root, where = manifest.parent.resolve(), f"{manifest}: part {part!r}: {name}"
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ConfigError(f"{where}: leads outside the manifest's directory to {path}; copy the file there")
    if not path.is_file():
        raise ConfigError(f"{where}: no such file in {root}; {choices(name, _beside(root))}")
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ConfigError(f"{where}: {size:,} bytes; at most {_MAX_BYTES:,}: decimate or split it")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ConfigError(
            f"{where}: sha256 is {found}, the manifest says {sha256}; restore it or correct the manifest"
        )
    return content


def _beside(root: Path) -> list[str]:
    found = (path for path in root.rglob("*") if path.suffix.lower() in FORMATS)
    return [path.relative_to(root).as_posix() for path in found]
