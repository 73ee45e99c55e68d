"""The drill service's part of the table."""

from __future__ import annotations

from sim2or.stages import ANY, Role, ServiceInfo, StageInfo

STAGES = (
    StageInfo(
        name="drill",
        service="drill",
        spec="sim2or_drill.spec:DrillSpec",
        entry="sim2or_drill.stage:STAGE",
        inputs={"before": Role((ANY,), many=True, required=False)},
        outputs={"steps": "steps"},
    ),
)
SERVICES = (ServiceInfo("drill", "sim2or_drill"),)
