"""OGBench's manipulation datasets, made here by its own scripted oracles instead of downloaded.

    python benchmarks/ogbench_datasets.py --name cube-single-play --transitions 300000 --out data/ogbench
    python benchmarks/ogbench_datasets.py --name scene-play                          # the published size, a million

Killed and started again with the same command it goes on: finished episodes lie in OUT/NAME-v0.parts. The result,
OUT/NAME-v0.npz, is in the format that OGBench publishes and loads, and tells its seed beside that. A file that is there
already, such as a published one, is taken where it has enough episodes, and overwritten only by more of the same seed.
Needs the extra `ogbench`; it renders nothing. About half an hour of one CPU core for a million transitions.

The recipe is OGBench's data_gen_scripts/generate_manipspace.py (MIT licence), which its package leaves out, for the
kind `play`: an oracle follows a plan with correlated noise to one random target after the other, whatever the tasks
are. Departs: episodes are seeded one by one, so that the data can be made again and in parts; and no second file for
validation is made, as our training holds episodes out itself.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from saycan_qt import atomic

LENGTH = 1001  # steps of an episode; the last one's action leads to no state that is kept
KINDS = {"terminals": bool, "button_states": np.int64}  # numbers of another kind than float32
P_STACK = {"single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5)}  # by cubes
P_STACK_ELSE = (0.5, 0.5)


@dataclass(frozen=True)
class Config:
    """What is made."""

    name: str = "cube-single-play"  # cube-single-play, cube-double-play, scene-play, puzzle-3x3-play, ...
    transitions: int = 1_000_000
    out: Path = Path("data/ogbench")
    seed: int | None = None  # of the episodes; by default that of those which are there, 0 where none are


def recordings(transitions: int) -> int:
    """How many episodes have so many."""
    return -(-transitions // (LENGTH - 1))


def make(config: Config) -> Path:
    """The dataset's file, made now where it is not there yet. Raises ValueError where it is, of another seed or made
    elsewhere with too few."""
    path = config.out / f"{config.name}-v0.npz"
    parts, episodes, seed = path.with_suffix(".parts"), recordings(config.transitions), config.seed or 0
    if path.exists():
        with np.load(path) as there:
            count = int(there["terminals"].sum())
            before = int(there["seed"]) if "seed" in there else seed_of(parts, count)
        if config.seed not in (None, before):
            how = "elsewhere" if before is None else f"with seed {before}"
            raise ValueError(f"{path}: made {how}, not with seed {config.seed}; another --out")
        if count >= episodes:
            return path
        if before is None:
            raise ValueError(f"{path}: {count} of {episodes} episodes, made elsewhere; another --out")
        seed = before
        print(f"{path}: {count} of {episodes} episodes; making the others", flush=True)
    files = [parts / f"{seed}-{number:06d}.npz" for number in range(episodes)]
    play = None
    for number, part in enumerate(files):
        if not part.exists():
            play = play or Play(config.name)
            save(part, play.episode(seed, number))
            print(f"{config.name}: {number + 1} of {episodes} episodes", flush=True)
    loaded = [dict(np.load(part)) for part in files]
    save(path, {key: np.concatenate([rows[key] for rows in loaded]) for key in loaded[0]} | {"seed": np.array(seed)})
    return path


def seed_of(parts: Path, count: int) -> int | None:
    """Of a file that was made before it told its seed: that of its parts, where all of them are there."""
    seeds = [path.name.partition("-")[0] for path in parts.glob("*-*.npz")]
    return int(seeds[0]) if len(set(seeds)) == 1 and len(seeds) >= count else None


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


class Play:
    """An environment and the oracles that play in it."""

    def __init__(self, name: str) -> None:
        import gymnasium
        import ogbench.manipspace  # noqa: F401  it registers the environments
        from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
        from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
        from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
        from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

        self.name, kind = name.rsplit("-", 1)
        if kind != "play":
            raise ValueError(f"{name}: only datasets of the kind `play` are made here, as {self.name}-play")
        self.env = gymnasium.make(
            f"{self.name}-v0", terminate_at_goal=False, mode="data_collection", max_episode_steps=LENGTH
        )
        noise = {"env": self.env, "noise": 0.1, "noise_smoothing": 0.5}
        pushes = ButtonPlanOracle(**noise, gripper_always_closed=name.startswith("puzzle"))
        self.oracles: dict[str, Any] = {"button": pushes}
        if not name.startswith("puzzle"):
            self.oracles |= {"cube": CubePlanOracle(**noise)}
        if name.startswith("scene"):
            self.oracles |= {"drawer": DrawerPlanOracle(**noise), "window": WindowPlanOracle(**noise)}
        cubes = self.name.removeprefix("cube-")
        self.p_stack = P_STACK.get(cubes, P_STACK_ELSE)

    def episode(self, seed: int, number: int) -> dict[str, np.ndarray]:
        """Each as (LENGTH, ...) rows; tried again where the scene's cube gets out of sight, as the recipe has it."""
        for attempt in range(100):
            rows = self._try([seed, number, attempt])
            if not self.name.startswith("scene") or in_sight(rows["qpos"][:, 14:17]):
                return rows
        raise RuntimeError(f"{self.name}: the cube of episode {number} was out of sight in 100 attempts")

    def _try(self, seed: list[int]) -> dict[str, np.ndarray]:
        first, second = np.random.SeedSequence(seed).generate_state(2)
        np.random.seed(first)  # of the oracles
        observation, info = self.env.reset(seed=int(second))
        p_stack = np.random.uniform(*self.p_stack)
        rows: dict[str, list[Any]] = {}
        oracle = self.oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        over = False
        while not over:
            action = np.clip(oracle.select_action(observation, info), -1, 1)
            after, _, terminated, truncated, info = self.env.step(action)
            over = terminated or truncated
            if oracle.done:
                seen, told = self.env.unwrapped.set_new_target(p_stack=p_stack)
                oracle = self.oracles[told["privileged/target_task"]]
                oracle.reset(seen, told)
            row = {"observations": observation, "actions": action, "terminals": over}
            row |= {"qpos": info["prev_qpos"], "qvel": info["prev_qvel"]}
            if "prev_button_states" in info:
                row["button_states"] = info["prev_button_states"]
            for key, value in row.items():
                rows.setdefault(key, []).append(value)
            observation = after
        return {key: np.array(value, KINDS.get(key, np.float32)) for key, value in rows.items()}


def in_sight(cube: np.ndarray) -> bool:
    """Cube positions (N, 3) [m] within the scene, or in its drawer."""
    _, y, z = cube.T
    return not (y >= 0.29).any() and not ((y <= -0.3) & ((z < 0.06) | (z > 0.08))).any()


def main() -> int:
    try:
        print(make(tyro.cli(Config, description=__doc__)))
    except (ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
