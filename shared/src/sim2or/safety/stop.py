"""The latched emergency stop and the torque stages it falls back to.

A real emergency stop is hardware that removes power; this one only decides what the software commands.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from sim2or.errors import SafetyError, choices


class TorqueStage(StrEnum):
    """How much of its torque the arm may use; a new policy earns each stage with evidence."""

    LOCKED = "locked"
    QUARTER = "25%"
    HALF = "50%"
    FULL = "100%"

    @property
    def scale(self) -> float:
        """Fraction of the servo's torque; a locked arm keeps its full torque, because it must not sink."""
        return {"25%": 0.25, "50%": 0.5}.get(self.value, 1.0)

    @classmethod
    def named(cls, name: str) -> TorqueStage:
        """Finds a stage by its name.

        Raises:
            SafetyError: The name is no stage.
        """
        if name not in tuple(cls):
            raise SafetyError(f"torque stage {name!r} is unknown; {choices(name, tuple(cls))}")
        return cls(name)


@dataclass
class StopLatch:
    """Latched emergency stop and torque stage: anything may trip it, only a named person resets it.

    Attributes:
        stage: The torque stage in force.
        tripped: The reason of the stop, "" while it is not latched.
        journal: What happened, in order, for the record: stops, resets and promotions.
    """

    stage: TorqueStage = TorqueStage.LOCKED
    tripped: str = ""
    journal: list[str] = field(default_factory=list)

    def trip(self, reason: str) -> None:
        """Latches the stop and locks the torque stage; a second trip keeps the first reason."""
        self.tripped = self.tripped or reason or "unnamed"
        self.stage = TorqueStage.LOCKED
        self.journal.append(f"stopped: {reason}")

    def reset(self, operator: str) -> None:
        """Releases the latch; the stage stays locked until it is promoted again.

        Raises:
            SafetyError: No person is named.
        """
        if not operator.strip():
            raise SafetyError("an emergency stop is reset by a person: give the operator's name")
        self.tripped = ""
        self.journal.append(f"reset by {operator.strip()}")

    def promote(self, stage: TorqueStage, evidence: str) -> None:
        """Raises the torque stage.

        Args:
            stage: The stage to go to.
            evidence: Digest of the verdict or report that justifies it.

        Raises:
            SafetyError: The stop is latched, or no evidence is named.
        """
        if self.tripped:
            raise SafetyError(
                f"the stop is latched ({self.tripped}): a person must reset it before {stage.value}"
            )
        if not evidence.strip():
            raise SafetyError(
                f"promotion to {stage.value} needs the digest of the evidence that justifies it"
            )
        self.stage = stage
        self.journal.append(f"promoted to {stage.value} on {evidence.strip()}")
