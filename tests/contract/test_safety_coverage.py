"""The safety kernel's tests take every branch of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_branch_of_the_safety_kernel_is_tested(tmp_path: Path) -> None:
    """Its own tests alone reach all lines and branches of ``sim2or.safety``; what is missing is named."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    command += ["shared/tests/test_safety_kernel.py", "--cov=sim2or.safety", "--cov-branch"]
    command += ["--cov-fail-under=100", "--cov-report=term-missing"]
    environment = {"COVERAGE_FILE": str(tmp_path / "coverage"), "PATH": ""}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout.decode()[-3000:] + ran.stderr.decode()[-1000:]
