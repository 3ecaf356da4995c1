"""Siblings with one surface, one file each; `policy.py` holds what they share."""

from saycan_qt.algorithms.policy import Policy
from saycan_qt.algorithms.q_transformer import QTransformer
from saycan_qt.algorithms.qt_opt import QTOpt
from saycan_qt.algorithms.rt1 import RT1

ALGORITHMS: dict[str, type[Policy]] = {policy.name: policy for policy in (QTransformer, QTOpt, RT1)}
