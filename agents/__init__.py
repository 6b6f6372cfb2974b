"""Controllers: whatever decides during a distillation. One file each; imported as `kd_gym.agents`."""

from kd_gym.agents.protocol import Controller, agent_class, make_controller

__all__ = ["Controller", "agent_class", "make_controller"]
