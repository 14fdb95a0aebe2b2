"""One object on several ranks of ``torch.distributed``: the same table everywhere, each rank's work warming all."""

from .exchange import Exchange
from .group import RankLost, check_group
from .ranks import Ranks
from .table import ReplicatedTable

__all__ = ["Exchange", "RankLost", "Ranks", "ReplicatedTable", "check_group"]
