#!/usr/bin/env python3
"""Makes the meshes of the bundled room ``theatre`` and writes their digests into its manifest.

Usage: .venv/bin/python scripts/make_theatre.py [DIRECTORY]; the same bytes every time. One part a format: bed
and patient are GLB (y up), the monitor is USD, tray stand and dish are OBJ with their MTL; the lamp is MJCF,
written by hand. Shapes are built z up, in metres, each part's origin where it stands.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import trimesh
from pxr import Gf, Sdf, Usd, UsdGeom, UsdShade
from trimesh.visual.material import PBRMaterial

THEATRE = Path(__file__).parents[1] / "shared/src/sim2or/contracts/rooms/theatre"
Shapes = list[tuple[str, trimesh.Trimesh]]

COLORS = {  # as seen, red green blue in 0-1
    "steel": (0.72, 0.75, 0.78),
    "dark_steel": (0.42, 0.45, 0.48),
    "white": (0.92, 0.93, 0.94),
    "pad": (0.14, 0.17, 0.21),
    "rubber": (0.10, 0.11, 0.12),
    "drape": (0.22, 0.50, 0.62),
    "fold": (0.17, 0.42, 0.54),
    "border": (0.88, 0.91, 0.92),
    "skin": (0.86, 0.66, 0.55),
    "cap": (0.45, 0.70, 0.66),
    "mask": (0.80, 0.90, 0.93),
    "screen": (0.03, 0.05, 0.08),
    "green": (0.25, 0.92, 0.40),
    "yellow": (0.96, 0.84, 0.25),
    "blue": (0.35, 0.70, 0.98),
    "kidney": (0.80, 0.83, 0.86),
}


def box(
    color: str, size: tuple[float, float, float], at: tuple[float, float, float]
) -> tuple[str, trimesh.Trimesh]:
    """A box of full sizes about a point."""
    made = trimesh.creation.box(extents=size)
    made.apply_translation(at)
    return color, made


def rod(
    color: str, radius: float, start: tuple[float, ...], end: tuple[float, ...]
) -> tuple[str, trimesh.Trimesh]:
    """A cylinder from point to point."""
    return color, trimesh.creation.cylinder(radius=radius, segment=np.array([start, end]), sections=16)


def ball(
    color: str, half: tuple[float, float, float], at: tuple[float, float, float]
) -> tuple[str, trimesh.Trimesh]:
    """An ellipsoid."""
    made = trimesh.creation.icosphere(subdivisions=2)
    made.apply_scale(half)
    made.apply_translation(at)
    return color, made


def bed() -> Shapes:
    """An operating table, head towards -x; it stands on the floor and its mattress ends 0.90 m above."""
    shapes = [
        box("dark_steel", (0.95, 0.46, 0.08), (0.05, 0, 0.075)),
        box("steel", (0.34, 0.26, 0.56), (0.05, 0, 0.36)),
        box("dark_steel", (0.40, 0.32, 0.06), (0.05, 0, 0.66)),
        box("steel", (1.96, 0.50, 0.05), (0, 0, 0.78)),
        box("pad", (0.30, 0.44, 0.08), (-0.85, 0, 0.86)),
        box("pad", (0.72, 0.50, 0.08), (-0.32, 0, 0.86)),
        box("pad", (0.42, 0.50, 0.08), (0.27, 0, 0.86)),
        box("pad", (0.48, 0.50, 0.08), (0.74, 0, 0.86)),
    ]
    for side in (-1, 1):
        shapes.append(box("steel", (1.60, 0.012, 0.035), (0.05, side * 0.275, 0.78)))
        shapes += [box("dark_steel", (0.03, 0.05, 0.02), (x, side * 0.26, 0.78)) for x in (-0.6, 0.0, 0.6)]
        shapes += [
            rod("rubber", 0.045, (x, side * 0.17, 0.045), (x, side * 0.25, 0.045)) for x in (-0.36, 0.46)
        ]
    return shapes


def patient() -> Shapes:
    """Who lies on the mattress under a drape with a window; head towards -x, origin on the mattress."""
    shapes = [
        ball("white", (0.17, 0.19, 0.045), (-0.80, 0, 0.03)),
        ball("skin", (0.115, 0.080, 0.100), (-0.80, 0, 0.135)),
        ball("cap", (0.075, 0.086, 0.104), (-0.855, 0, 0.138)),
        ball("mask", (0.062, 0.064, 0.045), (-0.755, 0, 0.196)),
        rod("skin", 0.055, (-0.72, 0, 0.11), (-0.60, 0, 0.10)),
    ]
    return [*shapes, *cloth()]


def cloth() -> Shapes:
    """The drape: a height over a grid, coloured by what of it is window, border, fold or drape."""
    xs, ys = np.linspace(-0.62, 0.96, 56), np.linspace(-0.42, 0.42, 37)
    grid = np.array(
        [
            [(x, np.sign(y) * min(abs(y), 0.285 + 0.15 * max(0.0, abs(y) - 0.285)), height(x, y)) for y in ys]
            for x in xs
        ]
    )
    found: dict[str, list[tuple[int, int, int]]] = {}
    for i in range(len(xs) - 1):
        for k in range(len(ys) - 1):
            a, b, c, d = (
                i * len(ys) + k,
                (i + 1) * len(ys) + k,
                (i + 1) * len(ys) + k + 1,
                i * len(ys) + k + 1,
            )
            found.setdefault(region(xs[i : i + 2].mean(), ys[k : k + 2].mean()), []).extend(
                [(a, b, c), (a, c, d)]
            )
    points = grid.reshape(-1, 3)
    shapes = []
    for color, faces in found.items():
        made = trimesh.Trimesh(points, faces, process=False)
        made.remove_unreferenced_vertices()
        shapes.append((color, made))
    return shapes


def height(x: float, y: float) -> float:
    """The drape over a body, and down over the mattress's edges [m]."""
    along = np.interp(
        x,
        [-0.62, -0.52, -0.40, -0.15, 0.10, 0.30, 0.62, 0.82, 0.90, 0.96],
        [0.03, 0.17, 0.215, 0.20, 0.185, 0.165, 0.12, 0.10, 0.15, 0.02],
    )
    wide = np.interp(x, [-0.62, -0.45, -0.10, 0.15, 0.60, 0.96], [0.20, 0.27, 0.235, 0.25, 0.20, 0.16])
    legs = 0.018 * np.clip((x - 0.25) / 0.2, 0, 1) * np.exp(-((y / 0.035) ** 2))
    body = along * np.sqrt(max(0.0, 1 - min(1.0, abs(y) / (wide + 0.02)) ** 2.6)) - legs
    hang = -0.26 * np.clip((abs(y) - 0.285) / 0.135, 0, 1) + 0.012 * np.sin(31 * x) * np.clip(
        (abs(y) - 0.25) / 0.1, 0, 1
    )
    return float(max(body, 0.012) + min(0.0, hang))


def region(x: float, y: float) -> str:
    """What a square of the drape shows."""
    across, along = abs(y) / 0.075, abs(x + 0.08) / 0.12
    if max(across, along) < 1.0:
        return "skin"
    if max(abs(y) / 0.10, abs(x + 0.08) / 0.15) < 1.0:
        return "border"
    return "fold" if abs(x - 0.31) < 0.02 or abs(y) > 0.36 else "drape"


def monitor() -> Shapes:
    """A patient monitor on a rolling stand; its screen looks along +x, its origin is on the floor."""
    shapes = [
        rod("white", 0.035, (0, 0, 0.08), (0, 0, 1.25)),
        rod("dark_steel", 0.06, (0, 0, 0.06), (0, 0, 0.13)),
        box("white", (0.07, 0.16, 0.12), (0.02, 0, 1.22)),
        box("dark_steel", (0.06, 0.58, 0.40), (0.06, 0, 1.36)),
        box("screen", (0.006, 0.53, 0.35), (0.092, 0, 1.36)),
        box("white", (0.16, 0.26, 0.10), (0.02, 0, 0.80)),
        box("screen", (0.004, 0.12, 0.06), (0.101, -0.03, 0.80)),
    ]
    for turn in np.arange(5) * 2 * np.pi / 5:
        x, y = 0.27 * np.cos(turn), 0.27 * np.sin(turn)
        shapes += [
            rod("white", 0.018, (0, 0, 0.085), (x, y, 0.075)),
            ball("rubber", (0.035, 0.035, 0.035), (x, y, 0.035)),
        ]
    beats = np.array([0, 0, 0, 0.10, 0, -0.15, 1.0, -0.35, 0, 0, 0.22, 0.10, 0, 0])
    waves = 0.5 + 0.5 * np.sin(np.arange(14) * 2 * np.pi / 7)
    for color, z, values in (
        ("green", 1.455, beats),
        ("yellow", 1.355, waves),
        ("blue", 1.255, np.roll(waves, 3)),
    ):
        shapes += trace(color, z, np.tile(values, 3)[:36], 0.012 if color == "green" else 0.009)
    shapes += [
        box(c, (0.004, 0.055, 0.035), (0.097, -0.215, z))
        for c, z in (("green", 1.475), ("yellow", 1.365), ("blue", 1.265))
    ]
    return shapes


def trace(color: str, z: float, values: np.ndarray, half: float) -> Shapes:
    """A curve on the screen, as thin bars from point to point; time runs from left to right as seen."""
    ys, zs = np.linspace(0.245, -0.165, len(values)), z + 0.06 * (values - 0.3)
    bars = []
    for k in range(len(values) - 1):
        low, high = sorted(zs[k : k + 2])
        bars.append(
            box(
                color,
                (0.004, abs(ys[1] - ys[0]) * 1.02, high - low + half * 0.55),
                (0.097, (ys[k] + ys[k + 1]) / 2, (low + high) / 2),
            )
        )
    return bars


def stand() -> Shapes:
    """A tray stand as it is put over a patient: tray 0.95 m above the floor, origin on the floor under it."""
    shapes = [
        box("steel", (0.62, 0.04, 0.03), (0, -0.20, 0.05)),
        box("steel", (0.62, 0.04, 0.03), (0, 0.20, 0.05)),
        box("steel", (0.04, 0.44, 0.03), (-0.30, 0, 0.05)),
        rod("steel", 0.022, (-0.30, 0, 0.05), (-0.30, 0, 0.90)),
        rod("dark_steel", 0.028, (-0.30, 0, 0.50), (-0.30, 0, 0.60)),
        rod("steel", 0.016, (-0.30, 0, 0.90), (0.24, 0, 0.915)),
        box("kidney", (0.62, 0.42, 0.012), (0, 0, 0.944)),
    ]
    for sign in (-1, 1):
        shapes.append(box("steel", (0.63, 0.012, 0.024), (0, sign * 0.216, 0.950)))
        shapes.append(box("steel", (0.012, 0.444, 0.024), (sign * 0.316, 0, 0.950)))
        shapes += [ball("rubber", (0.030, 0.030, 0.030), (x, sign * 0.20, 0.030)) for x in (-0.28, 0.28)]
    shapes += [box("drape", (0.20, 0.30, 0.006), (0.14, 0.02, 0.953))]
    shapes += [
        rod(
            "dark_steel",
            0.005,
            (0.09 + 0.03 * k, -0.09, 0.961),
            (0.09 + 0.03 * k, 0.08 + 0.02 * (k % 2), 0.961),
        )
        for k in range(4)
    ]
    return shapes


def dish() -> Shapes:
    """A kidney dish that can be pushed; its origin is in the middle of its bottom."""
    around = np.linspace(0, 2 * np.pi, 29)[:-1]
    ring = np.column_stack([0.115 * np.cos(around), 0.062 * np.sin(around) - 0.022 * np.cos(around) ** 2])
    levels = [(0.72, 0.0), (1.0, 0.042), (0.95, 0.042), (0.68, 0.004)]
    points = np.array(
        [[*(scale * point), z] for scale, z in levels for point in ring]
        + [[0, -0.01, 0.0], [0, -0.01, 0.004]]
    )
    count, faces = len(ring), []
    for level in range(3):
        for i in range(count):
            a, b = level * count + i, level * count + (i + 1) % count
            faces += [(a, b, b + count), (a, b + count, a + count)]
    for i in range(count):
        faces += [
            (4 * count, (i + 1) % count, i),
            (4 * count + 1, 3 * count + i, 3 * count + (i + 1) % count),
        ]
    return [("kidney", trimesh.Trimesh(points, faces, process=False))]


def merged(shapes: Shapes) -> Shapes:
    """One mesh for each colour."""
    found: dict[str, list[trimesh.Trimesh]] = {}
    for color, shape in shapes:
        found.setdefault(color, []).append(shape)
    return [(color, trimesh.util.concatenate(same)) for color, same in found.items()]


def linear(color: str) -> list[float]:
    """Linear intensities of a colour as seen. Source: IEC 61966-2-1."""
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in COLORS[color]]


def write_glb(path: Path, shapes: Shapes) -> None:
    """Binary glTF: y up, linear colours."""
    scene = trimesh.Scene()
    for color, shape in merged(shapes):
        bare = trimesh.Trimesh(shape.vertices[:, [0, 2, 1]] * [1, 1, -1], shape.faces, process=False)
        bare.visual = trimesh.visual.TextureVisuals(
            material=PBRMaterial(name=color, baseColorFactor=[*linear(color), 1.0], metallicFactor=0.0)
        )
        scene.add_geometry(bare, geom_name=color, node_name=color)
    path.write_bytes(scene.export(file_type="glb"))


def write_obj(path: Path, shapes: Shapes) -> None:
    """OBJ with an MTL beside it, four digits after the point: tenths of a millimetre."""
    lines, first = [f"mtllib {path.stem}.mtl"], 1
    for color, shape in merged(shapes):
        lines += [f"o {color}", f"usemtl {color}"]
        lines += ["v " + " ".join(f"{value:.4f}" for value in point) for point in shape.vertices]
        lines += ["f " + " ".join(str(index + first) for index in face) for face in shape.faces]
        first += len(shape.vertices)
    path.write_text("\n".join(lines) + "\n")
    names = [color for color, _ in merged(shapes)]
    materials = [f"newmtl {name}\nKd " + " ".join(f"{value:g}" for value in COLORS[name]) for name in names]
    path.with_suffix(".mtl").write_text("\n".join(materials) + "\n")


def write_usd(path: Path, shapes: Shapes) -> None:
    """Binary USD in centimetres, y up, coloured by preview surfaces: what a modelling tool gives."""
    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 0.01)
    root = UsdGeom.Xform.Define(stage, "/monitor")
    stage.SetDefaultPrim(root.GetPrim())
    for color, shape in merged(shapes):
        mesh = UsdGeom.Mesh.Define(stage, f"/monitor/{color}")
        mesh.CreatePointsAttr(
            [Gf.Vec3f(*map(float, p)) for p in shape.vertices[:, [0, 2, 1]] * [100, 100, -100]]
        )
        mesh.CreateFaceVertexCountsAttr([3] * len(shape.faces))
        mesh.CreateFaceVertexIndicesAttr(shape.faces.ravel().tolist())
        mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
        material = UsdShade.Material.Define(stage, f"/monitor/looks/{color}")
        shader = UsdShade.Shader.Define(stage, f"/monitor/looks/{color}/surface")
        shader.CreateIdAttr("UsdPreviewSurface")
        shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f).Set(Gf.Vec3f(*linear(color)))
        material.CreateSurfaceOutput().ConnectToSource(shader.ConnectableAPI(), "surface")
        UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)
    stage.Export(str(path))


def write(directory: Path) -> None:
    """Writes every mesh."""
    write_glb(directory / "bed.glb", bed())
    write_glb(directory / "patient.glb", patient())
    write_usd(directory / "monitor.usdc", monitor())
    write_obj(directory / "stand.obj", stand())
    write_obj(directory / "dish.obj", dish())


def sign(manifest: Path) -> None:
    """Puts the digests of the files that stand beside a manifest into it."""

    def digest(name: str) -> str:
        return hashlib.sha256((manifest.parent / name).read_bytes()).hexdigest()

    text = manifest.read_text()
    text = re.sub(r"(file: (\S+),\s+sha256: )\w+", lambda m: m[1] + digest(m[2]), text)
    text = re.sub(r"(beside: \{(\S+): )\w+", lambda m: m[1] + digest(m[2]), text)
    manifest.write_text(text)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else THEATRE
    write(target)
    if (target / "room.yaml").is_file():
        sign(target / "room.yaml")
