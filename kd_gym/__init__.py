"""kd-gym: knowledge distillation of language models as a control problem.

Importing the package registers the environments and loads no torch.
"""

from kd_gym.envs.registration import register_envs
from kd_gym.errors import KDGymError

__version__ = "0.1.0"
__all__ = ["ENV_IDS", "KDGymError", "__version__"]

ENV_IDS = register_envs()
