"""What is said of somebody's dataset beyond what it says of itself: which columns are what.

A LeRobotDataset that names its numbers needs none. A mapping is a short YAML file; a key that is left out leaves that
to the dataset:

    cameras: [front, wrist]                   # default: all; {NAME: column} names them anew, [] sees none
    image: observation.images.front           # one camera alone
    state: observation.state[0:7]             # null: none, the policy sees images alone
    action: ["action[0:6]", {column: "action[6]", invert: true}]
    names: [x, y, z, roll, pitch, yaw, gripper]       # of the action's numbers, where the dataset does not say
    kinds: {x: delta, y: delta, gripper: absolute}    # delta, absolute, fraction, terminate; or one for all: `delta`
    terminate: last                           # an episode's last step; or a column, or none
                                              # default: a dimension named terminate, else last
    success: next.success                     # or `all`, or a file of outcomes (see saycan_qt.data.layout.outcomes)
    reward: next.reward                       # where there is none: 1 at the last step of a success
    instruction: tasks                        # or a column of text
    image_size: [80, 96]                      # height, width [px]; default: the first camera's
    rate: 5                                   # [Hz] that the data has, where it does not say: RLDS never does
    skip_first: 1                             # frames left out at the start of each episode

`base: bridge` as a further key starts from a built-in mapping instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from saycan_qt.data.layout.columns import Columns, check_key
from saycan_qt.data.layout.outcomes import SUFFIXES, Outcomes
from saycan_qt.data.lerobot import DatasetError
from skills import files
from skills.embodiment import LEAST_HZ, MAX_SIDE, MOST_HZ, Kind

LAST, ALL, NONE = "last", "all", "none"
KINDS = get_args(Kind)


@dataclass(frozen=True)
class ColumnMapping:
    """Where a dataset keeps what an episode needs; None, or "", where the dataset says it."""

    cameras: tuple[tuple[str, str], ...] | None = None  # (name, column), name "" for the column's own; (): none
    state: tuple[Columns, ...] | None = None  # (): none
    action: tuple[Columns, ...] | None = None
    names: tuple[str, ...] | None = None  # of the action's numbers
    kinds: Mapping[str, str] = field(default_factory=dict)  # of named numbers; "": of all others
    # "last": an episode's last frame terminates unless the time limit cut it. A column: the first frame above one half
    # terminates, what follows it is left out, and an episode without one was cut. "none": no dimension terminates.
    # None: the action's number of that name or kind, else "last".
    terminate: Columns | str | None = None
    success: tuple[str, ...] | Outcomes | None = None  # the first one there, above 0 at the last frame; or all
    reward: str = ""  # where it is missing: 1 at the last step of a success
    instruction: str = ""
    image_size: tuple[int, int] | None = None  # (H, W) [px] to resize to
    skip_first: int = 0  # frames left out at the start of each episode
    rate: float = 0.0  # [Hz] of the data; 0: as it says

    @classmethod
    def load(cls, given: str | Path | ColumnMapping | None) -> ColumnMapping:
        """A built-in mapping by name, one from a YAML file, or the default."""
        if given is None or isinstance(given, ColumnMapping):
            return given or ColumnMapping()
        if str(given) in BUILT_IN:
            return BUILT_IN[str(given)]
        path = Path(given)
        if not path.exists():
            close = difflib.get_close_matches(str(given), BUILT_IN, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise DatasetError(f"no mapping {str(given)!r}; {hint}built in: {', '.join(BUILT_IN)}; else a YAML file")
        try:
            value = files.from_yaml(files.read(path))
        except (OSError, yaml.YAMLError) as error:
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
        if {"image", "cameras"} <= given.keys():
            raise DatasetError(f"{source}: `image` is one camera alone, `cameras` are several; leave one of them out")
        values: dict[str, Any] = {}
        for key, value in given.items():
            check_key(key, ["base", "image", *(field.name for field in fields(cls))], source)
            values["cameras" if key == "image" else key] = _parse(key, value, source)
        if "action" in values:  # what the base says of its own numbers is not of these
            values = {"names": None, "kinds": {}} | values
        return replace(BUILT_IN[base] if base else cls(), **values)

    def with_success(self, given: str | None) -> ColumnMapping:
        """Its outcomes from elsewhere: `all`, a column, or a file; None: as it is."""
        return self if given is None else replace(self, success=_parse("success", given, "success"))

    def described(self) -> dict[str, Any]:
        """What differs from the default, as JSON; nothing where nothing is said."""
        default = asdict(ColumnMapping())
        return {key: value for key, value in asdict(self).items() if value != default[key]}


DELTAS = ("dx", "dy", "dz", "droll", "dpitch", "dyaw")
# Features as the TFDS catalog lists them (tensorflow.org/datasets/catalog/fractal20220817_data and .../bridge).
BUILT_IN = {
    "fractal": ColumnMapping(
        cameras=(("", "steps/observation/image"),),
        state=(),  # RT-1 and Q-Transformer see images alone
        action=(
            Columns("steps/action/world_vector"),  # [m], base frame
            Columns("steps/action/rotation_delta"),  # [rad] roll, pitch, yaw; close to a rotation vector when small
            # Commands -1..1 relative to what the gripper does: +1 closes, -1 opens, 0 keeps [Octo, OpenVLA:
            # rel2abs_gripper_actions]. Our closedness is absolute, so a 0 has to become what came before it.
            Columns("steps/action/gripper_closedness_action", relative=True),
        ),
        names=(*DELTAS, "closedness"),
        kinds=dict.fromkeys(DELTAS, "delta") | {"closedness": "fraction"},
        # One-hot: [1, 0, 0] terminates, [0, 1, 0] goes on. RLDS's last step has an observation and no action, zeros
        # here (open_x_embodiment issue #45): the step before it terminates, and it is left out.
        terminate=Columns("steps/action/terminate_episode", 0, 1),
        success=("aspects/success", "steps/reward"),
        reward="steps/reward",
        instruction="steps/observation/natural_language_instruction",
        rate=3.0,
    ),
    "bridge": ColumnMapping(
        cameras=(("", "steps/observation/image"),),
        state=(),
        action=(
            Columns("steps/action/world_vector"),
            Columns("steps/action/rotation_delta"),
            Columns("steps/action/open_gripper", invert=True),  # bool
        ),
        names=(*DELTAS, "closedness"),
        kinds=dict.fromkeys(DELTAS, "delta") | {"closedness": "fraction"},
        terminate=LAST,
        success=("steps/reward",),
        reward="steps/reward",
        instruction="steps/observation/natural_language_instruction",
        rate=5.0,
        skip_first=1,  # its action is all zeros [OpenVLA: bridge_oxe_dataset_transform]
    ),
}
EXAMPLE = {  # of each key of the YAML file
    "image": "observation.images.front",
    "cameras": "[front, wrist]",
    "state": '"observation.state[0:7]"',
    "action": '["action[0:6]", {column: "action[6]", invert: true}]',
    "names": "[x, y, z, gripper]",
    "kinds": "{x: delta, gripper: absolute}",
    "terminate": LAST,
    "success": "next.success",
    "reward": "next.reward",
    "instruction": "tasks",
    "image_size": "[80, 96]",
    "rate": "5",
    "skip_first": "1",
}


def _parse(key: str, value: Any, source: str) -> Any:
    """One value of the YAML file."""

    def several(value: Any) -> list[Any]:
        return value if isinstance(value, list) else [value]

    def positive(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIDE

    def texts(values: Any) -> bool:
        return all(isinstance(text, str) and text for text in values)

    match key:
        case "state" | "action" if key == "state" or value is not None:
            return tuple(Columns.parse(entry, key, source) for entry in several([] if value is None else value))
        case "terminate":
            return value if value in (LAST, NONE, None) else Columns.parse(value, key, source)
        case "cameras" if isinstance(value, Mapping) and texts([*value, *value.values()]):
            return tuple(value.items())
        case "image" | "cameras" if (value is None and key == "cameras") or texts(several(value)):
            return tuple(("", column) for column in several([] if value is None else value))
        case "names" if isinstance(value, list) and texts(value):
            return tuple(value)
        case "kinds" if isinstance(value, str) and value in KINDS:
            return {"": value}
        case "kinds" if isinstance(value, Mapping) and texts(value) and all(kind in KINDS for kind in value.values()):
            return dict(value)
        case "success" if isinstance(value, str) and value.endswith(SUFFIXES):
            return Outcomes.load(Path(value))
        case "success" if texts(several(value)):
            return tuple(several(value))
        case "instruction" | "reward" if isinstance(value, str):
            return value
        case "image_size" if value is None or (isinstance(value, list) and [*map(positive, value)] == [True, True]):
            return value and tuple(value)
        case "rate" if isinstance(value, int | float) and not isinstance(value, bool) and LEAST_HZ <= value <= MOST_HZ:
            return float(value)
        case "skip_first" if isinstance(value, int) and value >= 0:
            return value
    raise DatasetError(f"{source}: {key} is {value!r:.100}; write for instance `{key}: {EXAMPLE[key]}`")
