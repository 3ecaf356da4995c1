"""The kitchen as MJCF: places, furniture, robot and objects, all of primitive geoms, so nothing is downloaded.

Frames: world z is 0 at the height of every worktop. Each place has a frame whose origin lies on the worktop's front
edge, x into the worktop; a docked robot's base frame coincides with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from saycan_qt.kitchen.objects import THINGS, Rgb

DRAWERS = ("top", "middle", "bottom")
DRAWER_Z = {"top": -0.12, "middle": -0.28, "bottom": -0.44}  # centre of the front [m]
DRAWER_TRAVEL = 0.26  # [m]
OPEN, SHUT = 0.17, 0.03  # a drawer pulled out further than this is open, less than that is closed [m]
FLOOR_Z = -0.75  # [m]
PLACES: dict[str, tuple[float, float, float]] = {  # T_world_place: x [m], y [m], yaw [rad]
    "close counter": (-1.3, 0.0, 3.141592653589793),
    "far counter": (1.3, 0.0, 0.0),
    "table": (0.0, 1.9, 1.5707963267948966),
    "trash can": (0.9, -1.9, -1.5707963267948966),
    "operator": (-0.9, -1.9, -1.5707963267948966),
}
WORKTOPS = ("close counter", "far counter", "table")  # places where objects may stand at the start
TRAY = ((0.2, 0.0), (0.2, 0.13), (0.2, -0.13))  # where the operator gets things, the first three [m]
BASE_BACK = -0.78  # x of the base's centre in the base frame [m]
SHOULDER = (-0.42, -0.38, 0.22)  # in the base frame [m]
UPPER_ARM, FOREARM, WRIST = 0.56, 0.54, 0.09  # link lengths [m]
FINGER_TRAVEL = 0.045  # of each finger, as commanded [m]
ARM_JOINTS = ("shoulder_yaw", "shoulder_pitch", "upper_arm_roll", "elbow", "forearm_roll", "wrist_pitch", "wrist_roll")
ARM_HOME = (-0.9, 0.0, 1.57, 1.9, -1.57, 0.0, 0.0)  # elbow out to the right, clear of the camera [rad]

_GRIP = 'solref=".006 1" solimp=".95 .99 .001"'
_TOUCHLESS = 'contype="0" conaffinity="0"'


def _rgba(color: Rgb) -> str:
    return f'rgba="{color[0]:.3f} {color[1]:.3f} {color[2]:.3f} 1"'


def _thing(name: str) -> str:
    thing = THINGS[name]
    size, main, accent = thing.size, _rgba(thing.color), _rgba(thing.accent)
    solid = f'friction="1.2 .02 .002" condim="4" {_GRIP}'
    paint = f'{_TOUCHLESS} mass="0" {accent}'
    match thing.shape:
        case "can":
            r, h = size
            geoms = (
                f'<geom type="cylinder" size="{r} {h}" {main} mass=".12" {solid}/>'
                f'<geom type="cylinder" size="{r + 0.0008} {h * 0.3}" {paint}/>'
                f'<geom type="cylinder" size="{r * 0.85} .001" pos="0 0 {h}" {_TOUCHLESS} mass="0"'
                ' rgba=".75 .75 .75 1"/>'
            )
        case "bottle":
            r, h = size
            body = h * 0.72
            geoms = (
                f'<geom type="cylinder" size="{r} {body}" pos="0 0 {body - h}" {main} mass=".12" {solid}/>'
                f'<geom type="cylinder" size=".016 {h - body}" pos="0 0 {body}" {accent} mass=".01" {solid}/>'
                f'<geom type="cylinder" size="{r + 0.0008} {h * 0.15}" pos="0 0 {-h * 0.3}" {paint}/>'
            )
        case "box":
            x, y, z = size
            geoms = (
                f'<geom type="box" size="{x} {y} {z}" {main} mass=".1" {solid}/>'
                f'<geom type="box" size="{x * 0.45} {y * 0.6} {z + 0.0008}" {paint}/>'
            )
        case _:
            (r,) = size
            geoms = (
                f'<geom type="sphere" size="{r}" {main} mass=".1" friction="1.2 .02 .01" condim="6" {_GRIP}/>'
                f'<geom type="sphere" size=".009" pos="0 0 {r}" {paint}/>'
            )
    return f'<body name="{name}"><freejoint name="{name}"/>{geoms}</body>'


def _drawers() -> str:
    wood, dark = 'rgba=".8 .76 .68 1"', 'rgba=".15 .15 .17 1"'
    return "".join(
        f"""<body name="{name} drawer" pos="0 0 {DRAWER_Z[name]}">
        <joint name="{name} drawer" type="slide" axis="-1 0 0" range="0 {DRAWER_TRAVEL}" damping="6" frictionloss="1"/>
        <geom type="box" size=".008 .2 .074" pos=".008 0 0" rgba=".82 .8 .74 1" mass=".5"/>
        <geom type="box" size=".13 .185 .004" pos=".146 0 -.052" {wood} mass=".3"/>
        <geom type="box" size=".13 .004 .04" pos=".146 .185 -.012" {wood} mass=".1"/>
        <geom type="box" size=".13 .004 .04" pos=".146 -.185 -.012" {wood} mass=".1"/>
        <geom type="box" size=".004 .185 .04" pos=".276 0 -.012" {wood} mass=".1"/>
        <geom name="{name} handle" type="capsule" size=".007" fromto="-.05 -.08 .02 -.05 .08 .02" {dark} mass=".05"
          friction="1 .01 .001"/>
        <geom type="capsule" size=".006" fromto="0 -.08 .02 -.05 -.08 .02" {dark} mass=".01"/>
        <geom type="capsule" size=".006" fromto="0 .08 .02 -.05 .08 .02" {dark} mass=".01"/></body>"""
        for name in DRAWERS
    )


def _furniture(place: str) -> str:
    top = 'type="box" size=".26 .5 .014" pos=".27 0 -.014" friction="1 .02 .005"'
    # a body of its own: mj_multiRay culls by a body's bounds, which here would cut the wall off
    wall = '<body><geom type="box" size=".01 .6 .45" pos=".56 0 .1" rgba=".86 .86 .83 1"/></body>'
    match place:
        case "far counter":
            side = 'type="box" size=".25 .14 .36" rgba=".7 .66 .58 1"'
            return (
                f'<geom {top} rgba=".62 .5 .38 1"/>'
                f'<geom {side} pos=".28 .345 -.39"/><geom {side} pos=".28 -.345 -.39"/>'
                f'<geom type="box" size=".24 .2 .11" pos=".29 0 -.64" rgba=".6 .57 .5 1"/>{wall}{_drawers()}'
            )
        case "close counter":
            return (
                f'<geom {top} rgba=".52 .53 .55 1"/>'
                f'<geom type="box" size=".24 .48 .36" pos=".28 0 -.39" rgba=".45 .52 .55 1"/>{wall}'
            )
        case "table":
            leg = 'type="box" size=".025 .025 .36" rgba=".45 .32 .2 1"'
            legs = "".join(f'<geom {leg} pos="{x} {y} -.39"/>' for x in (0.05, 0.49) for y in (-0.45, 0.45))
            return f'<geom {top} rgba=".72 .62 .48 1"/>{legs}{wall}'
        case "trash can":
            metal = 'rgba=".35 .37 .4 1"'
            return (
                f'<geom type="box" size=".17 .01 .24" pos=".2 .17 -.34" {metal}/>'
                f'<geom type="box" size=".17 .01 .24" pos=".2 -.17 -.34" {metal}/>'
                f'<geom type="box" size=".01 .17 .24" pos=".03 0 -.34" {metal}/>'
                f'<geom type="box" size=".01 .17 .24" pos=".37 0 -.34" {metal}/>'
                f'<geom type="box" size=".17 .17 .01" pos=".2 0 -.57" rgba=".2 .2 .2 1"/>'
            )
        case _:  # the operator, seated behind a tray
            skin, shirt = 'rgba=".85 .65 .5 1"', 'rgba=".3 .35 .6 1"'
            return (
                '<geom type="box" size=".16 .26 .014" pos=".2 0 -.014" rgba=".75 .73 .7 1" friction="1 .02 .005"/>'
                '<geom type="cylinder" size=".03 .36" pos=".2 0 -.39" rgba=".4 .4 .4 1"/>'
                f'<geom type="capsule" size=".15" fromto=".62 0 -.45 .62 0 .1" {shirt}/>'
                f'<geom type="sphere" size=".11" pos=".6 0 .38" {skin}/>'
                f'<geom type="capsule" size=".045" fromto=".6 .2 .05 .42 .22 -.02" {skin}/>'
                f'<geom type="capsule" size=".045" fromto=".6 -.2 .05 .42 -.22 -.02" {skin}/>'
            )


def _robot() -> str:
    light, dark = 'rgba=".88 .88 .9 1"', 'rgba=".35 .35 .4 1"'

    def finger(name: str, side: int, color: str) -> str:
        return (
            f'<body name="{name} finger" pos="0 {side * 0.008} -.05" gravcomp="1">'
            f'<joint name="{name} finger" type="slide" axis="0 {side} 0" range="0 .048" damping="8" armature=".05"/>'
            f'<geom name="{name} finger" type="box" size=".013 .008 .035" mass=".05" rgba="{color} 1"'
            f' friction="1.8 .05 .005" condim="4" {_GRIP}/></body>'
        )

    def link(mass: float, radius: float, end: str) -> str:
        return f'<geom type="capsule" size="{radius}" fromto="0 0 0 {end}" mass="{mass}" {dark} {_TOUCHLESS}/>'

    sx, sy, sz = SHOULDER
    joint = '<joint name="{}" axis="{}" range="{} {}" armature="{}" damping="1"/>'.format
    ball = '<geom type="sphere" size="{}" mass="{}" {} {}/>'.format
    return f"""<body name="base" mocap="true">
      <geom type="cylinder" size=".24 .12" pos="{BASE_BACK} 0 {FLOOR_Z + 0.13}" {light} {_TOUCHLESS}/>
      <geom type="cylinder" size=".11 .5" pos="{BASE_BACK} 0 -.2" {light} {_TOUCHLESS}/>
      <geom type="capsule" size=".05" fromto="{BASE_BACK} 0 {sz} {sx} {sy} {sz}" {light} {_TOUCHLESS}/>
      <geom type="capsule" size=".045" fromto="{BASE_BACK} 0 .3 {BASE_BACK} 0 .86" {light} {_TOUCHLESS}/>
      <geom type="box" size=".07 .09 .05" pos="{BASE_BACK + 0.1} 0 .9" {dark} {_TOUCHLESS}/>
      <body pos="{sx} {sy} {sz}" gravcomp="1">
        {joint(ARM_JOINTS[0], "0 0 1", -2.9, 2.9, 0.2)}{joint(ARM_JOINTS[1], "0 1 0", -2.6, 2.6, 0.2)}
        {joint(ARM_JOINTS[2], "1 0 0", -2.9, 2.9, 0.1)}
        {ball(0.045, 0.5, light, _TOUCHLESS)}{link(0.9, 0.030, f"{UPPER_ARM} 0 0")}
        <body pos="{UPPER_ARM} 0 0" gravcomp="1">
          {joint(ARM_JOINTS[3], "0 1 0", 0.05, 2.75, 0.1)}{joint(ARM_JOINTS[4], "1 0 0", -5.5, 5.5, 0.05)}
          {ball(0.034, 0.2, light, _TOUCHLESS)}{link(0.6, 0.024, f"{FOREARM} 0 0")}
          <body pos="{FOREARM} 0 0" gravcomp="1">
            {joint(ARM_JOINTS[5], "0 1 0", -2.9, 2.9, 0.05)}{joint(ARM_JOINTS[6], "0 0 1", -5.5, 5.5, 0.03)}
            {ball(0.028, 0.1, light, _TOUCHLESS)}
            <body name="hand" pos="0 0 {-WRIST}" gravcomp="1">
              <geom type="cylinder" size=".025 .03" pos="0 0 .04" mass=".2" rgba=".9 .9 .9 1" {_TOUCHLESS}/>
              <geom name="hand" type="box" size=".016 .058 .014" mass=".3" rgba=".25 .25 .28 1"/>
              <site name="tip" pos="0 0 -.068"/>
              {finger("left", 1, ".95 .1 .75")}{finger("right", -1, ".1 .9 .9")}
            </body>
          </body>
        </body>
      </body>
    </body>"""


def kitchen_xml(things: Iterable[str], places: Iterable[str] = tuple(PLACES)) -> str:
    """MJCF of a kitchen with these objects (all at the origin: the caller sets their poses) and these places."""
    furniture = ""
    for place in places:
        x, y, yaw = PLACES[place]
        pose = f'pos="{x} {y} 0" quat="{math.cos(yaw / 2)} 0 0 {math.sin(yaw / 2)}"'
        furniture += f"<body {pose}>{_furniture(place)}</body>"
    stiffness = dict(zip(ARM_JOINTS, (3000, 3000, 1500, 1500, 400, 400, 200), strict=True))  # [N m/rad]
    motors = "".join(
        f'<position joint="{j}" kp="{k}" dampratio="1" forcerange="{-k * 0.02} {k * 0.02}"/>'
        for j, k in stiffness.items()
    )
    exclude = '<exclude body1="{}" body2="{}"/>'.format
    drawers = (
        exclude("top drawer", "middle drawer") + exclude("middle drawer", "bottom drawer")
        if "far counter" in places
        else ""
    )
    return f"""<mujoco><compiler angle="radian"/>
    <option timestep=".004" integrator="implicitfast" cone="elliptic" impratio="5" solver="Newton" iterations="20"
      ls_iterations="10"/>
    <worldbody>
    <geom name="floor" type="plane" pos="0 0 {FLOOR_Z}" size="4 4 .1" rgba=".4 .4 .42 1"/>
    {furniture}{_robot()}{"".join(_thing(name) for name in things)}
    </worldbody>
    <contact>{exclude("left finger", "right finger")}{exclude("hand", "left finger")}
    {exclude("hand", "right finger")}{drawers}</contact>
    <equality><joint joint1="left finger" joint2="right finger"/></equality>
    <actuator>{motors}<position joint="left finger" kp="400" forcerange="-18 18"/>
    <position joint="right finger" kp="400" forcerange="-18 18"/></actuator></mujoco>"""
