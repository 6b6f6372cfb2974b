"""RL-KD: reinforced multi-teacher selection (Yuan et al., AAAI 2021, arXiv 2012.06048, section 3).

For every sample of the coming batch a Bernoulli gate says of each teacher whether the student learns from it. The gates
are logistic in the sample's [CLS] state, the teachers' class probabilities and their cross-entropies; all gates of a
batch share one reward, measured after the update.

The paper pre-trains the student on the average of all teachers first; here that is the first part of each episode.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard.writer import SummaryWriter

from kd_gym.agents.protocol import Array, Controller
from kd_gym.agents.saving import load_tree, save_tree
from kd_gym.envs.episodes import BATCH_REWARDS
from kd_gym.envs.faces import TRAIN_SEEDS


@dataclass(frozen=True)
class RLKDConfig:
    """Settings of RL-KD."""

    learning_rate: float = 3e-3
    """step size of the gates' optimiser"""
    head: Literal["joint", "shared"] = "joint"
    """joint: every gate sees all teachers; shared: one scorer for all teachers"""
    baseline: Literal["moving", "leave-one-out"] = "moving"
    """what is taken off a reward: a moving average, or the mean of the students beside it"""
    paper_form: bool = False
    """the gradient of r pi instead of (r - b) log pi"""
    warm: float = 0.1
    """the first part of an episode, in which all teachers are averaged and nothing is learnt"""
    memory: float = 0.95
    """weight of the past in the moving average"""


class Gates(nn.Module):
    """Logits [B, M] of the gates from [CLS] states [B, H], class probabilities [B, M, C] and losses [B, M]."""

    def __init__(self, width: int, teachers: int, classes: int, head: str) -> None:
        super().__init__()
        self.head = head
        if head == "joint":
            self.states, self.said = nn.Linear(width + teachers, teachers), nn.Linear(teachers * classes, teachers)
        else:
            self.states, self.said = nn.Linear(width + 1, 1), nn.Linear(classes, 1)
        for part in (self.states, self.said):  # all gates start at one half
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)

    def forward(self, cls: Tensor, probabilities: Tensor, loss: Tensor) -> Tensor:
        """The logits [..., B, M]."""
        if self.head == "joint":
            logits: Tensor = self.states(torch.cat([cls, loss], -1)) + self.said(probabilities.flatten(-2))
            return logits
        wide = cls.unsqueeze(-2).expand(*loss.shape, cls.shape[-1])
        shared: Tensor = self.states(torch.cat([wide, loss.unsqueeze(-1)], -1)) + self.said(probabilities)
        return shared.squeeze(-1)


def policy_loss(logits: Tensor, chosen: Tensor, advantage: Tensor, paper_form: bool = False) -> Tensor:
    """What is minimised for gates [N, B, M] and advantages [N].

    REINFORCE: -(r - b) log pi(a), averaged over gates and students. The paper's form, as its port has it, is -r pi(a):
    its gradient is that of log pi times pi, so a gate that is nearly shut hardly learns to open, and without a
    baseline the sign of the reward alone says which way all gates go.
    """
    log_p = -F.binary_cross_entropy_with_logits(logits, chosen, reduction="none")
    score = log_p.exp() if paper_form else log_p
    return -(advantage * score.mean((1, 2))).mean()


class RLKD(Controller):
    """Reinforced multi-teacher selection: which teachers each sample learns from.

    `reward` chooses among the paper's three: `batch_ce` (1), `batch_ce_kd` (2), `batch_mixed` (3). The baseline is
    taken of the reward's gain over what its cross-entropy was before the update, as the observation says: that part
    does not depend on the action, and is most of the noise.
    """

    Config = RLKDConfig
    actions = ("multi",)
    fits = ("TeacherWeight",)
    options: ClassVar = {"granularity": "instance"}
    defaults: ClassVar = {"reward": "batch_ce"}
    learns = True

    def __init__(self, env: gym.Env[Any, Any], *, seed: int = 0, config: Any = None, argument: str = "") -> None:
        super().__init__(env, seed=seed, config=config, argument=argument)
        sizes = {feature.name: feature.size for feature in self.features}
        self.gates = Gates(sizes["cls"], len(self.family.labels), sizes["student"], self.config.head)
        self.optimiser = torch.optim.Adam(self.gates.parameters(), self.config.learning_rate)
        self.average: float | None = None
        self.part = BATCH_REWARDS.get(env.unwrapped.episodes.config.reward, 0.0)  # type: ignore[attr-defined]
        self.decisions = 0

    def _logits(self, observation: Array) -> Tensor:
        """The gates' logits [..., B, M] for observations [..., B, F]."""

        def part(name: str) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(self.see(observation, name)))

        said = part("teachers").unflatten(-1, (len(self.family.labels), -1))
        squashed = part("teacher_loss")
        return self.gates(part("cls"), said, (squashed / (1 - squashed).clamp_min(0.1)))  # type: ignore[no-any-return]

    def _warming(self, observation: Array) -> Array:
        """Who is still in the part of an episode in which all teachers are averaged [...]."""
        return np.asarray(self.see(observation, "progress")[..., 0, 0] < self.config.warm)

    @torch.no_grad()
    def predict(
        self,
        observation: Array,
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """The gates that are more likely open than shut."""
        opened = (self._logits(observation) > 0).numpy()
        return np.where(self._warming(observation)[..., None, None], 1, opened).astype(np.int8), state

    def learn(self, env: gym.vector.VectorEnv[Any, Any, Any], steps: int, folder: Path) -> None:
        """Draw gates, and after each update of the students one step on their rewards."""
        random = torch.Generator().manual_seed(self.seed + self.decisions)
        n, names = env.num_envs, self.family.labels
        seeds = np.random.default_rng([self.seed, self.decisions]).integers(TRAIN_SEEDS, size=n)
        seen, _ = env.reset(seed=seeds.tolist())
        with SummaryWriter(str(folder)) as writer:
            for step in range(-(-steps // n)):
                logits = self._logits(seen)
                warming = torch.from_numpy(self._warming(seen))
                drawn = torch.bernoulli(logits.detach().sigmoid(), generator=random)
                chosen = torch.where(warming[:, None, None], 1.0, drawn)
                before = self._before(seen)
                seen, rewards, *_ = env.step(chosen.numpy().astype(np.int8))
                self.decisions += n
                live = ~warming
                if not live.any():
                    continue
                advantage = self._advantage(torch.from_numpy(rewards).float(), before, live)
                loss = policy_loss(logits[live], chosen[live], advantage, self.config.paper_form)
                self.optimiser.zero_grad()
                loss.backward()
                self.optimiser.step()
                if step % 10 == 0:
                    for name, share in zip(names, logits.detach().sigmoid().mean((0, 1)).tolist(), strict=True):
                        writer.add_scalar(f"rlkd/gate_{name}", share, self.decisions)
                    writer.add_scalar("rlkd/reward", float(rewards.mean()), self.decisions)

    def _before(self, observation: Array) -> Tensor:
        """The part of the reward that the students' cross-entropy on the batch made up before the update [N]."""
        squashed = self.see(observation, "student_loss")[..., 0]
        return -self.part * torch.from_numpy(squashed / np.maximum(1 - squashed, 1e-3)).mean(-1)

    def _advantage(self, reward: Tensor, before: Tensor, live: Tensor) -> Tensor:
        """What each student's reward says of its own gates [n], for those that learn."""
        if self.config.paper_form:
            return reward[live]
        gain = (reward - before)[live]
        if self.config.baseline == "leave-one-out" and len(gain) > 1:
            return (gain - gain.mean()) * len(gain) / (len(gain) - 1)
        mean = float(gain.mean())
        baseline = mean if self.average is None else self.average
        self.average = self.config.memory * baseline + (1 - self.config.memory) * mean
        return gain - baseline

    def save(self, folder: Path) -> None:
        """Gates, optimiser and baseline."""
        tree = {"gates": self.gates.state_dict(), "optimiser": self.optimiser.state_dict()}
        rest = {"config": asdict(self.config), "average": self.average, "decisions": self.decisions}
        save_tree(folder, {**tree, **rest})

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; the settings are those of this object."""
        tree = load_tree(folder)
        self.gates.load_state_dict(tree["gates"])
        self.optimiser.load_state_dict(tree["optimiser"])
        self.average, self.decisions = tree["average"], tree["decisions"]

    @property
    def flops(self) -> int:
        """Two for each parameter of the gates and sample of the batch."""
        parameters = sum(p.numel() for p in self.gates.parameters())
        return int(2 * self.recipe.process.batch * parameters)
