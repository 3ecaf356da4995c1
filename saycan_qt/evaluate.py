"""Measure what was learnt.

    python -m saycan_qt.evaluate skills                              # the shipped execution model, every family
    python -m saycan_qt.evaluate skills --episodes 20 --families pick --json
    python -m saycan_qt.evaluate skills --checkpoint runs/q/checkpoint --seed 7
    python -m saycan_qt.evaluate affordance --data data/scenes       # does it know what is possible? Offline
    python -m saycan_qt.evaluate affordance --data data/scenes --checkpoint affordance runs/critic/checkpoint --json
    python -m saycan_qt.evaluate affordance --data data/scenes --server 127.0.0.1:50051 --out runs/judged
    python -m saycan_qt.evaluate affordance --data DIR --mapping bridge --checkpoint runs/own/checkpoint     # episodes
    python -m saycan_qt.evaluate affordance --data data/scenes --checkpoint runs/critic/checkpoint --calibrate isotonic
    python -m saycan_qt.evaluate plans                               # does the planner reach what people ask for?
    python -m saycan_qt.evaluate plans --half held-out --affordance model --execute --out runs/plans.json
    python -m saycan_qt.evaluate asking                              # when does it ask, and what goes wrong unasked?

skills: closed loop in fresh kitchen scenes: the policy sees camera and proprioception only, and an episode counts when
it terminates itself with the task's goal reached. Rates come with 95 % Wilson intervals.
affordance: value functions, as checkpoints or behind running skill servers, score every learnt skill in labelled scenes
(`python -m saycan_qt.collect affordance`), or the first frames of anybody's episodes; precision, recall, F1 and more,
with bootstrap intervals, and calibration. `affordance --help` says how pairs are weighted.
plans: the language model plans instructions that come with a start and a goal (--set, or those in
saycan_qt/kitchen/language/instructions.yaml); its skills are carried out perfectly and, with --execute, by the learnt
policy in MuJoCo. `plans --help` says more.
asking: the same with a person at hand, who is asked where the planner is unsure; sets the threshold of `run --ask`.
"""

from __future__ import annotations

import sys

from saycan_qt.options import Command, dispatch


def skills() -> Command:
    from saycan_qt.evaluation import skills  # here, as each of the others: a command pays for its own imports alone

    return skills.SkillsConfig, skills.skills


def affordance() -> Command:
    from saycan_qt.evaluation.affordance import measure

    return measure.AffordanceConfig, measure.affordance


def plans() -> Command:
    from saycan_qt.evaluation import plans

    return plans.PlansConfig, plans.plans


def asking() -> Command:
    from saycan_qt.evaluation import asking

    return asking.AskingConfig, asking.asking


def main(arguments: list[str] | None = None) -> int:
    commands = {"skills": skills, "affordance": affordance, "plans": plans, "asking": asking}
    return dispatch("python -m saycan_qt.evaluate", __doc__, commands, arguments)


if __name__ == "__main__":
    sys.exit(main())
