"""The models of a skill server by name, each loaded again on command while it serves.

models = Hosting({"default": Model(policy, policy), "night": night}, {"night": load_night})
models["night"].judging.value(history, names)
models.reload("night")                 # calls that run keep the model that they began with
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from skills.embodiment import Embodiment
from skills.errors import Busy, InvalidRequest, SkillError, Unavailable, UnknownSkill, Unreadable
from skills.serving.watching import NOBODY, Watcher
from skills.types import Actor, Critic, embodiment_of, gives_chunks

log = logging.getLogger(__name__)

DEFAULT = "default"  # name of a server's only model
RETRY_AFTER = 5.0  # [s] that a caller who wants to reload is told to wait while a model loads

Calibrate = Callable[[np.ndarray], np.ndarray]  # a critic's values (N,) -> probabilities of success (N,)


@dataclass(frozen=True, eq=False)
class Model:
    """What judges and what acts under one name, for robots of one embodiment."""

    critic: Critic | None = None
    actor: Actor | None = None
    critic_id: str = ""
    actor_id: str = ""
    calibrate: Calibrate | None = None  # makes affordances of the critic's values; None: they are the values
    loaded: bool = True  # False: it has its ids already, and answers nothing yet
    embodiment: Embodiment | None = None  # None: what the actor says, or the critic; where neither does, it is unknown

    def __post_init__(self) -> None:
        known = self.embodiment or embodiment_of(self.actor) or embodiment_of(self.critic)
        object.__setattr__(self, "embodiment", known)

    @property
    def judged(self) -> Embodiment | None:
        """What the critic looks at: it may see through fewer cameras than the actor does."""
        return embodiment_of(self.critic) or self.embodiment

    @property
    def judging(self) -> Critic:
        """Raises Unavailable while it loads, InvalidRequest where there is none."""
        self._check_loaded()
        if self.critic is None:
            raise InvalidRequest("this skill server hosts no critic, so it cannot score learnt skills")
        return self.critic

    @property
    def acting(self) -> Actor:
        """Raises Unavailable while it loads, InvalidRequest where there is none."""
        self._check_loaded()
        if self.actor is None:
            raise InvalidRequest("this skill server hosts no actor; start it with a checkpoint that can act")
        return self.actor

    @property
    def chunk(self) -> int:
        """Actions that it gives at a time; 0: one."""
        return self.actor.chunk if gives_chunks(self.actor) else 0

    def _check_loaded(self) -> None:
        if not self.loaded:
            raise Unavailable("the skill server is still loading its models; its health tells when it is ready")


class Hosting:
    """Models by name; the first is meant where a name is ""."""

    def __init__(
        self,
        models: Mapping[str, Model],
        load: Mapping[str, Callable[[], Model]] | None = None,  # reads one anew, and warms it up; raises Unreadable
        watcher: Watcher = NOBODY,
    ) -> None:
        self._models, self._load, self._watcher = dict(models), dict(load or {}), watcher
        self._loading = threading.Lock()

    def __iter__(self) -> Iterator[tuple[str, Model]]:
        """Names and models, as they are now."""
        return iter(list(self._models.items()))

    def __getitem__(self, name: str) -> Model:
        return self._models[self.name(name)]

    def name(self, name: str) -> str:
        """The first one's for ""; raises UnknownSkill where there is none of that name."""
        if name and name not in self._models:
            raise UnknownSkill(f"no model {name[:100]!r}; this skill server hosts {', '.join(self._models)}")
        return name or next(iter(self._models))

    def reload(self, name: str = "") -> Model:
        """The model as it is on disk now, which new calls get from now on. Raises Unreadable, after which the one
        before serves on, and Busy while another one loads."""
        name = self.name(name)
        if name not in self._load:
            raise Unreadable(f"model {name!r} was not loaded from a checkpoint, so it cannot be loaded again")
        if not self._loading.acquire(blocking=False):
            raise Busy("this skill server is loading a model; try again when it is there", RETRY_AFTER)
        started, good = time.monotonic(), False
        try:
            model = self._load[name]()
            self._models[name], good = model, True
            log.info("model %r: judged by %s, done by %s", name, model.critic_id, model.actor_id)
            return model
        except SkillError:
            raise
        except Exception:
            if not self._models[name].loaded:  # nothing to serve on with
                raise
            log.exception("model %r was not loaded", name)
            raise Unreadable(f"model {name!r} cannot be loaded; the server's log has the reason") from None
        finally:
            self._loading.release()
            self._watcher.loaded(name, time.monotonic() - started, good)
