from __future__ import annotations
import copy, multiprocessing, os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import gymnasium
import mink
import mujoco
import numpy as np
from numpy.random import Generator, default_rng

from groot_cookbook.episodes import Episode

COLOURS = {"red": (.85, .12, .10), "green": (.10, .62, .18), "blue": (.12, .25, .85), "yellow": (.95, .80, .10)}
SIDES = ("left", "right")                      # as seen in the image
INSTRUCTION = "pick up the {colour} block and place it in the {side} bin"
HZ, FRAMES, SIZE = 10, 57, 64                  # control rate, frames of an episode, pixels of an image
BLOCK, FINGER = .028, .045                     # half edge of a block, travel of a finger, m
HOME = np.array([0., .15, 1.75, 0., 1.24, 0.])
PURPOSES = ("teleop", "heldout", "dream", "evaluation", "world_model", "idm", "critic", "backbone")


def seeds(purpose: str, n: int, start: int = 0) -> list[int]:
    "`n` seeds of a purpose; seeds of different purposes never meet, so nothing that is evaluated was ever seen."
    if not 0 <= start <= start + n <= 1_000_000: raise ValueError("a purpose has a million seeds")
    return list(range(base := PURPOSES.index(purpose) * 1_000_000 + start, base + n))


@dataclass(frozen=True)
class Scene:
    "Everything that differs from one workspace to the next; lengths in m, angles in rad, colours 0..1."
    seed: int
    shift: float
    target: str
    side: str
    blocks: dict[str, tuple[float, float, float]]           # colour -> x, y, yaw
    bins: dict[str, tuple[float, float]]                    # side -> x, y of its middle
    light: tuple[float, float, float]                       # position of the lamp
    ambient: float
    tint: tuple[float, float, float]
    table: tuple[float, float, float]

    @property
    def instruction(self) -> str: return INSTRUCTION.format(colour=self.target, side=self.side)


def sample_scene(seed: int, shift: float = 0.0) -> Scene:
    "Draw a workspace. `shift` is the one dial: 0 the nominal lighting, table and bins, 1 as far from them as we go."
    rng = default_rng(seed)
    colours = list(rng.permutation(list(COLOURS))[:1 + rng.integers(2)])          # the target, and at most one distractor
    blocks, spots = {}, []
    while len(blocks) < len(colours):
        x, y = rng.uniform([.27, -.12], [.45, .12])
        if all(np.hypot(x - a, y - b) > .12 for a, b in spots):
            blocks[str(colours[len(blocks)])] = (float(x), float(y), float(rng.uniform(-.1, .1)))
            spots.append((x, y))
    side = str(rng.choice(SIDES))
    u = lambda scale, n=None: rng.uniform(-1, 1, n) * scale * shift
    bins = {s: (float(.17 + u(.07)), float((-.26 if s == "left" else .26) + u(.035))) for s in SIDES}
    light = np.array([.4, 0., 1.6]) + [u(.7), u(.9), u(.3)]
    tint = 1 + rng.uniform(-.15, .08, 3) * shift
    table = np.clip(np.array([.62, .60, .57]) + u(.2, 3), 0, 1)
    return Scene(seed, float(shift), str(colours[0]), side, blocks, bins, tuple(map(float, light)), float(.46 + u(.15)),
                 tuple(map(float, tint)), tuple(map(float, table)))


def _xml() -> str:
    def link(i, axis, pos, geom, inner): 
        return (f'<body name="link{i}" pos="{pos}" gravcomp="1"><joint name="joint{i}" axis="{axis}"/>{geom}{inner}</body>')
    arm = 'class="arm"'
    finger = lambda n, y, a: (f'<body name="{n}" pos="0 {y} .05" gravcomp="1"><joint name="{n}" type="slide" axis="0 {a} 0" range="0 {FINGER}" class="finger"/>'
                              f'<geom class="finger" type="box" size=".02 .007 .04" pos="0 0 .03"/></body>')
    hand = (f'<geom {arm} type="box" size=".022 .055 .02" pos="0 0 .03" rgba=".25 .27 .30 1"/><site name="tip" pos="0 0 .115"/>'
            + finger("finger_left", -(FINGER + .007), 1) + finger("finger_right", FINGER + .007, -1))
    chain = link(6, "0 0 1", "0 0 .04", "", hand)
    chain = link(5, "0 1 0", "0 0 .06", f'<geom {arm} type="capsule" size=".028" fromto="0 0 0 0 0 .03"/>', chain)
    chain = link(4, "0 0 1", "0 0 .20", f'<geom {arm} type="capsule" size=".03" fromto="0 0 -.02 0 0 .05"/>', chain)
    chain = link(3, "0 1 0", "0 0 .26", f'<geom {arm} type="capsule" size=".034" fromto="0 0 0 0 0 .18" rgba=".93 .93 .95 1"/>', chain)
    chain = link(2, "0 1 0", "0 0 .12", f'<geom {arm} type="capsule" size=".04" fromto="0 0 0 0 0 .26" rgba=".93 .93 .95 1"/>', chain)
    chain = link(1, "0 0 1", "0 0 .10", f'<geom {arm} type="capsule" size=".05" fromto="0 0 0 0 0 .12"/>', chain)
    walls = lambda: "".join(f'<geom class="bin" size="{s}" pos="{p}"/>' for s, p in (
        (".07 .07 .004", "0 0 .004"), (".07 .004 .02", "0 .07 .02"), (".07 .004 .02", "0 -.07 .02"), (".004 .07 .02", ".07 0 .02"), (".004 .07 .02", "-.07 0 .02")))
    blocks = "".join(f'<body name="{c}" gravcomp="1"><freejoint/><geom class="block" rgba="{r} {g} {b} 1"/></body>' for c, (r, g, b) in COLOURS.items())
    position = lambda i, kp, v: f'<position name="joint{i}" joint="joint{i}" kp="{kp}" dampratio="1" forcerange="-{v} {v}"/>'
    return f"""
<mujoco><option timestep=".002" integrator="Euler" cone="elliptic" impratio="20" noslip_iterations="10"/>
<default><geom condim="6" solref=".006 1"/><joint armature=".02" damping="1"/>
 <default class="arm"><geom contype="0" conaffinity="0" rgba=".55 .58 .62 1" density="300"/></default>
 <default class="finger"><geom contype="1" conaffinity="6" friction="2 .05 .002" rgba=".13 .14 .16 1" density="800"/><joint armature=".1" damping="2"/></default>
 <default class="bin"><geom type="box" contype="2" conaffinity="0" rgba=".30 .32 .36 1"/></default>
 <default class="block"><geom type="box" size="{BLOCK} {BLOCK} {BLOCK}" contype="4" conaffinity="7" friction="1 .01 .001" density="400"/></default></default>
<worldbody>
 <geom name="table" type="box" size=".75 .9 .02" pos=".35 0 -.02" contype="2" conaffinity="0"/>
 <geom class="arm" type="cylinder" size=".065 .05" pos="0 0 .05" rgba=".3 .32 .35 1"/>
 <body name="bin_left">{walls()}</body><body name="bin_right">{walls()}</body>
 {chain}{blocks}
</worldbody>
<contact>{"".join(f'<exclude body1="finger_{a}" body2="link{i}"/>' for a in SIDES for i in (5, 6))}</contact>
<actuator>{position(1, 2500, 200)}{position(2, 2500, 200)}{position(3, 2000, 200)}{position(4, 800, 60)}{position(5, 800, 60)}{position(6, 500, 60)}
 <position name="finger_left" joint="finger_left" kp="1500" dampratio="1" forcerange="-30 30"/><position name="finger_right" joint="finger_right" kp="1500" dampratio="1" forcerange="-30 30"/></actuator>
</mujoco>"""


@lru_cache(1)
def compiled() -> mujoco.MjModel:
    "The physics, compiled once a process; scenes change a copy of it."
    return mujoco.MjModel.from_xml_string(_xml())


@dataclass(frozen=True)
class View:
    rgb: np.ndarray           # (H, W, 3) uint8
    depth: np.ndarray         # (H, W) float32, m along the viewing axis; inf where nothing is hit
    segmentation: np.ndarray  # (H, W) uint8: 0 table and background, 1 arm, 2 left bin, 3 right bin, 4.. the blocks in the order of COLOURS


@dataclass(frozen=True)
class Camera:
    "A pinhole camera that draws by casting rays through MuJoCo's own geometry: no OpenGL, the same picture on every machine."
    position: tuple = (.84, 0., .78)
    target: tuple = (.20, 0., .03)
    fovy: float = 41.           # degrees
    size: int = SIZE
    samples: int = 3            # rays along each edge of a pixel, where an object's edge crosses it

    @property
    def axes(self) -> np.ndarray:
        back = np.subtract(self.position, self.target); back /= np.linalg.norm(back)
        right = np.cross([0, 0, 1], back); right /= np.linalg.norm(right)
        return np.stack([right, np.cross(back, right), back])                       # rows: right, up, backwards

    def rays(self, samples: int = 1) -> np.ndarray:  # (size², samples², 3) unit vectors, row by row
        "Directions through a grid of `samples` x `samples` points in every pixel."
        n = self.size * samples
        u = (np.arange(n) + .5) / n * 2 - 1
        xs, ys = np.meshgrid(u, -u)
        half = np.tan(np.radians(self.fovy) / 2)
        d = np.stack([xs * half, ys * half, -np.ones_like(xs)], -1) @ self.axes
        d = d.reshape(self.size, samples, self.size, samples, 3).swapaxes(1, 2).reshape(self.size**2, samples**2, 3)
        return d / np.linalg.norm(d, axis=-1, keepdims=True)

    def project(self, points: np.ndarray) -> np.ndarray:  # (..., 3) m -> (..., 2) pixels: column, row
        p = (np.asarray(points) - self.position) @ self.axes.T
        uv = p[..., :2] / -p[..., 2:] / np.tan(np.radians(self.fovy) / 2)
        return (uv * [1, -1] + 1) * self.size / 2 - .5


@lru_cache(8)
def _rays(camera: Camera, samples: int) -> np.ndarray: return camera.rays(samples)


def _cast(model, data, origin, rays):
    "First hit of each ray (N, 3) from one point: geom (-1: none), distance in lengths of the ray, normal."
    n = len(rays)
    geom, distance, normal = np.empty(n, np.int32), np.empty(n), np.empty(3 * n)
    mujoco.mj_multiRay(model, data, np.array(origin, float), rays.ravel(), None, 1, -1, geom, distance, normal, n, 5.)
    return geom, distance, normal.reshape(-1, 3)


def _shade(model, scene, points, geom, normal, lit):
    "Lambert's law with one lamp, some ambient light, and the lamp's tint."
    to_lamp = np.array(scene.light) - points
    lambert = np.clip((normal * to_lamp).sum(1) / np.linalg.norm(to_lamp, axis=1), 0, None)
    colour = model.geom_rgba[geom, :3] * (scene.ambient + .65 * lambert * lit)[:, None] * scene.tint
    return np.where((geom < 0)[:, None], np.array([.80, .84, .88]) * scene.tint, colour).clip(0, 1)


def look(model: mujoco.MjModel, data: mujoco.MjData, scene: Scene, camera: Camera = Camera()) -> View:
    "One picture: Lambert shading, a hard shadow, and `samples`² rays in the pixels that an edge runs through."
    rays, n = _rays(camera, 1)[:, 0], camera.size
    geom, distance, normal = _cast(model, data, camera.position, rays)
    points = camera.position + rays * np.where(geom < 0, 5., distance)[:, None]
    _, reach, _ = _cast(model, data, scene.light, points - scene.light)
    lit = (reach < 0) | (reach > .995)
    rgb = _shade(model, scene, points, geom, normal, lit).reshape(n, n, 3)
    if camera.samples > 1:
        face = (geom + 2) * 10 + normal @ [1., 2., 4.]                              # one number for each flat face
        face, edge = face.reshape(n, n), np.zeros((n, n), bool)
        across, down = abs(np.diff(face, axis=1)) > .7, abs(np.diff(face, axis=0)) > .7
        edge[:, 1:] |= across; edge[:, :-1] |= across; edge[1:] |= down; edge[:-1] |= down
        fine = _rays(camera, camera.samples)[edge.ravel()]
        k = fine.shape[1]
        g, d, nrm = _cast(model, data, camera.position, fine.reshape(-1, 3))
        p = camera.position + fine.reshape(-1, 3) * np.where(g < 0, 5., d)[:, None]
        rgb[edge] = _shade(model, scene, p, g, nrm, np.repeat(lit[edge.ravel()], k)).reshape(-1, k, 3).mean(1)
    depth = np.where(geom < 0, np.inf, distance * -(rays @ camera.axes[2]))
    return View((rgb * 255).round().astype(np.uint8), depth.astype(np.float32).reshape(n, n), _label_table()[geom].reshape(n, n))


@lru_cache(1)
def _label_table() -> np.ndarray:
    model, table = compiled(), np.zeros(compiled().ngeom + 1, np.uint8)              # the last entry answers geom -1: background
    for g in range(model.ngeom):
        body = model.body(model.geom_bodyid[g]).name
        table[g] = {"world": 0, "bin_left": 2, "bin_right": 3, **{c: 4 + i for i, c in enumerate(COLOURS)}}.get(body, 1)
    return table


@dataclass(frozen=True)
class Trace:
    "What the simulator knows of an episode: enough to draw it again, or to break it on purpose."
    scene: Scene
    qpos: np.ndarray       # (T, nq) joint angles, finger travel, and the blocks' free poses
    actions: np.ndarray    # (T, 7) the command between a frame and the next; the last row repeats the one before
    picked: bool
    success: bool

    @property
    def state(self) -> np.ndarray: return proprioception(self.qpos)                 # (T, 7)


def proprioception(qpos: np.ndarray) -> np.ndarray:  # (..., nq) -> (..., 7)
    "Six joint angles in rad and how far the gripper is closed, 0..1."
    return np.concatenate([qpos[..., :6], qpos[..., 6:8].mean(-1, keepdims=True) / FINGER], -1).astype(np.float32)


def block_slice(colour: str) -> slice:
    "Where a block's position (3) and quaternion (4) stand in qpos."
    start = 8 + 7 * list(COLOURS).index(colour)
    return slice(start, start + 7)


class Workspace(gymnasium.Env):
    """The tabletop as a Gymnasium environment: 10 Hz joint targets in, a picture and proprioception out.

    Actions are (7,): six joint targets in rad and the gripper, 0 open to 1 closed. Reward 1 when the instructed block lies in the instructed bin.
    """
    metadata = {"render_modes": ["rgb_array"], "render_fps": HZ}
    render_mode = "rgb_array"

    def __init__(self, camera: Camera = Camera(), limit: int = 90):  # limit: steps until an episode is cut
        self.camera, self.limit = camera, limit
        self.model = copy.copy(compiled())
        self.data = mujoco.MjData(self.model)
        self.observation_space = gymnasium.spaces.Dict({
            "image": gymnasium.spaces.Box(0, 255, (camera.size, camera.size, 3), np.uint8),
            "state": gymnasium.spaces.Box(-np.inf, np.inf, (7,), np.float32)})
        self.action_space = gymnasium.spaces.Box(np.r_[[-np.pi] * 6, 0].astype(np.float32), np.r_[[np.pi] * 6, 1].astype(np.float32))

    def reset(self, *, seed=None, options=None):
        "Options: `shift` (0 nominal .. 1), or a whole `scene`."
        super().reset(seed=seed)
        options = options or {}
        self.arrange(options.get("scene") or sample_scene(int(self.np_random.integers(2**31)) if seed is None else seed, options.get("shift", 0.)))
        return self.observe(), {"instruction": self.scene.instruction, "scene": self.scene}

    def arrange(self, scene: Scene) -> None:
        "Put the lamp, bins and blocks of `scene` in place; the arm stands at home."
        self.scene, self.steps, self.picked = scene, 0, False
        mujoco.mj_resetData(self.model, self.data)
        for side, xy in scene.bins.items(): self.model.body(f"bin_{side}").pos[:2] = xy
        self.model.geom("table").rgba[:3] = scene.table
        self.data.qpos[:6] = self.data.ctrl[:6] = HOME
        for i, colour in enumerate(COLOURS):
            here = colour in scene.blocks
            x, y, yaw = scene.blocks.get(colour, (-2., float(i), 0.))               # absent blocks float weightless behind the camera's back
            self.data.qpos[block_slice(colour)] = [x, y, BLOCK if here else 1., np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
            self.model.body_gravcomp[self.model.body(colour).id] = 0 if here else 1
        mujoco.mj_forward(self.model, self.data)

    def step(self, action):
        action = np.asarray(action, float)
        if action.shape != (7,) or not np.isfinite(action).all(): raise ValueError(f"an action is 7 finite numbers (6 rad, gripper 0..1), not {action}")
        self.data.ctrl[:6] = action[:6].clip(-np.pi, np.pi)
        self.data.ctrl[6:] = action[6].clip(0, 1) * FINGER
        mujoco.mj_step(self.model, self.data, nstep=round(1 / HZ / self.model.opt.timestep))
        self.steps += 1
        self.picked |= self.position(self.scene.target)[2] > BLOCK + .04
        done = self.success()
        return self.observe(), float(done), False, self.steps >= self.limit, {"success": done, "picked": self.picked}

    def position(self, colour: str) -> np.ndarray: return self.data.qpos[block_slice(colour)][:3].copy()

    def success(self) -> bool:
        "The instructed block rests in the instructed bin and the gripper has let go."
        x, y, z = self.position(self.scene.target)
        bx, by = self.scene.bins[self.scene.side]
        open_ = self.data.qpos[6:8].mean() < .3 * FINGER
        return bool(abs(x - bx) < .07 and abs(y - by) < .07 and z < .06 and open_)

    def observe(self) -> dict: return {"image": self.render(), "state": proprioception(self.data.qpos)}

    def render(self): return look(self.model, self.data, self.scene, self.camera).rgb

    def draw(self, trace: "Trace") -> np.ndarray:
        "The frames (T, H, W, 3) of a trace: its poses drawn again, whatever physics would say of them."
        self.arrange(trace.scene)
        frames = []
        for q in trace.qpos:
            self.data.qpos[:] = q
            mujoco.mj_kinematics(self.model, self.data)
            frames.append(self.render())
        return np.stack(frames)


@lru_cache(1)
def _world() -> Workspace: return Workspace()


def path(scene: Scene, rng: Generator, noise: float = 0.0):  # -> (56, 3) m, (56,) 0..1
    "Where the fingertips should be after each step, and the gripper's command: hover, descend, close, lift, carry, lower, open, retreat."
    x, y, _ = scene.blocks[scene.target]
    bx, by = scene.bins[scene.side]
    wander = lambda scale: rng.normal(0, scale * noise, 3)
    times = np.array([0, 12, 18, 22, 28, 42, 46, 49, 56]) + np.r_[0, rng.integers(-2, 3) * (noise > 0) * np.ones(7), 0]
    above, grasp = np.array([x, y, .13]) + wander(.02), np.array([x, y, .015]) + wander(.003) * [1, 1, 0]
    over, drop = np.array([bx, by, .19]) + wander(.012) * [1, 1, 1], np.array([bx, by, .075]) + wander(.008) * [1, 1, 0]
    start = np.array([.285, 0, .238])
    points = np.stack([start, above, grasp, grasp, np.array([x, y, .19]) + wander(.01), over, drop, drop, over])
    t = np.arange(1, FRAMES)
    leg = np.searchsorted(times, t, side="left").clip(1, len(times) - 1)
    u = (t - times[leg - 1]) / (times[leg] - times[leg - 1])
    u = (u**3 * (10 - 15 * u + 6 * u**2))[:, None]                                  # minimum jerk
    close = ((t > times[2] + 1) & (t <= times[6] + 1)).astype(float)
    return points[leg - 1] * (1 - u) + points[leg] * u, close


class Reach:
    "Inverse kinematics of the fingertips, pointing down, by mink's quadratic program."
    def __init__(self):
        self.configuration = mink.Configuration(compiled())
        self.tip = mink.FrameTask("tip", "site", position_cost=1., orientation_cost=.3, lm_damping=1e-6)
        self.rest = mink.PostureTask(compiled(), cost=np.r_[[1e-4] * 6, [0.] * (compiled().nv - 6)])
        self.down = mink.SO3(np.array([0., 0., 1., 0.]))                             # half a turn about y: the hand looks down

    def __call__(self, points: np.ndarray, iterations: int = 4) -> np.ndarray:  # (N, 3) m -> (N, 6) rad
        q = compiled().qpos0.copy(); q[:6] = HOME
        self.configuration.update(q); self.rest.set_target(q)
        out = []
        for point in points:
            self.tip.set_target(mink.SE3.from_rotation_and_translation(self.down, point))
            for _ in range(iterations):
                v = mink.solve_ik(self.configuration, [self.tip, self.rest], 1., solver="daqp", damping=1e-6, limits=[])
                v[6:] = 0
                self.configuration.integrate_inplace(v, 1.)
            out.append(self.configuration.q[:6].copy())
        return np.stack(out)


@lru_cache(1)
def _reach() -> Reach: return Reach()


def expert(scene: Scene, noise: float = 0.0) -> np.ndarray:  # -> (56, 7)
    "The scripted expert's commands for a scene; `noise` is an operator's unsteadiness, 0 none to 1 clumsy."
    points, close = path(scene, default_rng([scene.seed, 1]), noise)
    return np.concatenate([_reach()(points), close[:, None]], 1)


def simulate(scene: Scene, actions: np.ndarray) -> Trace:
    "Play `actions` (N, 7) in a scene."
    world = _world()
    world.arrange(scene)
    qpos = [world.data.qpos.copy()]
    render, world.render = world.render, lambda: None                               # physics only; drawing comes after, if at all
    try:
        for a in actions:
            *_, info = world.step(a)
            qpos.append(world.data.qpos.copy())
    finally: world.render = render
    return Trace(scene, np.stack(qpos), np.concatenate([actions, actions[-1:]]).astype(np.float32), info["picked"], info["success"])


def play(scene: Scene, rng: Generator) -> np.ndarray:  # -> (56, 7)
    "Commands without a purpose: the hand wanders between random places and opens and closes, as a robot at play."
    stops = rng.uniform([.12, -.3, .03], [.46, .3, .28], (rng.integers(4, 9), 3))
    stops = np.concatenate([[[.285, 0, .238]], stops])
    u = np.linspace(0, len(stops) - 1, FRAMES)[1:]
    i = np.minimum(u.astype(int), len(stops) - 2)
    w = (u - i)[:, None]
    w = w**3 * (10 - 15 * w + 6 * w**2)
    close = np.repeat(rng.integers(0, 2, 8), 7)[:FRAMES - 1].astype(float)
    return np.concatenate([_reach()(stops[i] * (1 - w) + stops[i + 1] * w), close[:, None]], 1)


def episode(trace: Trace, kind: str = "teleop") -> Episode:
    "Draw a trace and pack it as an episode."
    s = trace.scene
    return Episode(_world().draw(trace), trace.state, trace.actions, s.instruction, float(HZ),
                   {"kind": kind, "seed": s.seed, "shift": s.shift, "success": trace.success})


def demonstrate(seed: int, shift: float = 0.0, noise: float = 0.0) -> Episode:
    "One demonstration by the scripted expert."
    scene = sample_scene(seed, shift)
    return episode(simulate(scene, expert(scene, noise)))


def demonstrations(seeds: list[int], shift: float = 0.0, noise: float = 0.5, workers: int | None = None) -> list[Episode]:
    "Demonstrations of many seeds, in their order, drawn by `workers` processes (default: one a core)."
    workers = min(workers or os.cpu_count() or 1, len(seeds))
    if workers <= 1: return [demonstrate(s, shift, noise) for s in seeds]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(demonstrate, seeds, [shift] * len(seeds), [noise] * len(seeds), chunksize=4))
