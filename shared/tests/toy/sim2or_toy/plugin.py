"""The toy service's part of the table."""

from __future__ import annotations

from sim2or.stages import Role, ServiceInfo, StageInfo

STAGES = (
    StageInfo(
        name="write",
        service="toy",
        spec="sim2or_toy.spec:WriteSpec",
        entry="sim2or_toy.write:STAGE",
        outputs={"numbers": "numbers"},
        shardable=True,
    ),
    StageInfo(
        name="copy",
        service="toy",
        spec="sim2or_toy.spec:JoinSpec",
        entry="sim2or_toy.join:STAGES",
        inputs={"numbers": Role(("numbers",))},
        outputs={"report": "sum"},
    ),
    StageInfo(
        name="join",
        service="toy",
        spec="sim2or_toy.spec:JoinSpec",
        entry="sim2or_toy.join:STAGES",
        inputs={"numbers": Role(("numbers",), many=True)},
        outputs={"report": "sum"},
    ),
)
SERVICES = (ServiceInfo("toy", "sim2or_toy", count=2),)
