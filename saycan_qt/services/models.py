"""Which models a skill server hosts: named at once, loaded and warmed when it can already be reached."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from saycan_qt.services.replicas import Replicas
from skills.errors import Unreadable
from skills.library import SkillLibrary
from skills.serving.hosting import Calibrate, Model
from skills.types import STATE_NAMES, Actor, Critic, Observation, Reader

KITCHEN_IMAGE = (80, 96)  # height, width of what the kitchen robot observes [pixels]


@dataclass(frozen=True)
class Models:
    """What judges and what acts: named at once, loaded when the server can already be reached."""

    critic_id: str
    actor_id: str
    load: Callable[[], tuple[Critic, Actor]]  # raises Unreadable
    calibrate: Calibrate | None = None  # makes affordances of the critic's values; None: they are the values


def checkpoints(
    affordance: str, execution: str, calibrated: bool = False, threads: int = 2, replicas: Replicas | None = None
) -> Models:
    """Checkpoints, by a shipped one's name or by folder, here or in replicas: one that judges, one that acts.
    Raises Unreadable."""
    import torch

    from saycan_qt.learning import calibration, checkpoint

    torch.set_num_threads(threads)
    read = checkpoint.load if replicas is None else replicas.load

    def identify(name: str) -> str:
        """Its name and the beginning of its weights' SHA-256."""
        folder = checkpoint.resolve(name)
        manifest = json.loads((folder / checkpoint.MANIFEST).read_bytes())
        return f"{folder.name}@{manifest['files'][checkpoint.MODEL]['sha256'][:8]}"

    def load() -> tuple[Critic, Actor]:
        try:
            critic = read(affordance)
            actor = critic if execution == affordance else read(execution)
        except checkpoint.CheckpointError as error:
            raise Unreadable(str(error)) from None
        if not hasattr(critic, "value"):
            raise Unreadable(f"checkpoint {affordance!r} only acts; one that judges is needed")
        return critic, actor

    try:
        critic_id, actor_id = identify(affordance), identify(execution)
        curve = calibration.load(affordance) if calibrated else None
    except (checkpoint.CheckpointError, calibration.CalibrationError) as error:
        raise Unreadable(str(error)) from None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # damaged, as `load` will say
        return Models(affordance, execution, load)
    if curve is None:
        return Models(critic_id, actor_id, load)
    return Models(f"{critic_id}+{curve.method}", actor_id, load, curve.calibrated)


def warm_up(critic: Critic, actor: Actor, library: SkillLibrary) -> None:
    """One call of each kind: the first is slow, and encodes every skill's words."""
    names = [skill.name for skill in library if skill.learned]
    if names:
        for policy in (critic, actor):
            if keep := getattr(policy, "keep", None):
                keep(names)
        critic.value([blank_for(critic)], names)
        if isinstance(actor, Reader):
            actor.know(names)
        actor.act([blank_for(actor)], names[0])


def blank_for(policy: object) -> Observation:
    """An observation of the size that the policy was trained on."""
    image = image_of(policy) or KITCHEN_IMAGE
    return Observation({"": np.zeros((*image, 3), np.uint8)}, np.zeros(len(STATE_NAMES), np.float32))


def load(choose: Callable[[], Models], library: SkillLibrary) -> Model:
    """What is on disk now, warm; raises Unreadable."""
    models = choose()
    critic, actor = models.load()
    warm_up(critic, actor, library)
    return Model(critic, actor, models.critic_id, models.actor_id, models.calibrate)


def image_of(policy: object) -> tuple[int, int] | None:
    """Height and width [px] of what a policy was trained on; None where it does not say."""
    network = getattr(policy, "network_config", None)
    return tuple(network.encoder.image) if network is not None else None
