"""Which columns of somebody's dataset are the image, state, action, outcome and instruction.

A mapping is a short YAML file; a key that is left out keeps its default, which is what our own datasets have:

    image: observation.images.front           # default: the first image
    state: observation.state[0:7]             # up to 8 numbers, zeros follow; null: zeros, the policy sees images alone
    action: ["action[0:6]", {column: "action[6]", invert: true}]      # in the order of skills.types.ACTION_NAMES
    terminate: last                           # or a column; default: the eighth number of `action`
    success: next.success                     # or `all`; default: next.success, else next.reward
    reward: next.reward                       # where there is none: 1 at the last step of a success
    instruction: tasks                        # or a column of text
    image_size: [80, 96]                      # height, width [px]; default: as stored

`base: bridge` as a further key starts from a built-in mapping instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from saycan_qt.data.columns import Columns, Numbers, check_key, nearest
from saycan_qt.data.lerobot import ACTION, STATE, BadEpisode, DatasetError
from skills.types import ACTION_NAMES, STATE_NAMES, TERMINATE_THRESHOLD

LAST, ALL = "last", "all"
TOLERANCE = 0.01  # on the fractions 0..1: sensors and float16 overshoot a little


@dataclass(frozen=True)
class Arranged:
    """The numbers of an episode as policies want them, and which of its frames they belong to."""

    frames: slice
    states: np.ndarray  # (t, 8) float32
    actions: np.ndarray  # (t, 8) float32
    rewards: np.ndarray | None  # (t,) float32
    truncated: bool


@dataclass(frozen=True)
class ColumnMapping:
    """Where a dataset keeps what an episode needs; the default is our own datasets' layout."""

    image: str = ""  # "": the first image
    state: tuple[Columns, ...] = (Columns(STATE),)  # none: zeros
    action: tuple[Columns, ...] = (Columns(ACTION),)
    # "last": an episode's last frame terminates unless the time limit cut it. A column: the first frame above one half
    # terminates, what follows it is left out, and an episode without one was cut. None: the action's eighth number.
    terminate: Columns | str | None = None
    success: tuple[str, ...] = ("next.success", "next.reward")  # the first one there, above 0 at the last frame; or all
    reward: str = "next.reward"  # where it is missing: 1 at the last step of a success
    instruction: str = "tasks"
    image_size: tuple[int, int] | None = None  # (H, W) [px] to resize to
    skip_first: int = 0  # frames left out at the start of each episode

    @classmethod
    def load(cls, given: str | Path | ColumnMapping | None) -> ColumnMapping:
        """A built-in mapping by name, one from a YAML file, or the default."""
        if given is None or isinstance(given, ColumnMapping):
            return given or ColumnMapping()
        if str(given) in BUILT_IN:
            return BUILT_IN[str(given)]
        path = Path(given)
        if not path.is_file():
            close = difflib.get_close_matches(str(given), BUILT_IN, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise DatasetError(f"no mapping {str(given)!r}; {hint}built in: {', '.join(BUILT_IN)}; else a YAML file")
        try:
            value = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            hint = 'names with brackets stand in quotes: "action[0:6]"'
            raise DatasetError(f"{path}: cannot be read as YAML ({hint}): {error}") from None
        if not isinstance(value, dict):
            raise DatasetError(f"{path}: not a mapping; write lines such as `image: observation.images.front`")
        return cls.parse(value, str(path))

    @classmethod
    def parse(cls, given: Mapping[str, Any], source: str) -> ColumnMapping:
        given = dict(given)
        base = given.pop("base", None)
        if base is not None and base not in BUILT_IN:
            raise DatasetError(f"{source}: no built-in mapping {base!r}; there are {', '.join(BUILT_IN)}")
        values: dict[str, Any] = {}
        for key, value in given.items():
            check_key(key, ["base", *(field.name for field in fields(cls))], source)
            values[key] = _parse(key, value, source)
        return replace(BUILT_IN[base] if base else cls(), **values)

    def described(self) -> dict[str, Any]:
        """What differs from the default, as JSON; nothing for our own datasets."""
        default = asdict(ColumnMapping())
        return {key: value for key, value in asdict(self).items() if value != default[key]}

    @property
    def columns(self) -> list[str]:
        """Columns of numbers that every frame must have."""
        terminate = [self.terminate] if isinstance(self.terminate, Columns) else []
        return list(dict.fromkeys(entry.column for entry in [*self.state, *self.action, *terminate]))

    def check(self, where: str, images: Collection[str], widths: Mapping[str, int], texts: Collection[str]) -> None:
        """Raises DatasetError, with the line to write, unless the dataset has all that is named here.

        images, texts: names of columns; widths: numbers a frame of each column of numbers."""

        def fail(problem: str, line: str) -> DatasetError:
            numbers = ", ".join(f"{name} ({width})" for name, width in sorted(widths.items()))
            return DatasetError(
                f"{where}: {problem}\n  images: {', '.join(sorted(images)) or 'none'}\n  numbers: {numbers or 'none'}\n"
                f"  texts: {', '.join(sorted(texts)) or 'none'}\nA mapping needs a line such as\n  {line}\n"
                f"(mapping=..., a YAML file or one of {', '.join(BUILT_IN)})"
            )

        if (self.image or not images) and self.image not in images:
            line = f"image: {nearest(self.image, images, 'observation.images.front')}"
            raise fail(f"it has no image {self.image!r}" if self.image else "it has no images", line)
        lines = {
            "state": "state: null",
            "action": f'action: ["{nearest(ACTION, widths, ACTION)}[0:7]"]',
            "terminate": "terminate: last",
        }
        terminate = (self.terminate,) if isinstance(self.terminate, Columns) else ()
        totals = {}
        for key, entries in (("state", self.state), ("action", self.action), ("terminate", terminate)):
            for entry in entries:
                if entry.column not in widths:
                    close = difflib.get_close_matches(entry.column, widths, 1)
                    hint = f"; did you mean {close[0]!r}?" if close else ""
                    raise fail(f"no column {entry.column!r}, wanted for `{key}`{hint}", lines[key])
                if entry.width(widths[entry.column]) <= 0 or (entry.stop or 0) > widths[entry.column]:
                    there = f"{entry.column} has {widths[entry.column]} numbers"
                    raise fail(f"{there}, `{key}` wants {entry.start}:{entry.stop}", lines[key])
            totals[key] = sum(entry.width(widths[entry.column]) for entry in entries)
        if totals["state"] > len(STATE_NAMES):
            line = f'state: "{self.state[0].column}[0:{len(STATE_NAMES)}]"'
            raise fail(f"the state has {totals['state']} numbers, policies take {len(STATE_NAMES)}", line)
        wanted = len(ACTION_NAMES) - (self.terminate is not None)
        if totals["action"] != wanted:
            line = lines["terminate" if totals["action"] == wanted - 1 else "action"]
            names = ", ".join(ACTION_NAMES[:wanted])
            raise fail(f"the action has {totals['action']} numbers, not {wanted} ({names})", line)
        if terminate and totals["terminate"] != 1:
            line = f'terminate: "{terminate[0].column}[0]"'
            raise fail(f"`terminate` takes one number, not {totals['terminate']}", line)
        if self.success != (ALL,) and not any(name in widths for name in self.success):
            line = f"success: {ALL}   # if every episode shows a success"
            raise fail(f"none of the success labels {', '.join(self.success)}", line)
        if self.instruction not in texts:
            line = f"instruction: {nearest(self.instruction, texts, 'tasks')}"
            raise fail(f"no text {self.instruction!r}, wanted for `instruction`", line)

    def arrange(self, numbers: Numbers, length: int, truncated: bool, rewards: np.ndarray | None = None) -> Arranged:
        """The numbers of one episode of `length` frames; truncated: the dataset says that the time limit cut it.

        What was earned after the terminating frame counts for that frame."""
        states = np.zeros((length, len(STATE_NAMES)), np.float32)
        if self.state:
            values = np.concatenate([entry.take(numbers) for entry in self.state], axis=1)
            states[:, : values.shape[1]] = values
        actions = np.concatenate([entry.take(numbers) for entry in self.action], axis=1)
        end = length
        if self.terminate is not None:
            ends = np.zeros((length, 1), np.float32)
            if isinstance(self.terminate, Columns):
                ends[:] = self.terminate.take(numbers) > TERMINATE_THRESHOLD
                truncated = not ends.any()
                end = length if truncated else int(ends.argmax()) + 1
            elif length:
                ends[-1] = not truncated
            actions = np.concatenate([actions, ends], axis=1)
        frames = slice(self.skip_first, end)
        if not len(actions[frames]):
            raise BadEpisode(f"none of its {length} frames is left between `skip_first` and the terminating one")
        if self != ColumnMapping():
            _check_fractions(actions[frames])
        if rewards is not None:
            rewards = np.append(rewards[: end - 1], rewards[end - 1 :].sum())[frames].astype(np.float32)
        return Arranged(frames, states[frames], actions[frames], rewards, truncated)


# Features as the TFDS catalog lists them (tensorflow.org/datasets/catalog/fractal20220817_data and .../bridge).
BUILT_IN = {
    "fractal": ColumnMapping(
        image="steps/observation/image",
        state=(),  # RT-1 and Q-Transformer see images alone; its pose is a quaternion, ours a rotation vector
        action=(
            Columns("steps/action/world_vector"),  # [m], base frame
            Columns("steps/action/rotation_delta"),  # [rad] roll, pitch, yaw; close to a rotation vector when small
            # Commands -1..1 relative to what the gripper does: +1 closes, -1 opens, 0 keeps [Octo, OpenVLA:
            # rel2abs_gripper_actions]. Our closedness is absolute, so a 0 has to become what came before it.
            Columns("steps/action/gripper_closedness_action", relative=True),
        ),
        # One-hot: [1, 0, 0] terminates, [0, 1, 0] goes on. RLDS's last step has an observation and no action, zeros
        # here (open_x_embodiment issue #45): the step before it terminates, and it is left out.
        terminate=Columns("steps/action/terminate_episode", 0, 1),
        success=("aspects/success", "steps/reward"),
        reward="steps/reward",
        instruction="steps/observation/natural_language_instruction",
    ),
    "bridge": ColumnMapping(
        image="steps/observation/image",
        state=(),
        action=(
            Columns("steps/action/world_vector"),
            Columns("steps/action/rotation_delta"),
            Columns("steps/action/open_gripper", invert=True),  # bool
        ),
        terminate=LAST,
        success=("steps/reward",),
        reward="steps/reward",
        instruction="steps/observation/natural_language_instruction",
        skip_first=1,  # its action is all zeros [OpenVLA: bridge_oxe_dataset_transform]
    ),
}
EXAMPLE = {  # of each key of the YAML file
    "image": "observation.images.front",
    "state": '"observation.state[0:7]"',
    "action": '["action[0:6]", {column: "action[6]", invert: true}]',
    "terminate": LAST,
    "success": "next.success",
    "reward": "next.reward",
    "instruction": "tasks",
    "image_size": "[80, 96]",
    "skip_first": "1",
}


def _check_fractions(actions: np.ndarray) -> None:
    for name, hint in (("closedness", "`invert: true`, `relative: true` or a `scale`"), ("terminate", "`terminate`")):
        values = actions[:, ACTION_NAMES.index(name)]
        wrong = np.flatnonzero((values < -TOLERANCE) | (values > 1 + TOLERANCE))
        if len(wrong):
            value, step = values[wrong[0]], int(wrong[0])
            raise BadEpisode(f"{name} is {value:.3g} at step {step}, not within 0 to 1; does the mapping lack {hint}?")


def _parse(key: str, value: Any, source: str) -> Any:
    """One value of the YAML file."""

    def several(value: Any) -> list[Any]:
        return value if isinstance(value, list) else [value]

    def positive(value: Any) -> bool:
        return isinstance(value, int) and value > 0

    match key:
        case "state" | "action":
            return tuple(Columns.parse(entry, key, source) for entry in several(value or []))
        case "terminate":
            return value if value in (LAST, None) else Columns.parse(value, key, source)
        case "success" if all(isinstance(name, str) for name in several(value)):
            return tuple(several(value))
        case "image" | "instruction" | "reward" if isinstance(value, str):
            return value
        case "image_size" if value is None or (isinstance(value, list) and [*map(positive, value)] == [True, True]):
            return value and tuple(value)
        case "skip_first" if isinstance(value, int) and value >= 0:
            return value
    raise DatasetError(f"{source}: {key} is {value!r}; write for instance `{key}: {EXAMPLE[key]}`")
