"""The maker's part of the table."""

from __future__ import annotations

from sim2or.stages import ServiceInfo, StageInfo

STAGES = (
    StageInfo(
        name="make",
        service="maker",
        spec="sim2or_maker.make:MakeSpec",
        entry="sim2or_maker.make:STAGE",
        outputs={"model": "exported-model"},
    ),
)
SERVICES = (ServiceInfo("maker", "sim2or_maker"),)
