"""Leases: for a while one owner alone may move a robot; it says again and again that it is still there.

    leases = Leases(lapsed=cancel_everything)              # the robot's side
    lease_id, seconds = leases.acquire("my stack", 5.0)
    leases.check(lease_id)                                 # PermissionDenied for everybody else

    with RobotClient("127.0.0.1:50052").lease("my stack"):  # the owner's; keeps it alive from a thread

The id is its owner's secret: made of 256 random bits, compared in constant time, never logged.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from skills.errors import Busy, InvalidRequest, LeaseLost, PermissionDenied, SkillError

log = logging.getLogger(__name__)

LEASE_SECONDS = 5.0  # without a word from its owner
SHORTEST, LONGEST = 0.5, 60.0  # [s]
MAX_OWNER = 100  # [characters]
KEPT = 3  # times in a lease's seconds that its owner says that it is there


class Leases:
    """A robot's: at most one at a time. Where its owner falls silent, `lapsed` is told whose it was, from a thread that
    was there from the beginning; until that has returned nobody may move the robot."""

    def __init__(self, lapsed: Callable[[str], None]) -> None:
        self._lapsed = lapsed
        self._changed = threading.Condition()
        self._id, self._owner, self._seconds, self._until = "", "", 0.0, 0.0  # until: [s] of time.monotonic
        self._closed = False
        threading.Thread(target=self._watch, name="lease", daemon=True).start()

    @property
    def owner(self) -> str:
        """ "" for none."""
        return self._owner

    def acquire(self, owner: str, seconds: float = 0.0) -> tuple[str, float]:
        """Its id, and the seconds that it lasts each time it is kept; 0: LEASE_SECONDS. Raises Busy while there is
        another."""
        if not (owner.strip() and len(owner) <= MAX_OWNER and owner.isprintable()):
            raise InvalidRequest(f"an owner has 1 to {MAX_OWNER} printable characters", "owner")
        seconds = seconds or LEASE_SECONDS
        if not SHORTEST <= seconds <= LONGEST:
            raise InvalidRequest(f"a lease lasts {SHORTEST:g} to {LONGEST:g} s, not {seconds:g}", "seconds")
        with self._changed:
            if self._id:
                raise Busy(self._held(), retry_after=self._left())
            self._id, self._owner, self._seconds = secrets.token_urlsafe(32), owner, seconds
            self._until = time.monotonic() + seconds
            self._changed.notify_all()
            return self._id, seconds

    def keep(self, lease_id: str) -> None:
        """Raises LeaseLost for one that is over."""
        with self._changed:
            self._check_own(lease_id)
            self._until = time.monotonic() + self._seconds

    def release(self, lease_id: str) -> None:
        """Raises LeaseLost for one that is over."""
        with self._changed:
            self._check_own(lease_id)
            self._id = self._owner = ""

    def check(self, lease_id: str) -> None:
        """May this caller start, cancel and reset? Raises PermissionDenied where the robot is leased to another one,
        LeaseLost where it was the caller's."""
        with self._changed:
            if self._id and not self._matches(lease_id):
                raise PermissionDenied(self._held())
            if lease_id or self._id:
                self._check_own(lease_id)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _matches(self, lease_id: str) -> bool:
        return hmac.compare_digest(self._id.encode(), lease_id.encode())

    def _check_own(self, lease_id: str) -> None:
        if not self._id or not self._matches(lease_id):
            raise LeaseLost("this lease is over: it was given back, or not kept alive" + self._another())
        if time.monotonic() >= self._until:
            raise LeaseLost(f"the lease of {self._owner!r} ran out after {self._seconds:g} s without a word")

    def _another(self) -> str:
        return f"; {self._held()}" if self._id else ""

    def _left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def _held(self) -> str:
        return f"the robot is leased to {self._owner!r}, for {self._left():.1f} s more at most unless it is kept alive"

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                lease_id, owner, left = self._id, self._owner, self._left()
                if lease_id and left == 0:
                    self._changed.release()  # it is over by the clock: nobody takes, keeps or gives it back meanwhile
                    try:
                        self._lapsed(owner)
                    except Exception:
                        log.exception("what the lease of %r left behind could not be ended", owner)
                    self._changed.acquire()
                    self._id = self._owner = ""
                else:
                    self._changed.wait(left if lease_id else None)


class Lease:
    """An owner's: kept alive from a thread of its own until it is given back, or lost. Use it as a context manager."""

    def __init__(
        self,
        lease_id: str,
        seconds: float,
        asked: float,  # when it was asked for, of time.monotonic [s]
        where: str,  # for error messages
        keep: Callable[[float], object],  # tells the robot, within so many seconds
        release: Callable[[], object],
        closed: Callable[[Lease], object] = lambda lease: None,  # is told of `close`, also where it was lost before
    ) -> None:
        self._id, self.seconds, self._where, self._keep, self._release = lease_id, seconds, where, keep, release
        self._closed = closed
        self._until, self._over, self._lost = asked + seconds, threading.Event(), ""
        threading.Thread(target=self._beat, name="lease", daemon=True).start()

    @property
    def id(self) -> str:
        """Raises LeaseLost once it is lost."""
        if self.lost:
            raise LeaseLost(f"the lease on {self._where} is lost: {self.lost}")
        return self._id

    @property
    def lost(self) -> str:
        """Why; "" while it is held."""
        if not self._lost and not self._over.is_set() and time.monotonic() >= self._until:  # this process was frozen
            return f"it was not kept alive for {self.seconds:g} s"
        return self._lost

    def close(self) -> None:
        """Give it back; a robot that cannot be reached ends it by itself."""
        if self._over.is_set():
            return
        self._over.set()
        self._closed(self)
        if not self._lost:
            self._lost = "it was given back"
            with suppress(SkillError):
                self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _beat(self) -> None:
        """A word that was not answered counts from when it was said."""
        period = self.seconds / KEPT
        while not self._over.wait(period) and not self._lost:
            said = time.monotonic()
            try:
                self._keep(period)
            except (LeaseLost, PermissionDenied) as error:
                self._lost = str(error)
            except SkillError as error:
                if time.monotonic() >= self._until:
                    self._lost = str(error)
            else:
                self._until = said + self.seconds
