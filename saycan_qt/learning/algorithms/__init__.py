"""Siblings with one surface, one file each; `policy.py` holds what they share."""

from saycan_qt.learning.algorithms.aw_opt import AWOpt
from saycan_qt.learning.algorithms.decision_transformer import DecisionTransformer
from saycan_qt.learning.algorithms.iql import IQL
from saycan_qt.learning.algorithms.policy import Policy
from saycan_qt.learning.algorithms.q_transformer import QTransformer
from saycan_qt.learning.algorithms.qt_opt import QTOpt
from saycan_qt.learning.algorithms.rt1 import RT1

ALGORITHMS: dict[str, type[Policy]] = {
    policy.name: policy for policy in (QTransformer, QTOpt, IQL, AWOpt, DecisionTransformer, RT1)
}
