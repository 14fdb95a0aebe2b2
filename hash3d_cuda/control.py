"""How often a retrieval is tried: eta as configured, or one that is moved towards a target.

Three options of :class:`hash3d_cuda.Hash3DConfig`; none is in the paper, all are off by default:

- ``target_x``: the share of the items to be served. What was served is known, so eta follows it after every forward.
- ``target_quality``: 1 - E, where E is the mean over all items of the relative error of the model's output; an item
  that was computed has none. What is served says nothing of its error by itself, so that it is *audited*:
- ``audit``: the share of the forwards that look the table up whatever the coin says, and yet compute every item. Their
  tail runs once more, on the features that would have been served, and the two outputs are compared. The answer is the
  computed one, and it is stored.

Because audits do not depend on eta, they say what serving would cost also where little is served. With m, the mean
error of an audit's items if all were served that can be (0 for one that finds nothing), E is (1 - audit) eta m, and
each audit moves the log-odds of eta by ``_GAIN`` (1 - E / (1 - target)): in odds, because an entry's age, and so its
error, goes with eta / (1 - eta) where what is not served renews it. What comes to rest is the mean of E and not that of
its logarithm, however much single audits scatter.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .config import Hash3DConfig
from .poses import HostCopies, Later

_RATE = 0.05  # of the deviation from target_x, added to eta per forward
_GAIN = 0.5  # of the relative deviation from 1 - target_quality, added to the log-odds of eta per audit
_WORST = -3.0  # the least that counts as such a deviation, so that one bad audit does not end all reuse
_EDGE = 5.0  # log-odds beyond which eta is 0 or 1
_LAG = 4  # forwards after which an audit's error is used, on every device alike, so that a GPU is seldom waited for
_FIRST = 4  # audits that found something and are made at the first occasions, with a target to start towards
_ROWS = 4096  # audits that are remembered
_POINTS = 256  # of eta's course, at most; from half as many on


class Audit(NamedTuple):
    """What one audit saw.

    Attributes:
        forward: its number, from 1.
        eta: the probability of a retrieval then.
        error: mean relative error of the items that would have been served, 0 to 1.
        found: how many these are; at least 1.
        items: of the forward.
    """

    forward: int
    eta: float
    error: float
    found: int
    items: int


class Course:
    """How eta moved: what it was in every forward, then in every second, fourth, ..., so that it stays short.

    Attributes:
        rows: ``(forward, eta)``, oldest first, at most 256.
    """

    def __init__(self, rows: Sequence[Sequence[float]] = (), stride: int = 1) -> None:
        self.rows = [(int(forward), float(eta)) for forward, eta in rows]
        self._stride = max(int(stride), 1)

    def note(self, forward: int, eta: float) -> None:
        """Takes in a forward, the first of which is number 1."""
        if (forward - 1) % self._stride:
            return
        self.rows.append((forward, eta))
        if len(self.rows) > _POINTS:
            self._stride *= 2
            self.rows = [row for row in self.rows if (row[0] - 1) % self._stride == 0]

    def state(self) -> dict[str, Any]:
        """JSON values, which the constructor takes."""
        return {"rows": [list(row) for row in self.rows], "stride": self._stride}


class EtaControl:
    """The probability of a retrieval, and which forwards are audited.

    Args:
        eta: where it starts.
        seed: of the coin that chooses audits: the cache's seed, yet another coin than the cache's.
        target_x, target_quality, audit: as above; None leaves each out.
        copies: counts what a GPU is waited for.

    Attributes:
        eta: the probability now.
        audited: items that would have been served, so far.
        course: of eta, where a target moves it; else empty.
    """

    def __init__(
        self,
        eta: float,
        seed: int = 0,
        target_x: float | None = None,
        target_quality: float | None = None,
        audit: float | None = None,
        copies: HostCopies | None = None,
    ) -> None:
        self.eta, self._target_x, self._audit = eta, target_x, audit or 0.0
        self._allowed = None if target_quality is None else 1.0 - target_quality
        self._coin = random.Random(f"audits of {seed}")
        self._copies = HostCopies(strict=False) if copies is None else copies
        self._odds = _log_odds(eta)
        self._coming: deque[tuple[Audit, Later]] = deque()
        self._seen: deque[Audit] = deque(maxlen=_ROWS)
        self._audits = self.audited = 0
        self._error = 0.0  # sum over the audited items whose error was read
        self.course = Course()

    @classmethod
    def of(cls, config: Hash3DConfig, copies: HostCopies | None = None) -> EtaControl:
        """As the configuration says."""
        return cls(config.eta, config.seed, config.target_x, config.target_quality, config.audit_share, copies)

    def begin(self, forward: int) -> bool:
        """To be called first in forward number ``forward``: uses what earlier audits saw; returns whether this forward
        is one."""
        audited = self._begin_audit(forward) if self._audit else False
        if self._moves:
            self.course.note(forward, self.eta)
        return audited

    @property
    def _moves(self) -> bool:
        """Whether eta follows a target; else it is the configuration's."""
        return self._target_x is not None or self._allowed is not None

    def _begin_audit(self, forward: int) -> bool:
        while self._coming and self._coming[0][0].forward + _LAG <= forward:
            told, later = self._coming.popleft()
            if not later.arrived:
                self._copies.count += 1
            self._take(told._replace(error=later.read()))
        chosen = self._coin.random() < self._audit
        return chosen or (self._allowed is not None and self._audits < _FIRST)

    def observe(self, hits: int, items: int) -> None:
        """Takes in what became of a forward's items."""
        if self._target_x is not None and items:
            self.eta = min(max(self.eta + _RATE * (self._target_x - hits / items), 0.0), 1.0)

    def note(self, forward: int, errors: Tensor | None, found: Sequence[bool]) -> None:
        """Takes in an audit.

        Args:
            forward: its number.
            errors: float32 [B] of all items, on any device; see :func:`relative_errors`. None where nothing was found.
            found: per item whether it would have been served.
        """
        told = Audit(forward, self.eta, 0.0, sum(found), len(found))
        if errors is None or not told.found:
            if self._audits >= _FIRST:  # before that, the table has hardly been filled
                self._move(0.0)
            return
        self._audits += 1
        self.audited += told.found
        mean = torch.stack([error for error, one in zip(errors.unbind(), found, strict=True) if one]).mean()
        self._coming.append((told, self._copies.send("audit", mean)))

    def audits(self) -> list[Audit]:
        """The latest audits, oldest first; a GPU is waited for."""
        return [*self._seen, *(told._replace(error=later.read()) for told, later in self._coming)]

    @property
    def mean_error(self) -> float | None:
        """Of all audited items; None without any. A GPU is waited for."""
        total = self._error + sum(told.found * later.read() for told, later in self._coming)
        return total / self.audited if self.audited else None

    def _take(self, audit: Audit) -> None:
        self._seen.append(audit)
        self._error += audit.found * audit.error
        self._move((1.0 - self._audit) * audit.eta * audit.error * audit.found / audit.items)

    def _move(self, error: float) -> None:
        """Moves eta by what an audit says is E."""
        if self._allowed is None:
            return
        deviation = 1.0 - error / self._allowed if error else 1.0
        self._odds = min(max(self._odds + _GAIN * max(deviation, _WORST), -_EDGE), _EDGE)
        self.eta = float(self._odds > 0) if abs(self._odds) >= _EDGE else 1.0 / (1.0 + math.exp(-self._odds))

    def state(self) -> dict[str, Any]:
        """JSON values for a checkpoint; a GPU is waited for."""
        version, numbers, gauss = self._coin.getstate()
        return {
            "eta": self.eta, "odds": self._odds, "coin": [version, list(numbers), gauss], "audits": self._audits,
            "audited": self.audited, "error": self._error, "seen": [list(audit) for audit in self._seen],
            "course": self.course.state(),
            "coming": [list(told._replace(error=later.read())) for told, later in self._coming],
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """The reverse; raises TypeError, ValueError or KeyError where it is none, and then may be half loaded."""
        version, numbers, gauss = state["coin"]
        self._coin.setstate((version, tuple(numbers), gauss))
        if self._moves:
            self.eta, self._odds = min(max(float(state["eta"]), 0.0), 1.0), float(state["odds"])
        self._audits, self.audited = int(state["audits"]), int(state["audited"])
        self._error = float(state["error"])
        self.course = Course(**state.get("course", {}))  # files of earlier versions have none
        self._seen = deque((Audit(*row) for row in state["seen"]), maxlen=_ROWS)
        coming = [Audit(*row) for row in state["coming"]]
        self._coming = deque((told, Later(torch.tensor(told.error))) for told in coming)


def relative_errors(served: Tensor, computed: Tensor, items: Sequence[Sequence[int]]) -> Tensor:
    """|served - computed| / |computed| of every item's rows, Euclidean norms: float32 [B], at most 1. Where it is not
    finite it is 1: such an answer is worth nothing.

    Args:
        served, computed: ``[rows, ...]``, outputs of the model.
        items: the rows of each item.
    """
    off = (served.float() - computed.float()).flatten(1).square().sum(1).unbind()
    size = computed.float().flatten(1).square().sum(1).unbind()
    # Single rows by host numbers: no index goes to the device.
    sums = [[torch.stack([part[row] for row in rows]).sum() for part in (off, size)] for rows in items]
    ratios = torch.stack([difference / whole.clamp(min=1e-30) for difference, whole in sums])
    return ratios.sqrt().nan_to_num(1.0, 1.0).clamp(max=1.0)


def _log_odds(eta: float) -> float:
    eta = min(max(eta, 1e-9), 1.0 - 1e-9)
    return min(max(math.log(eta / (1.0 - eta)), -_EDGE), _EDGE)
