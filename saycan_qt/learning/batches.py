"""Random transitions of recorded episodes as tensors, with the images perceived once for all epochs and runs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from saycan_qt import atomic
from saycan_qt.data.cache import room
from saycan_qt.data.relabel import POSSIBLE, meanings, possible_tasks, relabel, relabel_impossible
from saycan_qt.learning.algorithms.policy import Batch, Policy
from saycan_qt.learning.stretches import Frames, Order, Shared
from saycan_qt.networks.augment import Augmentation, augmented
from saycan_qt.networks.keypoints import POSITION, KeypointTrunk
from saycan_qt.networks.pointing import PointingEncoder
from skills.embodiment import TERMINATE_THRESHOLD, ActionDimension, Embodiment
from skills.library import SkillLibrary

log = logging.getLogger(__name__)

HELD_OUT = 20  # every twentieth episode is kept for validation; where that is none or all, the last of two or more
PERCEIVED = 128  # frames at a time
GRIPPED = 100_000  # actions from which it is found how far a gripper moves
MOVES = 0.05  # of its range; one that moves less stands still
STRETCH, APART = 8, 8  # transitions of a stretch; stretches of a batch at least, or they are shorter
TERMINAL_MOTION = {"m": 1.0, "rad": 6.0}  # by unit, of what --terminal-motion says in metres
TERMINAL_MOTION_ELSE = 6.0  # of other units, times the dimension's range: as of a rotation whose range is 1 rad


class Episodes(Protocol):
    """What is needed of `saycan_qt.data.episodes.EpisodeDataset`."""

    embodiment: Embodiment
    cameras: dict[str, np.ndarray]  # camera -> (N, H, W, 3) uint8, all of one size; empty where there is none
    images: np.ndarray  # of the first camera
    states: np.ndarray
    actions: np.ndarray
    frame_episode: np.ndarray
    episode_start: np.ndarray
    episode_task: np.ndarray
    success: np.ndarray
    rewards: np.ndarray
    tasks: list[str]
    digest: str
    folder: Path  # in the cache

    @property
    def finished(self) -> np.ndarray: ...

    @property
    def info(self) -> Mapping[str, list[Any]]: ...


@dataclass(frozen=True)
class BatchConfig:
    """How batches are drawn."""

    batch_size: int = 512  # transitions
    # Consecutive transitions that are drawn together, so that each frame is encoded once for all windows that see it;
    # they are relabelled together, too, as one frame passes FiLM with one instruction. Departs (paper: drawn singly, as
    # far as it says). 0: 8, or fewer lest a batch have less than 8 stretches, where the image encoder is trained and
    # sees more than one frame at a time; else 1
    stretch: int = 0
    # "success": 1 at the last step of a success, else 0, as in the paper; "dataset": what was recorded with each step,
    # for which --value-low and --value-high give the range of returns
    reward: Literal["success", "dataset"] = "success"
    # Learn also, as from failures, from what robots were recorded doing that was canceled, aborted or lost
    unfinished: bool = False
    relabel: float = 0.0  # share of transitions given another episode's task and reward 0 [Q-Transformer, app. G]
    # "any": whatever the other episode's task. "impossible" departs from the paper, for affordances: only tasks that
    # were impossible where the episode began, as its data notes (`collect --possible`), all of them alike, and there
    # the target is 0, without a look at what comes next
    relabel_with: Literal["any", "impossible"] = "any"
    # Share of transitions replaced by the first one of their episode. Departs (paper: 0), for affordances: planners ask
    # from where episodes start, which only one transition in fifteen shows
    starts: float = 0.0
    # Share of transitions drawn from successful episodes alone, where these are a small part of the data: what imitates
    # them beside learning from everything sees enough of them. Departs (paper: 0)
    successes: float = 0.0
    jitter_common: float = 0.005  # [m] noise on the positions of all keypoints of a transition together (small preset)
    jitter_each: float = 0.003  # [m] and on each of them; about what perception gets wrong
    # Scripted demonstrations end standing exactly still. Told apart by that, the end would be chosen with the first
    # motion bin rather than with the terminate dimension, and too early: a sharp peak wins every arg max.
    # [m] noise on the changes (`delta`) in a terminating action. Rotations get 6 times that in rad, other units 6 times
    # that of their range
    terminal_motion: float = 0.015
    # Of what learns from pixels; the same for all frames of a stretch. Both depart (the paper names none)
    random_shift: float = 0.0  # share of the image's sides by which it is moved at most, in both directions
    colour_jitter: float = 0.0  # brightness, contrast and saturation are multiplied by 1 minus to 1 plus this
    seed: int = 0


class Transitions:
    """The batch of a step depends on seed and step alone, so that a run can be repeated and resumed."""

    def __init__(self, config: BatchConfig, dataset: Episodes, frames: Sequence[np.ndarray], policy: Policy) -> None:
        """frames: of each camera (N, ...), perceived ones or the dataset's images."""
        self.config, self.dataset, self.frames, self.policy = config, dataset, frames, policy
        policy.texts.keep(dataset.tasks)
        self.text = policy.texts.encode(dataset.tasks)
        self.meanings = meanings(dataset.tasks, SkillLibrary.load())
        self.possible: np.ndarray | None = None  # (E, tasks) bool
        if config.relabel > 0 and config.relabel_with == "impossible":
            self.possible = possible_tasks(require_notes(dataset), dataset.tasks)
        self.events = next_events(dataset) if taught(policy) else None  # (N, K)
        self.moving = [
            number for number, dimension in enumerate(dataset.embodiment.action) if dimension.kind == "delta"
        ]
        self.scales = [terminal_scale(dataset.embodiment.action[number]) for number in self.moving]
        episodes = np.arange(len(dataset.success))
        usable = np.asarray(dataset.success) if policy.only_successes else np.ones(len(episodes), bool)
        if not config.unfinished:
            usable = usable & np.asarray(dataset.finished)
        held_out = kept_from_training(usable)
        self.train, self.validation = (
            Frames(dataset.episode_start, episodes[usable & part]) for part in (~held_out, held_out)
        )
        if not len(self.train):
            what = "succeeded" if policy.only_successes else "came to its end (--unfinished takes others too)"
            raise ValueError(f"{policy.name} has nothing to train on: none of the episodes {what}")
        self.successes = Frames(dataset.episode_start, episodes[usable & ~held_out & np.asarray(dataset.success)])
        if config.successes > 0 and not len(self.successes):
            raise ValueError(f"--successes {config.successes}: none of the episodes that are trained on succeeded")
        lost = int(np.sum(dataset.success))
        if lost and not len(self.successes) and config.reward == "success":
            log.warning(
                "%s learns from failures alone: the only successes, %d, are kept for validation, as every %dth episode "
                "is, or did not come to their end",
                *(policy.name, lost, HELD_OUT),
            )
        pixels = bool(frames) and frames[0].dtype == np.uint8
        self.augmentation = Augmentation(config.random_shift, config.colour_jitter)
        if not pixels and (self.augmentation or config.stretch > 1):
            raise ValueError(
                "--stretch, --random-shift and --colour-jitter are for what learns from pixels; the images here are "
                f"{'perceived already (--no-freeze-trunk, or --preset compact)' if frames else 'none'}"
            )
        together = policy.network_config.history > 1 and pixels
        self.stretch = config.stretch or (max(1, min(STRETCH, config.batch_size // APART)) if together else 1)
        self._epoch = (-1, Order(1, 1, [0]))

    def rows(self, step: int) -> np.ndarray:
        """Frames of one step's batch; every epoch is a new permutation, of stretches."""
        places = np.arange(step * self.config.batch_size, (step + 1) * self.config.batch_size)
        epochs, places = np.divmod(places, len(self.train))
        return self.train[np.concatenate([self._order(e)(places[epochs == e]) for e in np.unique(epochs)])]

    def _order(self, epoch: int) -> Order:
        if self._epoch[0] != epoch:
            self._epoch = (epoch, Order(len(self.train), self.stretch, [self.config.seed, int(epoch)]))
        return self._epoch[1]

    def validation_rows(self, count: int) -> np.ndarray:
        """At most `count` frames of held-out episodes, always the same ones."""
        places = np.arange(min(count, len(self.validation)))
        return self.validation[Order(len(self.validation), self.stretch, [0])(places)] if len(places) else places

    def step_batch(self, step: int, mine: slice = slice(None)) -> Batch:
        """What step `step` trains on, or one process's part of it."""
        rng, rows = np.random.default_rng([self.config.seed, step, 1]), self.rows(step)
        if self.config.starts > 0:
            first = self.dataset.episode_start[self.dataset.frame_episode[rows]]
            rows = np.where(rng.random(len(rows)) < self.config.starts, first, rows)
        if self.config.successes > 0:
            succeeded = self.successes[rng.integers(len(self.successes), size=len(rows))]
            rows = np.where(rng.random(len(rows)) < self.config.successes, succeeded, rows)
        return self.batch(rows, rng, augment=True, mine=mine)

    def batch(self, rows: np.ndarray, rng: np.random.Generator, augment: bool, mine: slice = slice(None)) -> Batch:
        """Random numbers are drawn for all rows, so that processes which share a batch agree on them."""
        data, device = self.dataset, self.policy.device
        episode = np.asarray(data.frame_episode[rows])
        first, last = data.episode_start[episode], data.episode_start[episode + 1] - 1
        network, chunk = self.policy.network_config, self.policy.chunk
        shift = min(chunk, network.history) if self.policy.looks_ahead else 0
        now = np.arange(1 - network.history, 1)  # t - h + 1 .. t
        window = rows[:, None] + np.concatenate([now, now[network.history - shift :] + chunk])  # .. t + n
        window = np.clip(window, first[:, None], last[:, None])
        task = data.episode_task[episode]
        first_of, stretch = self.stretches(episode)  # one of them has one instruction, as FiLM wants of what is shared
        tasks, success = (values[stretch] for values in self.relabelled(episode[first_of], rng))
        terminated = last - rows < chunk
        relabelled = tasks != task
        if self.possible is not None:  # known to be impossible there: nothing that follows would earn anything
            terminated = terminated | (relabelled & (rows == first))
        reward, returns = self.rewards(rows, last, success, relabelled)
        after = np.minimum(rows + chunk, last)
        acted, to_act = (self.chunks(part, last, rng if augment else None) for part in (rows, after))
        shared = Shared.of(window[mine], stretch[mine], shift) if self.stretch > 1 else None
        frames = self.seen(window[mine] if shared is None else shared.rows[:, None])
        if shared is not None:
            frames = frames.flatten(0, 1)
        if frames.dtype != torch.uint8:
            frames = frames.float()
            if augment:
                frames[..., POSITION] += torch.from_numpy(self.jitter(len(rows), frames.shape[2], rng)[mine])
        tensors = {
            "frames": frames,
            "states": torch.from_numpy(np.asarray(data.states[window[mine]])),
            "text": self.text[torch.from_numpy(tasks[mine])],
            "actions": acted[mine].flatten(1),
            "tokens": self.policy.tokenizer.encode(acted[mine]).flatten(1),
            "next_tokens": self.policy.tokenizer.encode(to_act[mine]).flatten(1),
        }
        numbers = {"reward": reward, "terminated": terminated, "returns": returns, "demonstrates": success}
        if self.policy.looks_back:
            before = window[:, : network.history - 1]
            tokens = self.policy.tokenizer.encode(self.actions(before[mine].ravel(), None))
            began = rows[mine, None] + np.arange(-before.shape[1], 0) < first[mine, None]
            past = tokens.view(*began.shape, -1)
            tensors["past_tokens"] = past.masked_fill_(torch.from_numpy(began)[..., None], -1)
            of_each = (np.repeat(given, before.shape[1]) for given in (last, success, relabelled))
            numbers["past_returns"] = self.rewards(before.ravel(), *of_each)[1].reshape(before.shape)
        if chunk > 1:
            numbers |= {"there": self.there(rows, last), "next_there": self.there(after, last)}
        tensors |= {name: torch.from_numpy(value[mine].astype(np.float32)) for name, value in numbers.items()}
        if self.events is not None:
            events = self.events[rows[mine]]
            tensors["events"] = torch.from_numpy(np.asarray(data.states[np.maximum(events, 0)]))
            tensors["to_come"] = torch.from_numpy((events >= 0).astype(np.float32))
        seed = int(rng.spawn(1)[0].integers(2**62))  # a stream of its own: nothing is taken from `rng`
        if augment and self.augmentation:
            changes = self.augmentation.draw(len(first_of), rng.spawn(1)[0])
            if shared is None:
                images, belongs = frames.flatten(0, 1), stretch[mine].repeat(frames.shape[1])
            else:
                images, belongs = frames, shared.stretch.repeat(network.cameras)
            tensors["frames"] = augmented(images, changes[belongs]).view_as(frames)
        if shared is not None:
            cameras = np.arange(network.cameras)
            places = (shared.places[..., None] * network.cameras + cameras).reshape(len(shared.places), -1)
            spoken = np.empty(int(stretch.max()) + 1, np.int64)
            spoken[stretch[mine]] = np.arange(len(stretch[mine]))  # a sample of each stretch
            tensors["places"] = torch.from_numpy(places)
            tensors["spoken"] = torch.from_numpy(spoken[shared.stretch].repeat(network.cameras))
        fields = {name: value.to(device) for name, value in tensors.items()}
        alone = (0, 0) if shared is None else (shared.alone[0] * network.cameras, shared.alone[1] * network.cameras)
        return Batch(**fields, seed=seed, cameras=network.cameras, shift=shift, alone=alone)

    def stretches(self, episode: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which samples of a batch are the first ones of their stretches, and to which stretch each (B,) belongs; those
        of one episode that follow each other are one."""
        begins = np.ones(len(episode), bool)
        if self.stretch > 1:
            begins[1:] = np.diff(episode) != 0
        return np.flatnonzero(begins), np.cumsum(begins) - 1

    def relabelled(self, episode: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Episodes (B,) -> (B,) the tasks to learn about, and success at these."""
        data, share = self.dataset, self.config.relabel
        task, success = data.episode_task[episode], data.success[episode]
        if self.possible is not None:
            return relabel_impossible(task, success, rng, share, self.possible[episode], self.meanings)
        return relabel(task, success, rng, share, len(data.tasks), self.meanings, data.episode_task)

    def there(self, rows: np.ndarray, last: np.ndarray) -> np.ndarray:
        """(B, n * D) of bool: has the episode, which ends at `last`, an action for each dimension of a chunk?"""
        steps = np.arange(self.policy.chunk) <= (last - rows)[:, None]
        return np.repeat(steps, self.policy.tokenizer.dims, axis=1)

    def seen(self, window: np.ndarray) -> Tensor:
        """(B, T) rows -> (B, T * cameras, ...), the images of one time beside each other; (B, 0) without cameras."""
        if not self.frames:
            return torch.zeros(len(window), 0, dtype=torch.uint8)
        if len(self.frames) == 1:
            return torch.from_numpy(np.ascontiguousarray(self.frames[0][window]))
        views = np.stack([frames[window] for frames in self.frames], axis=2)
        return torch.from_numpy(views).flatten(1, 2)

    def rewards(
        self, rows: np.ndarray, last: np.ndarray, success: np.ndarray, relabelled: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(B,) rewards of a chunk's steps and (B,) returns-to-go, both discounted, of transitions, the last ones of
        whose episodes are `last`."""
        discount, to_go, chunk = self.policy.discount, last - rows, self.policy.chunk
        if self.config.reward == "success":
            returns = success * discount**to_go
            return returns * (to_go < chunk), returns
        later = rows[:, None] + np.arange(int(to_go.max()) + 1)
        each = np.asarray(self.dataset.rewards[np.minimum(later, last[:, None])]) * (later <= last[:, None])
        each = np.where(relabelled[:, None], np.minimum(each, 0), each)  # costs stay, what was earned does not
        each = each * discount ** np.arange(each.shape[1])
        return each[:, :chunk].sum(axis=1), each.sum(axis=1)

    def chunks(self, rows: np.ndarray, last: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        """(B, n, D) of a chunk, in physical units; after `last` it is repeated."""
        chunk = np.minimum(rows[:, None] + np.arange(self.policy.chunk), last[:, None])
        return self.actions(chunk.ravel(), rng).unflatten(0, chunk.shape)

    def actions(self, rows: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        """(B, D) in physical units; with a generator, terminating actions get `terminal_motion`."""
        actions, end = torch.from_numpy(np.array(self.dataset.actions[rows])), self.policy.tokenizer.terminate
        if rng is not None and end is not None and self.moving:
            noise = rng.normal(0, self.config.terminal_motion, (len(rows), len(self.moving))) * self.scales
            ends = actions[:, end] > TERMINATE_THRESHOLD
            actions[:, self.moving] += torch.from_numpy(noise.astype(np.float32)) * ends[:, None]
        return actions

    def jitter(self, count: int, keypoints: int, rng: np.random.Generator) -> np.ndarray:
        """(B, 1, K, 3) [m], the same for all frames of a transition."""
        common = rng.normal(0, self.config.jitter_common, (count, 1, 1, 3))
        return (common + rng.normal(0, self.config.jitter_each, (count, 1, keypoints, 3))).astype(np.float32)


def kept_from_training(usable: np.ndarray) -> np.ndarray:
    """(E,) bool: episodes that a run with these usable ones, (E,) bool, is validated on."""
    found = np.arange(len(usable)) % HELD_OUT == HELD_OUT - 1
    if not (usable & ~found).any():
        found[:] = False
    if not (found & usable).any() and usable.sum() > 1:
        found[np.flatnonzero(usable)[-1]] = True
    return found


def taught(policy: Policy) -> bool:
    """Has it eyes that learn to point from what happens next?"""
    encoder = policy.network.encoder
    return policy.points and isinstance(encoder, PointingEncoder) and encoder.errors is not None


def next_events(dataset: Episodes) -> np.ndarray:
    """(N, 3) of each frame, the rows at which its episode's next events happen, or -1: a gripper's number rises, one
    falls, the end."""
    count, ends = len(dataset.actions), np.asarray(dataset.episode_start[1:]) - 1
    begins, last = np.asarray(dataset.episode_start[:-1]), ends[np.asarray(dataset.frame_episode)]
    rises, falls = np.zeros(count, bool), np.zeros(count, bool)
    for number, dimension in enumerate(dataset.embodiment.action):
        if is_gripper(dimension):
            upper = upper_half(np.asarray(dataset.actions[:, number]), dimension, begins)
            turns = np.diff(upper.astype(int), prepend=0)
            turns[begins] = 0
            rises, falls = rises | (turns > 0), falls | (turns < 0)
    found = []
    for rows in (np.flatnonzero(rises), np.flatnonzero(falls), ends):
        following = np.append(rows, count)[np.searchsorted(rows, np.arange(count))]
        found.append(np.where(following <= last, following, -1))
    return np.stack(found, axis=1)


def upper_half(actions: np.ndarray, dimension: ActionDimension, begins: np.ndarray) -> np.ndarray:
    """(N,) actions of a gripper -> bool. What lies in the middle third is as it was before: commands are noisy."""
    low, high = dimension.low, dimension.high
    if dimension.kind != "fraction":  # in a unit whose range may be far wider than what it is told
        low, high = np.percentile(actions[:: max(1, len(actions) // GRIPPED)], (1, 99))
        if high - low < MOVES * (dimension.high - dimension.low):
            return np.zeros(len(actions), bool)
    third = (high - low) / 3
    side = (actions > high - third).astype(int) - (actions < low + third)
    side[begins] = np.where(actions[begins] > (low + high) / 2, 1, -1)
    return side[np.maximum.accumulate(np.where(side != 0, np.arange(len(side)), 0))] > 0


def is_gripper(dimension: ActionDimension) -> bool:
    """Is it told how far to be closed, or open?"""
    return dimension.kind == "fraction" or (dimension.kind == "absolute" and "gripper" in dimension.name.lower())


def require_notes(dataset: Episodes) -> list[str]:
    """What was possible where each episode began. Raises ValueError where that was not noted with all of them."""
    notes = dataset.info.get(POSSIBLE, [None])
    if any(note is None for note in notes):
        raise ValueError(
            "--relabel-with impossible: not all of the data says what was possible; `collect --possible` notes it"
        )
    return list(notes)


def terminal_scale(dimension: ActionDimension) -> float:
    """What `terminal_motion` is multiplied by for it."""
    return TERMINAL_MOTION.get(dimension.unit, TERMINAL_MOTION_ELSE * (dimension.high - dimension.low))


def return_range(dataset: Episodes, discount: float) -> tuple[float, float]:
    """The smallest and the largest discounted return-to-go of the recorded rewards."""
    begins, ends = np.asarray(dataset.episode_start[:-1]), np.asarray(dataset.episode_start[1:])
    to_go, low, high = np.zeros(len(begins)), np.inf, -np.inf
    for back in range(1, int((ends - begins).max(initial=0)) + 1):
        rows = ends - back
        there = rows >= begins
        to_go = np.asarray(dataset.rewards[np.maximum(rows, begins)], np.float64) + discount * to_go
        low, high = min(low, to_go[there].min()), max(high, to_go[there].max())
    return float(low), float(high)


def cached_features(
    folder: Path,
    dataset: Episodes,
    camera: str,
    trunk: KeypointTrunk,
    device: str,
    bfloat16: bool,
    cache_size: float = 0.0,
) -> np.ndarray:
    """(N, K, numbers) float16 memory map in `folder`: each of the camera's frames is perceived once for all epochs and
    runs. cache_size [GB] bounds what is kept there beside it, 0 does not."""
    digest, images = hashlib.sha256(), dataset.cameras[camera]
    for key, value in sorted(trunk.state_dict().items()):
        digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    if not bfloat16:  # what is usual is not said: so files of before either was are found
        digest.update(b"float32")
    if camera != next(iter(dataset.cameras)):
        digest.update(f"camera {camera}".encode())
    path = folder / f"features-{digest.hexdigest()[:12]}-{dataset.digest[:12]}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.lock(folder / ".features.lock", wait=True):  # a second run waits, then finds them
        needed = 0 if path.exists() else 2 * len(images) * trunk.config.keypoints * trunk.config.outputs
        if cache_size:
            with atomic.lock(folder / ".lock", wait=True):
                room.make_room(folder, needed, cache_size, [dataset.folder, path], "what the eyes saw in all frames")
        if needed:
            _perceive(path, images, trunk, device, bfloat16)
    room.used(path)
    return np.load(path, mmap_mode="r")


def _perceive(path: Path, images: np.ndarray, trunk: KeypointTrunk, device: str, bfloat16: bool) -> None:
    count, temporary = len(images), path.with_suffix(".tmp")
    shape = (count, trunk.config.keypoints, trunk.config.outputs)
    features = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
    with room.shown("features", count) as advance:
        for i in range(0, count, PERCEIVED):
            some = torch.from_numpy(np.array(images[i : i + PERCEIVED])).to(device)
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                features[i : i + PERCEIVED] = trunk(some).numbers().half().cpu().numpy()
            advance(len(some))
    features.flush()
    temporary.replace(path)
