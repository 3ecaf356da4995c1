"""A collection of episodes: what it holds, and its every episode from the seed and a number alone."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from saycan_qt import atomic
from saycan_qt.data import lerobot
from saycan_qt.data.episodes import Episode, EpisodeWriter
from saycan_qt.data.relabel import POSSIBLE, lines
from saycan_qt.kitchen.camera import HEAD
from saycan_qt.kitchen.looks import LookName
from saycan_qt.kitchen.physics import Unstable
from saycan_qt.kitchen.practice import affordances, rollouts
from saycan_qt.kitchen.practice.experts import STEP
from saycan_qt.kitchen.practice.replays import Demonstration, Replay
from skills.library import SkillLibrary
from skills.types import Actor

FAMILY_WEIGHTS = {
    "pick": 2.5,
    "move near": 2.0,
    "open drawer": 1.0,
    "close drawer": 0.8,
    "place into drawer": 1.6,
    "pick from drawer": 1.6,
}
FAILURES = rollouts.MODES[1:]
SETTINGS = "collect.json"  # in a collection's folder
CONTENT = {"weights": "another policy of that name", "shown": "other demonstrations in --replay"}  # digests of these
FOLLOWS = {"weights": "policy", "shown": "replay", "of": "replay"}  # settings that differ where another one does
MERGED = "merged"  # in the settings of what was merged
GRASPLESS = {"open drawer", "close drawer"}
TRIES = 50  # until an episode ends as its kind should
ENDLESS_STEPS = 22  # an episode that never terminates is cut here, before its tail outweighs everything else


@dataclass(frozen=True)
class CollectConfig:
    """Options of `python -m saycan_qt.collect`."""

    out: Path  # folder of the collection; a dataset for each worker is written below it
    episodes: int = 6000  # how many in all
    # K/N: only every Nth of them, from the Kth on, as one of N machines collects them; `collect merge` makes one
    # dataset of all N
    shard: Annotated[str, tyro.conf.arg(metavar="K/N", help_behavior_hint="")] = ""
    seed: int = 0  # decides every episode
    failures: float = 0.33  # share of failed episodes
    # Share of short failed episodes in scenes disturbed so that the skill is impossible: hand full, drawer open
    # already, object out of reach, ... An affordance model needs them, an execution model does not
    impossible: float = 0.0
    # Share of episodes in scenes made for another skill, or after one; otherwise a skill is seen in its own scenes only
    anywhere: float = 0.0
    # Note with each episode which skills were possible where it began, as the simulator knows. Then
    # `saycan_qt.train --relabel-with impossible` takes no skill for a failure that would have succeeded
    possible: bool = False
    # Checkpoint, or a shipped one's name, that acts instead of the experts: autonomous episodes, half of them disturbed
    policy: str = ""
    # Share of the policy's episodes that the scripted expert finishes, from the policy's own states; only its part is
    # kept. Demonstrations, as in DAgger
    help_by_expert: float = 0.0
    # Folder of a collection without failures (`--failures 0`), whose demonstrations are carried out again with noise,
    # one after the other [Q-Transformer, 5.2]; of another --seed
    replay: Path | None = None
    noise: float = 0.025  # [m] standard deviation of a replay's positions, at every step and along each axis
    pace: float = STEP  # [m] experts move the tip no further along an axis in one action
    look: LookName = "target"  # "source" differs in colours, light and camera, as a simulator does from the real thing
    families: tuple[str, ...] = ()  # only these families; all learnt ones when empty
    workers: int = 2  # processes, each with a dataset of its own below `out`
    # Ray cluster whose workers collect in place of processes here: auto (the one that this machine belongs to), local,
    # HOST:PORT or ray://HOST:PORT. What they collect is written here, the same as `workers` processes would write
    ray: Annotated[str, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = ""

    @property
    def numbers(self) -> range:
        """Of the episodes that are collected here. Raises ValueError."""
        piece, pieces = shard_in(self.shard)
        return range(piece - 1, self.episodes, pieces)


def shard_in(text: str) -> tuple[int, int]:
    """ "3/8" -> (3, 8); "" is all there is. Raises ValueError."""
    piece, _, pieces = (text or "1/1").partition("/")
    if not (piece.isdecimal() and pieces.isdecimal() and 1 <= int(piece) <= int(pieces)):
        raise ValueError(f"--shard {text}: which of how many, such as 3/8")
    return int(piece), int(pieces)


def datasets(folder: Path) -> list[Path]:
    """Those of the collection in `folder`: one of each worker that has begun, or the one that they were merged into."""
    if (folder / lerobot.INFO).exists():
        return [folder]
    return sorted(path for path in folder.glob("shard-*") if (path / lerobot.INFO).exists())


def writer(root: Path) -> EpisodeWriter:
    return EpisodeWriter(root, image_size=(HEAD.height, HEAD.width))


def several(numbers: Sequence[int], actor: Actor | None, config: CollectConfig) -> list[Episode]:
    library = SkillLibrary.load()
    return [episode(config, number, library, actor) for number in numbers]


def episode(config: CollectConfig, number: int, library: SkillLibrary, actor: Actor | None = None) -> Episode:
    """Episode `number` of a collection."""
    run: rollouts.Rollout | Replay
    if config.replay is not None:
        run, steps = replayed(config, number)
        kind: dict[str, Any] = {"mode": "replay", "demonstration": number % demonstrations(config.replay)}
    else:
        run, steps = carried_out(config, number, library, actor)
        kind = {"mode": run.mode}
        if config.possible:
            kind[POSSIBLE] = lines(run.possible)
    return Episode(
        images=np.stack([s.observation.image for s in steps if s.observation]),
        states=np.stack([s.observation.state for s in steps if s.observation]),
        actions=np.stack([s.action for s in steps]),
        task=run.skill.name,
        success=run.success,
        info={"number": number, "seed": config.seed, **kind, "truncated": int(run.truncated)},
    )


def carried_out(
    config: CollectConfig, number: int, library: SkillLibrary, actor: Actor | None = None, observing: bool = True
) -> tuple[rollouts.Rollout, list[rollouts.Step]]:
    """What an expert or `actor` did. Tries again, from the same generator, until the rollout ends as its kind should: a
    demonstration in success, a failure without, by ending too early where its kind never fails; what `actor` does by
    itself ends as it may, but not where the simulation gives up. Raises ValueError where it never does."""
    rng = np.random.default_rng([config.seed, number])
    weights = {f: w * (not config.families or f in config.families) for f, w in FAMILY_WEIGHTS.items()}
    mode = str(rng.choice(FAILURES)) if rng.random() < config.failures else "demonstration"
    if config.impossible > 0 and rng.random() < config.impossible:
        mode = rollouts.IMPOSSIBLE
    if actor is not None:
        helped = config.help_by_expert > 0 and rng.random() < config.help_by_expert
        mode = rollouts.HELPED if helped else rollouts.AUTONOMOUS
    anywhere = config.anywhere > 0 and mode not in rollouts.WITHOUT_HOPE and rng.random() < config.anywhere
    limit = ENDLESS_STEPS if mode == "endless" else rollouts.MAX_STEPS
    how: dict[str, Any] = {"look": config.look, "max_steps": limit, "actor": actor}
    how |= {"pace": config.pace, "observing": observing}
    kinds = [mode] * TRIES + ["early"] * TRIES * (mode in FAILURES)  # that one always fails
    if mode == "offset" and config.families and GRASPLESS.issuperset(config.families):
        del kinds[:TRIES]  # nobody fails by grasping beside what is not grasped
    for kind in kinds:
        skill = rollouts.random_skill(rng, library, weights)  # drawn even if unused: then a seed keeps its meaning
        try:
            if anywhere:
                run = affordances.start_anywhere(rng, library, weights, kind, **how)
            else:
                run = rollouts.start(rng, skill, library, kind, **how)
            if config.possible:
                run.possible = affordances.possible_names(run.world, library)
            steps = list(run)
        except Unstable:
            continue
        if mode == rollouts.HELPED and not (run.success and steps):  # nothing to help with, or too late
            continue
        if actor is not None or run.success == (mode == "demonstration"):
            return run, steps
    slow = f"; experts who move {config.pace:g} m an action may be too slow" if config.pace < STEP else ""
    raise ValueError(
        f"no episode of mode {mode!r} ended as it should in {TRIES} tries (--seed {config.seed}, number {number}){slow}"
    )


def replayed(config: CollectConfig, number: int) -> tuple[Replay, list[rollouts.Step]]:
    """Demonstration `number`, counted round and round, carried out again."""
    assert config.replay is not None
    rng = np.random.default_rng([config.seed, number])
    shown = demonstration(config.replay, number % demonstrations(config.replay))
    for _ in range(TRIES):
        run = Replay(shown, rng, config.noise)
        try:
            return run, list(run)
        except Unstable:
            continue
    raise ValueError(f"no replay of {config.replay} was stable in {TRIES} tries (seed {config.seed}, {number})")


@functools.cache
def demonstration(folder: Path, number: int) -> Demonstration:
    """Episode `number` of the collection in `folder`, made again from its seed; unlike the data, it has the scene."""
    run, steps = carried_out(settings_in(folder), number, SkillLibrary.load(), observing=False)
    actions, tips = (np.stack([getattr(step, what) for step in steps]) for what in ("action", "tip"))
    return Demonstration(run.skill, run.world.scene, settings_in(folder).look, actions, tips)


def collected(folder: Path) -> int:
    """How many episodes the collection in `folder` holds."""
    return sum(lerobot.read_info(root)["total_episodes"] for root in datasets(folder))


demonstrations = functools.cache(collected)  # of a collection that is replayed, and does not grow meanwhile


def settings_in(folder: Path) -> CollectConfig:
    """Of the collection in `folder`. Raises ValueError where it has none, or none of demonstrations alone."""
    if not (folder / SETTINGS).exists():
        raise ValueError(f"--replay {folder}: no collection of `python -m saycan_qt.collect` (it has no {SETTINGS})")
    there: Mapping[str, Any] = lerobot.read_json(folder / SETTINGS)
    known = {field.name for field in dataclasses.fields(CollectConfig)}
    given: dict[str, Any] = {k: tuple(v) if k == "families" else v for k, v in there.items() if k in known}
    config = CollectConfig(folder, **given)
    if config.shard:
        raise ValueError(
            f"--replay {folder}: it is --shard {config.shard} of a collection; `collect merge` makes it whole"
        )
    if config.failures or config.impossible or config.anywhere or config.policy or config.replay:
        raise ValueError(f"--replay {folder}: not of demonstrations alone, each in its own scene (--failures 0)")
    return config


def begin(config: CollectConfig, weights: str = "") -> None:
    """Refuse what cannot be collected, and to continue a collection with settings that would mix two; ValueError.

    weights: digest of --policy, whose name may be another policy's by the time that a collection goes on."""
    known = set(FAMILY_WEIGHTS)
    if unknown := set(config.families) - known:
        raise ValueError(f"no family {sorted(unknown)}; the learnt families are {sorted(known)}")
    settings = {"seed": config.seed, "failures": config.failures, "families": list(config.families)}
    settings["workers"] = config.workers  # decides which episode lies in which dataset
    if config.shard:
        settings["shard"] = "/".join(map(str, shard_in(config.shard)))
    usual = CollectConfig(config.out)
    if config.replay is not None:
        shown = settings_in(config.replay)
        if not demonstrations(config.replay):
            raise ValueError(f"--replay {config.replay} holds no episode yet")
        if shown.seed == config.seed:
            raise ValueError(f"--replay {config.replay} has --seed {shown.seed}, too: take another")
        mine = (config.failures, config.impossible, config.anywhere, config.policy, config.families, config.look)
        if mine != (usual.failures, 0.0, 0.0, "", (), usual.look) or config.possible or config.pace != usual.pace:
            raise ValueError("a replay does what was demonstrated: with --replay give --noise, --episodes, --seed")
    elif config.noise != usual.noise:
        raise ValueError("--noise is that of replays; it goes with --replay")
    if config.policy and (config.failures, config.impossible) != (usual.failures, usual.impossible):
        raise ValueError("--failures and --impossible are about experts' episodes; leave them out with --policy")
    if config.help_by_expert and not config.policy:
        raise ValueError("--help-by-expert finishes what a policy began: name it with --policy")
    if config.pace != usual.pace and config.policy and not config.help_by_expert:
        raise ValueError("--pace is that of experts; a --policy moves as it will")
    for key in (
        "impossible",
        "anywhere",
        "possible",
        "policy",
        "help_by_expert",
        "pace",
        "look",
    ):  # named where they matter
        if (value := getattr(config, key)) != getattr(usual, key):
            settings[key] = value
    if config.replay is not None:
        settings |= {"replay": str(config.replay), "noise": config.noise, "of": demonstrations(config.replay)}
        settings["shown"] = atomic.sha256((config.replay / SETTINGS).read_bytes())
    if weights:
        settings["weights"] = weights
    path = config.out / SETTINGS
    if not path.exists():
        config.out.mkdir(parents=True, exist_ok=True)
        atomic.write(path, atomic.to_json(settings))
        return
    there = lerobot.read_json(path)
    if there.get(MERGED):
        raise ValueError(f"{config.out} was merged; go on with what it was merged of, and merge again")
    for key in CONTENT.keys() - there.keys():  # collections of before it was noted
        settings.pop(key, None)
    if others := differing(settings, there):
        said = ", ".join(told(key, there.get(key)) for key in others)
        raise ValueError(f"{config.out} holds a collection made with {said}; use that, or another --out")


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The settings by which two collections are not the same."""
    found = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    if one.get("weights") and "weights" not in found:
        found = [key for key in found if key != "policy"]  # the same, under another name
    return [key for key in found if FOLLOWS.get(key) not in found]


def told(key: str, value: Any) -> str:
    """A setting as somebody would give it to `collect`; None: not at all."""
    option = f"--{key.replace('_', '-')}"
    if key in CONTENT:
        return CONTENT[key]
    if key == "of":
        return "another number of demonstrations in --replay"
    if value is True:
        return option
    if value is None or value is False or value == []:
        return f"no {option}"
    return shlex.join([option, *map(str, value if isinstance(value, list) else [value])])
