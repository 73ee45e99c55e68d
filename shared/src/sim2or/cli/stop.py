"""Stop: ends the deployments of a run; their bridge latches its stop and the arm holds."""

from __future__ import annotations

from sim2or.bus.jobs import Jobs

STAGE = "deploy"
EMERGENCY = "This is no emergency stop: a real one is hardware, in reach of a person."


def stop_deployments(jobs: Jobs, run_id: str) -> list[str]:
    """Cancels every deployment of a run that moves an arm, or is about to.

    Args:
        jobs: The queue of the run.
        run_id: The run; other runs on the same bus go on.

    Returns:
        A sentence for each deployment; none where there is nothing to stop.
    """
    said = []
    for record in jobs.list(stage=STAGE):
        if record.final or record.job.run_id != run_id:
            continue
        was = record.state
        if not jobs.cancel(record.job_id):
            said.append(f"{record.job_id}: had just ended")
        elif was == "running":
            said.append(
                f"{record.job_id}: cancelled; the arm holds where it is as soon as the bridge hears of it, "
                f"within {jobs.lease_s / 4:g} s"
            )
        else:
            said.append(f"{record.job_id}: cancelled before it moved anything")
    return said
