"""What Isaac Lab cannot do together, or has not installed, is refused at the start with what to do."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from sim2or.contracts.task import load_task
from sim2or.errors import ConfigError
from sim2or_sim.backends.isaaclab import configuration
from sim2or_sim.backends.isaaclab.configuration import IsaacSettings

pytestmark = pytest.mark.isaac

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


@pytest.mark.parametrize(
    ("physics", "renderer"), [("ovphysx", "isaacsim_rtx"), ("physx", "ovrtx"), ("newton", "isaacsim_rtx")]
)
def test_what_needs_kit_says_so(physics: str, renderer: str) -> None:
    """Kit beside what works without it names the valid pairs; Kit that is not installed, its package."""
    alone = physics == "ovphysx" or renderer == "ovrtx"
    if not alone and find_spec("isaacsim"):
        pytest.skip("Isaac Sim is installed here")
    expected = "cannot share a process" if alone else r"isaacsim is not installed; run: uv pip install"
    with pytest.raises(ConfigError, match=expected):
        configuration.check(IsaacSettings(physics=physics, renderer=renderer))


@pytest.mark.skipif(find_spec("ovphysx") is not None, reason="ovphysx is installed here")
def test_physx_that_is_not_installed_is_refused() -> None:
    """Asking for PhysX without its package says which command installs it, before anything is built."""
    with pytest.raises(ConfigError, match=r"ovphysx is not installed; run: uv pip install .* ovphysx=="):
        configuration.simulation(load_task("handover"), IsaacSettings(physics="ovphysx"))


@without_cuda
def test_a_device_that_is_not_there_is_refused() -> None:
    """A CUDA device on a machine without one is a setting to correct, not a crash in a kernel."""
    with pytest.raises(ConfigError, match=r"SIM2OR_ISAAC_DEVICE=cuda:0: there is no CUDA device"):
        configuration.check(IsaacSettings(device="cuda:0"))
