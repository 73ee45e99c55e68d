"""``sim2or room``: operating rooms of one's own, checked, shown and described."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid

from sim2or.errors import ConfigError
from sim2or.stages import load

WIDTH = 200

room_app = typer.Typer(
    no_args_is_help=True, help="Own operating rooms: check a manifest, show it, say its schema."
)

RoomArgument = Annotated[
    str, typer.Argument(help="A bundled room, or the path of a manifest (docs/rooms.md).")
]
RobotOption = Annotated[str, typer.Option(help="The arm that works in it.")]
TaskOption = Annotated[str, typer.Option(help="Its task.")]


@room_app.command()
def check(room: RoomArgument, robot: RobotOption = "so101", task: TaskOption = "handover") -> None:
    """Say sizes, masses, triangles, digests and licences of its parts, and what stands in the way."""
    from sim2or.cli.terminal import out
    from sim2or.contracts.robot import load_robot
    from sim2or.contracts.task import load_task

    found = load("sim2or_sim.rooms.survey:survey")(room, load_robot(robot), load_task(task))
    grid = Grid(*found.columns, box=None)
    for row in found.rows:
        grid.add_row(*row)
    wide = out if out.is_terminal else Console(highlight=False, width=WIDTH)
    wide.print(grid)
    if found.problems:
        raise ConfigError(f"room {room}: " + "; ".join(found.problems))
    wide.print(f"{found.title}: usable; in a pipeline: `with: {{room: {found.reference}}}`", soft_wrap=True)


@room_app.command()
def show(
    room: RoomArgument = "",
    out_file: Annotated[Path, typer.Option("--out", help="The picture to write.")] = Path("room.png"),
    engine: Annotated[
        str, typer.Option(help="mujoco, or isaaclab (with .venv-isaac/bin/sim2or).")
    ] = "mujoco",
    height: Annotated[int, typer.Option(min=64, max=2160, help="Of the picture [px].")] = 480,
    robot: RobotOption = "so101",
    task: TaskOption = "handover",
) -> None:
    """Write a picture: the whole room, and what the room camera sees; without a name the built-in room."""
    from sim2or.cli.terminal import out
    from sim2or.contracts.robot import load_robot
    from sim2or.contracts.task import load_task

    make = load("sim2or_sim.rooms.picture:show")
    views = make(room, load_robot(robot), load_task(task), engine=engine, out=out_file, height=height)
    out.print(f"{out_file}: {engine}: {', '.join(views)}", markup=False)


@room_app.command()
def schema() -> None:
    """Print the manifest's JSON Schema (docs/rooms.schema.json)."""
    from sim2or.contracts.room import RoomManifest

    print(json.dumps(RoomManifest.model_json_schema(), indent=2))


@room_app.command("ls")
def names() -> None:
    """List the bundled rooms."""
    from sim2or.cli.terminal import out
    from sim2or.contracts.room import room_names

    for name in room_names():
        out.print(name, markup=False)
