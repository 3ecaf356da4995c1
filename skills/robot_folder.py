"""A robot as a folder: what it is, what it can do, and what comes with it.

    robot = RobotFolder.load(Path("my_robot"))
    robot.embodiment, robot.library

robot.yaml       the embodiment (see skills.embodiment), and any of the keys in OWN
skills.yaml      what it can do (see skills.library)
examples.yaml    how people ask for it; adapter/ a language model's, fine-tuned for it (see planners.robot_language)
affordance/ execution/     checkpoints that judge and act

`python -m saycan_qt.new DIR` makes one. The kitchen's, skills/kitchen, is the one that everything is about by default.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from skills import files
from skills.embodiment import MOST_SENT, Embodiment
from skills.errors import EmbodimentError
from skills.library import MAX_WORD, SkillLibrary
from skills.openpi.keys import Keys
from skills.rules import ALWAYS
from skills.types import embodiment_of

KITCHEN = Path(__file__).with_name("kitchen")  # the one that ships
ROBOT, SKILLS = "robot.yaml", "skills.yaml"
AFFORDANCE, EXECUTION = "affordance", "execution"
OPENPI = "openpi"
# Keys of robot.yaml beside those of the embodiment
OWN = ("driver", "stop_command", "about", "views", AFFORDANCE, EXECUTION, OPENPI)
ADDRESS = re.compile(r"\S+:\d+")
CLASS = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class RobotFolder:
    """One robot."""

    path: Path
    embodiment: Embodiment
    driver: str = ""  # "module:Class", of a module in the folder or an installed one, or "HOST:PORT"; "": none is said
    stop_command: str = ""  # halts the robot without the driver's process: "module:function", or an http(s) address
    about: str = ""  # whom a chat model is told that it plans for; "": a robot of this name
    views: tuple[str, ...] = ()  # cameras for people
    affordance: str = ""  # what judges: a checkpoint by folder, a shipped one's name, or "module:Class"
    execution: str = ""  # what acts, likewise; "" for both: the folders affordance/ and execution/, if they are there
    openpi: Mapping[str, Any] = field(default_factory=dict)  # key of openpi's protocol -> camera (skills.openpi.keys)

    @classmethod
    def load(cls, path: Path) -> RobotFolder:
        """Reads robot.yaml. Raises EmbodimentError, which names the file."""
        file = path / ROBOT
        try:
            given = files.from_yaml(files.read(file))
        except (FileNotFoundError, NotADirectoryError):
            hint = "" if path.exists() else f"; `python -m saycan_qt.new {path}` makes one"
            raise EmbodimentError(f"{path}: no {ROBOT} in it, so it is not a robot's folder{hint}") from None
        except OSError as error:
            raise EmbodimentError(f"{file}: cannot be read: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise EmbodimentError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(given, Mapping):
            raise EmbodimentError(f"{file}: it must be `key: value` lines")
        body = {key: value for key, value in given.items() if key not in OWN}
        try:
            embodiment = Embodiment.parse(body, str(file))
        except EmbodimentError as error:
            if str(error).startswith(f"{file}: the embodiment: no key"):
                raise EmbodimentError(f"{error}, {', '.join(OWN)}") from None
            raise
        if len(embodiment.cameras) > MOST_SENT:  # of data there may be more
            raise EmbodimentError(f"{file}: {len(embodiment.cameras)} cameras; an observation carries {MOST_SENT}")
        texts = {key: _text(given, key, file) for key in OWN if key not in ("views", OPENPI)}
        driver = texts["driver"]
        if driver and not CLASS.fullmatch(driver) and not ADDRESS.fullmatch(driver):
            raise EmbodimentError(f"{file}: driver {driver!r}: give module:Class, or HOST:PORT of a robot that runs")
        return cls(path, embodiment, views=_texts(given, "views", file), openpi=_keys(given, embodiment, file), **texts)

    @property
    def name(self) -> str:
        """For people."""
        return self.embodiment.name or self.path.resolve().name

    @property
    def is_kitchen(self) -> bool:
        return self.path.resolve() == KITCHEN.resolve()

    @property
    def address(self) -> str | None:
        """Of a robot that runs, where the folder names one."""
        return self.driver if self.driver and not CLASS.fullmatch(self.driver) else None

    @cached_property
    def library(self) -> SkillLibrary:
        """Its skills; a scripted one without a rule is always of use. Raises LibraryError."""
        skills = SkillLibrary.load(self.path / SKILLS)
        return SkillLibrary(skill if skill.rule else replace(skill, rule=ALWAYS) for skill in skills)

    def model(self, role: str) -> str:
        """What judges (AFFORDANCE) or acts (EXECUTION), as `serve` takes it; "": the folder has none."""
        named = self.affordance if role == AFFORDANCE else self.execution
        if CLASS.fullmatch(named):
            return named
        inside = self.path / (named or role)
        return str(inside) if inside.exists() else named

    @property
    def halting(self) -> str:
        """`stop_command` as the guard takes it: where it names a module of the folder, with the file."""
        module, _, name = self.stop_command.partition(":")
        own = self._file(module) if CLASS.fullmatch(self.stop_command) else None
        return f"{self.path.resolve() / own.name}:{name}" if own else self.stop_command

    def _file(self, module: str) -> Path | None:
        """The folder's own module of that name, where it is one file of it."""
        own = self.path / f"{module}.py"
        return own if own.is_file() else None

    def find_modules(self) -> None:
        """From now on `import` finds the folder's own modules, after all others."""
        if (folder := str(self.path.resolve())) not in sys.path:
            sys.path.append(folder)

    def module(self, name: str) -> Any:
        """The folder's own file of that name, else what `import` finds. Raises what it raises when it is imported."""
        self.find_modules()
        own = self._file(name)
        return _module(name, own) if own else importlib.import_module(name)

    def drive(self, **given: Any) -> Any:
        """The driver, made with what its constructor takes by name of `given` and of folder=. It says the folder's
        embodiment, name and views, unless it says its own. Raises EmbodimentError where there is no such class, and
        where it would say no embodiment: nothing would bound what it is sent."""
        kind = self._class()
        wanted = inspect.signature(kind).parameters
        given["folder"] = self.path
        try:
            driver = kind(**{key: value for key, value in given.items() if key in wanted})
        except Exception as error:  # whatever a stranger's hardware or code has to say
            raise EmbodimentError(
                f"{self.path / ROBOT}: driver {self.driver!r} cannot be made: {_why(error)}"
            ) from error
        for key, value in (("embodiment", self.embodiment), ("name", self.name), ("views", self.views)):
            if not hasattr(driver, key):
                with suppress(AttributeError):  # slots
                    setattr(driver, key, value)
        if embodiment_of(driver) is None:
            raise EmbodimentError(
                f"{self.path / ROBOT}: driver {self.driver!r} has an `embodiment` that is no "
                "skills.embodiment.Embodiment, or takes none; rename it, or leave room for one (__slots__)"
            )
        return driver

    def _class(self) -> Any:
        file = self.path / ROBOT
        found = CLASS.fullmatch(self.driver)
        if not found:
            raise EmbodimentError(f"{file}: it has no driver; give one, such as `driver: driver:Robot` (module:Class)")
        module, name = found["module"], found["name"]
        try:
            loaded = self.module(module)
        except ModuleNotFoundError as error:
            if error.name != module.split(".")[0]:
                raise EmbodimentError(f"{file}: driver {self.driver!r} cannot be imported: {_why(error)}") from error
            where = f"no {self.path / f'{module}.py'} and no installed module {module!r}"
            raise EmbodimentError(f"{file}: driver {self.driver!r}: {where}") from None
        except Exception as error:
            raise EmbodimentError(f"{file}: driver {self.driver!r} cannot be imported: {_why(error)}") from error
        if not hasattr(loaded, name):
            raise EmbodimentError(f"{file}: driver {self.driver!r}: {loaded.__file__} has no {name!r}")
        kind = getattr(loaded, name)
        if not callable(kind):
            raise EmbodimentError(f"{file}: driver {self.driver!r} is a {type(kind).__name__}; name its class")
        return kind


def _why(error: Exception) -> str:
    """In one line, with the place in the driver's code."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    where = next((f"{frame.filename}:{frame.lineno}: " for frame in reversed(frames) if _own(frame.filename)), "")
    return f"{where}{type(error).__name__}: {' '.join(str(error).split())}"


def _own(filename: str) -> bool:
    """Is this code neither Python's, nor an installed package's, nor this file?"""
    return not filename.startswith("<") and "site-packages" not in filename and filename != __file__


def _module(name: str, file: Path) -> Any:
    """The module of this very file, whatever else has its name."""
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file.resolve()):
        return loaded
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None and spec.loader is not None, "it is a file of Python"
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@cache
def default_robot() -> RobotFolder:
    """The kitchen's, which everything is about where nobody names another robot."""
    return RobotFolder.load(KITCHEN)


def robot_of(folder: Path | None) -> RobotFolder:
    """The robot of a folder, else the kitchen's."""
    return default_robot() if folder is None else RobotFolder.load(folder)


def _text(given: Mapping[str, Any], key: str, file: Path) -> str:
    value = given.get(key) or ""
    if not isinstance(value, str):
        raise EmbodimentError(f"{file}: {key}: {str(value)[:100]!r} is no text")
    if len(value) > MAX_WORD or not value.replace("\n", " ").isprintable():
        raise EmbodimentError(f"{file}: {key}: {value[:100]!r} is above {MAX_WORD} characters, or cannot be read")
    return value


def _keys(given: Mapping[str, Any], embodiment: Embodiment, file: Path) -> Mapping[str, Any]:
    value = given.get(OPENPI) or {}
    if not isinstance(value, Mapping):
        raise EmbodimentError(f"{file}: {OPENPI}: write keys and their cameras, such as `observation/image: front`")
    try:
        Keys.of(embodiment, value)
    except EmbodimentError as error:
        raise EmbodimentError(f"{file}: {error}") from None
    return value


def _texts(given: Mapping[str, Any], key: str, file: Path) -> tuple[str, ...]:
    value = given.get(key) or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise EmbodimentError(f"{file}: {key}: write a list of names, such as `{key}: [front]`")
    if odd := [name for name in value if not name.strip() or not name.isprintable() or len(name) > MAX_WORD]:
        raise EmbodimentError(f"{file}: {key}: {odd[0][:100]!r} is no name that can be read")
    if twice := next((name for name, times in Counter(value).items() if times > 1), None):
        raise EmbodimentError(f"{file}: {key}: {twice!r} is there twice")
    return tuple(value)
