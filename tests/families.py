"""What the tests of env families share."""

import numpy as np
import torch

TEACHERS, SAMPLES, JOINT = (f"{family}-SST2-v0" for family in ("TeacherWeight", "SamplePriority", "JointControl"))
INSTANCE = {"granularity": "instance"}


def params(env):
    return {name: value.detach().clone() for name, value in env.episodes.process.params.items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def after(env, actions, seed=1):
    """The student's parameters after these actions."""
    env.reset(seed=seed)
    for action in actions:
        env.step(action)
    return params(env)


def shown(env, observation):
    """The parts of an observation by name."""
    ends = np.cumsum([feature.size for feature in env.episodes.features])[:-1]
    names = [feature.name for feature in env.episodes.features]
    return dict(zip(names, np.split(observation, ends, axis=-1), strict=True))
