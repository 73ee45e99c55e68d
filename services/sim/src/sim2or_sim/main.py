"""Wires the sim service: demonstrations and trials from the bus, and the simulated robot process."""

from sim2or.cli.service import service_app

app = service_app(
    "sim",
    servers={"robot": "sim2or_sim.robot_server:serve"},
    also={"serve-isaaclab": "sim-isaaclab", "serve-rl": "rl"},
)
