"""Which models a skill server hosts: named at once, loaded and warmed when it can already be reached."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saycan_qt import atomic
from saycan_qt.services import own
from saycan_qt.services.processes import keep_memory
from saycan_qt.services.replicas import Replicas
from skills import files
from skills.embodiment import Embodiment
from skills.errors import EmbodimentError, SkillError, Unreadable
from skills.library import SkillLibrary
from skills.openpi.keys import is_openpi
from skills.robot_folder import RobotFolder, default_robot
from skills.serving.hosting import Calibrate, Model
from skills.types import Actor, Critic, Reader, blank, embodiment_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """What judges and what acts: named at once, loaded when the server can already be reached."""

    critic_id: str
    actor_id: str
    load: Callable[[], tuple[Critic, Actor]]  # raises Unreadable
    calibrate: Calibrate | None = None  # makes affordances of the critic's values; None: they are the values
    embodiment: Embodiment | None = None  # of the robots that they are for; None: not known before they are loaded

    def announced(self) -> Model:
        """What can be said before they are loaded."""
        return Model(None, None, self.critic_id, self.actor_id, self.calibrate, False, self.embodiment)


def checkpoints(
    affordance: str,
    execution: str,
    calibrated: bool = False,
    threads: int = 2,
    replicas: Replicas | None = None,
    body: RobotFolder
    | None = None,  # what is said there of the robot, for models that do not say for which one they are
    device: str = "cpu",
    bfloat16: bool | None = None,  # products; None: where the device gains
) -> Models:
    """One that judges and one that acts, here or in replicas: checkpoints, by a shipped one's name or by folder,
    `module:Class` of the user's own, or an openpi server that acts. Raises Unreadable."""
    (critic_id, judges), (actor_id, acts) = _identify(affordance, body), _identify(execution, body)
    curve, curve_id = _curve(affordance) if calibrated else (None, "")
    read = _reader(threads, replicas, body, device, bfloat16)

    def load() -> tuple[Critic, Actor]:
        critic = read(affordance)
        actor = critic if execution == affordance else read(execution)
        if not hasattr(critic, "value"):
            raise Unreadable(f"{_kind(affordance)} {affordance!r} only acts; one that judges is needed")
        if not hasattr(actor, "act"):
            raise Unreadable(f"{_kind(execution)} {execution!r} only judges; one that acts is needed")
        return critic, actor

    if curve is None:
        return Models(critic_id, actor_id, load, embodiment=acts or judges)
    return Models(f"{critic_id}+{curve_id}", actor_id, load, curve.calibrated, acts or judges)


def _kind(name: str) -> str:
    return "server" if is_openpi(name) else "class" if own.is_own(name) else "checkpoint"


def _identify(name: str, body: RobotFolder | None) -> tuple[str, Embodiment | None]:
    """Its name, a checkpoint's with the beginning of its digest, and for which robots it says it is."""
    if is_openpi(name):
        return name, None
    if own.is_own(name):
        return name, embodiment_of(own.find(name, body))
    from saycan_qt.learning import checkpoint

    try:
        folder = checkpoint.resolve(name)
        return f"{folder.name}@{checkpoint.digest(folder)[:8]}", _embodiment(folder)
    except (checkpoint.CheckpointError, EmbodimentError) as error:
        raise Unreadable(str(error)) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # damaged, as `load` will say
        return name, None


def _embodiment(folder: Path) -> Embodiment:
    """What a checkpoint's config says, without its weights; the kitchen's did not yet."""
    from saycan_qt.learning import checkpoint

    said = files.read_json(folder / checkpoint.CONFIG).get("embodiment")
    return default_robot().embodiment if said is None else Embodiment.parse(said, str(folder / checkpoint.CONFIG))


def _curve(name: str) -> tuple[Any, str]:
    """A checkpoint's curve, and its method with the beginning of its file's digest."""
    if own.is_own(name) or is_openpi(name):
        raise Unreadable(
            f"{name} is a {_kind(name)}, and --calibrated takes a checkpoint; let its `value` give probabilities"
        )
    from saycan_qt.learning import calibration, checkpoint

    try:
        curve = calibration.load(name)
        return curve, f"{curve.method}@{atomic.sha256(calibration.beside(checkpoint.resolve(name)))[:8]}"
    except (checkpoint.CheckpointError, calibration.CalibrationError, OSError) as error:
        raise Unreadable(str(error)) from None


def _reader(
    threads: int, replicas: Replicas | None, body: RobotFolder | None, device: str, bfloat16: bool | None
) -> Callable[[str], Any]:
    """Loads a model by its name; a checkpoint onto the device. Who comes with a class of their own moves it
    themselves."""

    def read(name: str) -> Any:
        if is_openpi(name):
            from skills.openpi.actor import connect

            return connect(name) if body is None else connect(name, body.embodiment, body.openpi)
        if own.is_own(name):
            return own.construct(name, body) if replicas is None else replicas.load_own(name)
        import torch

        from saycan_qt.learning import checkpoint

        torch.set_num_threads(threads)
        keep_memory()
        try:
            return checkpoint.load(name, device).hasten(bfloat16) if replicas is None else replicas.load(name)
        except checkpoint.CheckpointError as error:
            raise Unreadable(str(error)) from None
        except torch.OutOfMemoryError:
            raise Unreadable(f"{name!r} does not fit into the memory of {device}") from None

    return read


def warm_up(critic: Critic, actor: Actor, library: SkillLibrary) -> None:
    """One call of each kind: the first is slow, and encodes every skill's words. Who does not say what it looks at is
    shown nothing."""
    names = [skill.name for skill in library if skill.learned]
    if not names:
        return
    for policy in (critic, actor):
        if keep := getattr(policy, "keep", None):
            keep(names)
    if embodiment := embodiment_of(critic):
        critic.value([blank(embodiment)], names)
    if isinstance(actor, Reader):
        actor.know(names)
    if embodiment := embodiment_of(actor):
        actor.act([blank(embodiment)], names[0])


def load(choose: Callable[[], Models], library: SkillLibrary) -> Model:
    """What is on disk now, warm; raises Unreadable."""
    models = choose()
    critic, actor = models.load()
    judges, acts = embodiment_of(critic), embodiment_of(actor)
    if judges and acts and (problem := _unlike(judges, acts)):
        raise Unreadable(f"{models.critic_id} and {models.actor_id} are for different robots: {problem}")
    try:
        warm_up(critic, actor, library)
    except SkillError:
        raise
    except Exception as error:
        theirs = own.is_own(models.critic_id) or own.is_own(models.actor_id)
        if not (theirs or isinstance(error, ValueError | RuntimeError)):
            raise
        log.debug("a model failed", exc_info=True)
        who = " or ".join(dict.fromkeys((models.critic_id, models.actor_id)))
        raise Unreadable(f"{who} failed at a blank observation of its embodiment: {own.reason(error)}") from error
    known = acts or judges or models.embodiment
    return Model(critic, actor, models.critic_id, models.actor_id, models.calibrate, embodiment=known)


def _unlike(judges: Embodiment, acts: Embodiment) -> str:
    """Why no robot is both's; what each looks at is its own affair, since a robot may have all of that."""
    cameras = tuple({camera.name: camera for camera in (*acts.cameras, *judges.cameras)}.values())
    state = judges.state if acts.state else ()
    problem = replace(judges, cameras=cameras, state=state).misfit(replace(acts, cameras=cameras))
    return problem.replace("the policy", "the one that judges").replace("the robot", "the one that acts")
