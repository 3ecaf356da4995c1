"""A Gymnasium environment as a robot behind RobotService: one task is one skill, each execution is one episode.

    python examples/gymnasium_robot.py                                    # the project's kitchen, with its own policy
    python examples/gymnasium_robot.py --skill "open top drawer" --episodes 3
    python examples/gymnasium_robot.py --env my_package:MyArm-v0 --skill "push the puck"       # random actions
    python examples/gymnasium_robot.py --env my_package:MyArm-v0 --skill "push the puck" --skill-server HOST:PORT
    python examples/gymnasium_robot.py --serve 127.0.0.1:50052            # until Ctrl-C, for other clients

What has to be mapped is `Mapping`: only the kitchen's is exact. `guess` makes any other environment with a Box of
actions run, but an environment names neither its numbers nor their units: a policy is of use only if it was trained on
episodes that were recorded through the same mapping. Write your own, with names, metres and radians.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import tyro

from skills.client import RobotClient, SkillClient
from skills.embodiment import ActionDimension, Camera, Embodiment, StateNumber
from skills.errors import SkillError
from skills.library import Skill, SkillLibrary
from skills.robot import serve as serve_robot
from skills.robot_folder import default_robot
from skills.server import serve as serve_skills
from skills.types import Actor, Observation, Outcome


@dataclass(frozen=True)
class Mapping:
    """What an environment is to a policy."""

    embodiment: Embodiment
    images: Callable[[Any], dict[str, np.ndarray]]  # its observation -> each camera's (H, W, 3) uint8 RGB
    state: Callable[[Any], np.ndarray]  # its observation -> (S,) float32
    action: Callable[[np.ndarray], Any] = lambda action: action  # (D,) float32 -> its action


KITCHEN = Mapping(
    default_robot().embodiment, images=lambda seen: {"head": seen["image"]}, state=lambda seen: seen["state"]
)


def guess(env: gymnasium.Env, probe: gymnasium.Env) -> Mapping:
    """A rendering, the observation's numbers, and the action as the environment has it; nothing terminates, so that a
    skill ends by success or by time. Raises ValueError where that cannot be.

    probe: another one alike, which is looked at here. What draws by OpenGL does so only on the thread where it began,
    and gives black pictures on others; the robot has a thread of its own."""
    box = env.action_space
    if not isinstance(box, gymnasium.spaces.Box) or box.shape is None or len(box.shape) != 1 or not box.is_bounded():
        raise ValueError(f"the environment takes {box}; only a bounded list of numbers can be guessed at")
    seen, _ = probe.reset()
    height, width, _ = np.shape(probe.render())

    def state(seen: Any) -> np.ndarray:
        return np.asarray(gymnasium.spaces.flatten(env.observation_space, seen), np.float32)

    embodiment = Embodiment(
        action=tuple(
            ActionDimension(f"action {i}", float(low), float(high))
            for i, (low, high) in enumerate(zip(box.low, box.high, strict=True))
        ),
        cameras=(Camera("room", height, width),),
        state=tuple(StateNumber(f"state {i}") for i in range(len(state(seen)))),
        control_hz=float(env.metadata.get("render_fps", 0)),
        name=env.spec.id if env.spec else type(env.unwrapped).__name__,
    )
    return Mapping(
        embodiment,
        images=lambda seen: {"room": np.asarray(env.render())},
        state=state,
        action=lambda action: action.astype(box.dtype),
    )


class GymnasiumRobot:
    """A skills.types.Robot whose world is an environment, made anew for each skill."""

    views = ("room",)

    def __init__(self, env: gymnasium.Env, mapping: Mapping, seed: int = 0) -> None:
        self.name, self.embodiment = mapping.embodiment.name, mapping.embodiment
        self._env, self._mapping = env, mapping
        self._seen, self._info = env.reset(seed=seed)
        self._over = self._fresh = True

    def observe(self) -> Observation:
        return Observation(self._mapping.images(self._seen), self._mapping.state(self._seen))

    def apply(self, action: np.ndarray) -> None:
        if not self._over:  # an episode that ended by itself: nothing moves until the next skill
            step = self._env.step(self._mapping.action(action))
            self._seen, _, terminated, truncated, self._info = step
            self._over, self._fresh = terminated or truncated, False

    def stop(self) -> None: ...  # between two steps an environment stands still

    def start(self, skill: Skill) -> None:
        if not self._fresh:
            self._seen, self._info = self._env.reset()
        self._over, self._fresh = False, True

    def perform(self, skill: Skill, canceled: Callable[[], bool]) -> None:
        raise ValueError(f"an environment has nothing scripted, and {skill.name!r} is")

    def succeeded(self, skill: Skill) -> bool | None:
        """What the environment itself says; most say it in one of these two words, many not at all."""
        verdict = self._info.get("success", self._info.get("is_success"))
        return None if verdict is None else bool(verdict)

    def finish(self, skill: Skill, canceled: Callable[[], bool]) -> None: ...

    def satisfied(self, instruction: str) -> bool | None:
        return None

    def view(self, name: str) -> np.ndarray:
        return np.asarray({"room": self._env.render}[name]())


class Flail:
    """Random actions, for environments that no policy was trained on."""

    def __init__(self, embodiment: Embodiment, seed: int) -> None:
        self.embodiment, self._generator = embodiment, np.random.default_rng(seed)

    def act(self, history: Sequence[Observation], instruction: str) -> np.ndarray:
        return self._generator.uniform(self.embodiment.low, self.embodiment.high).astype(np.float32)


@dataclass(frozen=True)
class Config:
    env: str = "kitchen"  # this project's, or an id as gymnasium.make takes it
    skill: str = "pick coke can"  # what its task is called; in the kitchen, a learnt skill
    episodes: int = 1  # executions
    seed: int = 0
    serve: str = ""  # HOST:PORT to serve the robot at, and nothing else
    skill_server: str = ""  # HOST:PORT of the policy; by default the one that comes with the project, or random actions


def make(config: Config) -> tuple[gymnasium.Env, Mapping, Skill]:
    if config.env == "kitchen":
        from saycan_qt.kitchen.env import KitchenEnv

        skill = SkillLibrary.load()[config.skill]
        return KitchenEnv(skill), KITCHEN, skill
    env = gymnasium.make(config.env, render_mode="rgb_array")
    with closing(gymnasium.make(config.env, render_mode="rgb_array")) as probe:
        return env, guess(env, probe), Skill(config.skill, config.env)


def policy(config: Config, embodiment: Embodiment) -> Actor:
    if config.env != "kitchen":
        return Flail(embodiment, config.seed)
    from saycan_qt.learning import checkpoint

    return checkpoint.load("execution")


def execute(config: Config, address: str) -> int:
    """Exit code 0 when at least one episode succeeded."""
    outcomes = []
    with RobotClient(address) as robot:
        for _ in range(config.episodes):
            *_, outcome = robot.execute(config.skill)
            assert isinstance(outcome, Outcome)  # the last item is
            outcomes.append(outcome)
            print(f"{config.skill}: {outcome.status.value} after {outcome.steps} steps {outcome.message}", flush=True)
    return 0 if any(outcome.succeeded for outcome in outcomes) else 1


def main(config: Config) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    with ExitStack() as stack:
        try:
            env, mapping, skill = make(config)
            stack.callback(env.close)  # once nothing draws any more
            library = SkillLibrary([skill])
            server = config.skill_server
            if not server:
                server = stack.enter_context(serve_skills(library, actor=policy(config, mapping.embodiment))).address
            skills = stack.enter_context(SkillClient(server))
            address = config.serve or "127.0.0.1:0"
            robot = stack.enter_context(
                serve_robot(GymnasiumRobot(env, mapping, config.seed), library, skills, address=address)
            )
            if not config.serve:
                return execute(config, robot.address)
        except (SkillError, ValueError, ModuleNotFoundError, gymnasium.error.Error) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"{config.env} listening on {robot.address}", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
