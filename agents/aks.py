"""AKS: the actor-critic knowledge selector (Wang et al., Findings of EMNLP 2022, arXiv 2302.00444, section 3).

A deterministic actor chooses knowledge weights from the mean [CLS] states of student and teacher; a critic learns what
they are worth. Training is over whole distillations (stage 1); the frozen actor then distils (stage 2: `evaluate`).

Not known from the paper, and chosen here: widths, learning rates, gamma, noise, and that transitions of past phases
are learnt from again. `relation` is the batch's similarity matrix, not the paper's FSP matrix between layers, which
needs the states of all tokens.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard.writer import SummaryWriter

from kd_gym.agents.protocol import Array, Controller
from kd_gym.agents.saving import load_tree, save_tree
from kd_gym.envs.faces import TRAIN_SEEDS


@dataclass(frozen=True)
class AKSConfig:
    """Settings of AKS."""

    actor_rate: float = 3e-4
    """step size of the actor's optimiser"""
    critic_rate: float = 1e-3
    """step size of the critic's optimiser"""
    gamma: float = 0.9
    """discount of rewards per decision"""
    hidden: int = 128
    """width of all layers"""
    learning_starts: int = 300
    """decisions, all students together, that are drawn at random before the actor acts and learns"""
    noise: float = 0.2
    """deviation of the noise on actions while learning"""
    exploration: float = 0.005
    """weight of the exploration reward beside the drop of cross-entropy"""
    batch: int = 64
    """transitions in a gradient step"""
    steps: int = 4
    """gradient steps for each decision of a finished phase"""


class Transitions(NamedTuple):
    """Observed decisions: states [T, F], actions in [0, 1] [T, K], rewards [T], next states, and whether any came."""

    state: Tensor
    action: Tensor
    reward: Tensor
    following: Tensor
    over: Tensor


class Network(nn.Module):
    """Three layers over the states of student and teacher, each through two layers of its own, and more numbers."""

    def __init__(self, student: int, teacher: int, more: int, out: int, hidden: int) -> None:
        super().__init__()
        self.split = (student, teacher)
        self.student, self.teacher = (
            nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, hidden)) for size in self.split
        )
        self.head = nn.Sequential(
            nn.Linear(2 * hidden + more, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, out),
        )

    def forward(self, state: Tensor, *more: Tensor) -> Tensor:
        """From states [T, H + H_t], and further inputs [T, ...], to [T, out]."""
        student, teacher = state.split(self.split, dim=-1)
        return self.head(torch.cat([self.student(student), self.teacher(teacher), *more], dim=-1))  # type: ignore[no-any-return]


def act(actor: nn.Module, state: Tensor) -> Tensor:
    """The actor's weights [T, K] in [0, 1]."""
    return torch.sigmoid(actor(state))


def critic_loss(actor: nn.Module, critic: nn.Module, seen: Transitions, gamma: float) -> Tensor:
    """(Q(s, a) - r - gamma Q(s', mu(s')))^2, the target held fixed; nothing follows the end of an episode."""
    with torch.no_grad():
        after = critic(seen.following, act(actor, seen.following)).squeeze(-1)
        target = seen.reward + gamma * (1 - seen.over) * after
    return F.mse_loss(critic(seen.state, seen.action).squeeze(-1), target)


def actor_loss(actor: nn.Module, critic: nn.Module, seen: Transitions) -> Tensor:
    """-Q(s, mu(s)): its gradient is the deterministic policy gradient."""
    value: Tensor = critic(seen.state, act(actor, seen.state))
    return -value.mean()


class AKS(Controller):
    """The actor-critic knowledge selector, with soft (`weights`) or hard (`multi`) selection.

    The env's `reward_every` is the length of a phase: cross-entropy on the `reward` split is measured once at the end
    of a phase, and critic and actor learn then (the paper's refinement). `--env-config.reward-every 1` measures after
    every decision, and shows what the refinement saves.

    The exploration reward is lambda (1 - cosine to the phase before) for soft and lambda / sqrt(count of this choice)
    for hard selection.
    """

    Config = AKSConfig
    actions = ("weights", "multi")
    fits = ("KnowledgeSelect",)
    options: ClassVar = {"observation": "cls"}
    defaults: ClassVar = {"reward_every": 3}
    learns = True

    def __init__(self, env: gym.Env[Any, Any], *, seed: int = 0, config: Any = None, argument: str = "") -> None:
        super().__init__(env, seed=seed, config=config, argument=argument)
        sizes = {feature.name: feature.size for feature in self.features}
        student, teacher = sizes["student_cls"], sizes["teacher_cls"]
        k, hidden = len(self.family.labels), self.config.hidden
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = Network(student, teacher, 0, k, hidden)
            self.critic = Network(student, teacher, k, 1, hidden)
        for parameter in self.actor.head[-1].parameters():
            nn.init.zeros_(parameter)  # all weights start at one half, far from where a sigmoid is flat
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), self.config.actor_rate)
        self.critic_optimiser = torch.optim.Adam(self.critic.parameters(), self.config.critic_rate)
        self.hard = isinstance(env.action_space, gym.spaces.MultiBinary)
        self.counts: Counter[str] = Counter()
        self.decisions = 0

    # ------------------------------------------------------------------ stage 2: the frozen actor

    def _state(self, observation: Array) -> Tensor:
        parts = [self.see(observation, name) for name in ("student_cls", "teacher_cls")]
        return torch.from_numpy(np.concatenate(parts, axis=-1).astype(np.float32))

    def _action(self, weights: Array) -> Array:
        """The env's action for weights in [0, 1]: as they are, or those above one half."""
        if self.hard:
            return (weights > 0.5).astype(np.int8)
        return np.asarray(2 * weights - 1, np.float32)

    @torch.no_grad()
    def predict(
        self,
        observation: Array,
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """The actor's choice; it is deterministic."""
        return self._action(act(self.actor, self._state(observation)).numpy()), state

    # ------------------------------------------------------------------ stage 1: learning over distillations

    def learn(self, env: gym.vector.VectorEnv[Any, Any, Any], steps: int, folder: Path) -> None:
        """Play phases, and after each one learn from all that was seen."""
        random = np.random.default_rng([self.seed, self.decisions])
        every = env.unwrapped.episodes.config.reward_every  # type: ignore[attr-defined]
        length, n = self.family.decisions, env.num_envs
        seen, _ = env.reset(seed=random.integers(TRAIN_SEEDS, size=n).tolist())
        memory: list[Transitions] = []
        phase: list[tuple[Tensor, Array]] = []
        before: Array | None = None
        gained, shape = np.zeros(n), (n, len(self.family.labels))
        with SummaryWriter(str(folder)) as writer:
            for step in range(1, -(-steps // n) + 1):
                state = self._state(seen)
                if not phase:  # drawn once for a phase: its reward is of all its decisions together
                    free, noise = random.uniform(size=shape), random.normal(0, self.config.noise, shape)
                    acting = self.decisions >= self.config.learning_starts
                with torch.no_grad():
                    mean = act(self.actor, state).numpy()
                weights = (np.clip(mean + noise, 0, 1) if acting else free).astype(np.float32)
                seen, rewards, terminated, truncated, _ = env.step(self._action(weights))
                phase.append((state, (weights > 0.5).astype(np.float32) if self.hard else weights))
                gained += rewards
                self.decisions += n
                over = terminated | truncated
                if not over.any() and step % length % every:
                    continue
                bonus = self._exploration([actions for _, actions in phase], before)
                memory += self._transitions(phase, (gained + bonus) / len(phase), self._state(seen), over)
                before = None if over.any() else np.mean([actions for _, actions in phase], axis=0)
                losses = [self._improve(memory, random) for _ in range(self.config.steps * len(phase))]
                for name, value in zip(("critic_loss", "value"), np.mean(losses, axis=0), strict=True):
                    writer.add_scalar(f"aks/{name}", value, self.decisions)
                writer.add_scalar("aks/exploration", float(bonus.mean()), self.decisions)
                phase, gained = [], np.zeros(n)

    def _exploration(self, actions: list[Array], before: Array | None) -> Array:
        """The exploration reward of a phase [N]."""
        if self.hard:
            bonus = np.zeros(len(actions[0]))
            for chosen in actions:
                keys = ["".join("01"[int(bit)] for bit in row) for row in chosen]
                self.counts.update(keys)
                bonus += [1 / np.sqrt(self.counts[key]) for key in keys]
            return np.asarray(self.config.exploration * bonus / len(actions))
        if before is None:
            return np.zeros(len(actions[0]))
        now = np.mean(actions, axis=0)
        norms = np.linalg.norm(now, axis=1) * np.linalg.norm(before, axis=1)
        return np.asarray(self.config.exploration * (1 - (now * before).sum(1) / np.maximum(norms, 1e-9)), np.float64)

    @staticmethod
    def _transitions(phase: list[tuple[Tensor, Array]], reward: Array, last: Tensor, over: Array) -> list[Transitions]:
        """The phase's decisions, each with an equal part of its reward."""
        states = [state for state, _ in phase] + [last]
        shared, never = torch.from_numpy(reward.astype(np.float32)), torch.zeros(len(last))
        ends = [never] * (len(phase) - 1) + [torch.from_numpy(over.astype(np.float32))]
        return [
            Transitions(state, torch.from_numpy(actions), shared, states[i + 1], ends[i])
            for i, (state, actions) in enumerate(phase)
        ]

    def _improve(self, memory: list[Transitions], random: np.random.Generator) -> tuple[float, float]:
        """One gradient step of critic and actor."""
        students = len(memory[0].reward)
        chosen = random.integers(len(memory), size=max(1, self.config.batch // students))
        batch = Transitions(*(torch.cat(column) for column in zip(*(memory[i] for i in chosen), strict=True)))
        error = critic_loss(self.actor, self.critic, batch, self.config.gamma)
        self.critic_optimiser.zero_grad()
        error.backward()
        self.critic_optimiser.step()
        value = actor_loss(self.actor, self.critic, batch)
        if self.decisions > self.config.learning_starts:  # of a critic that knows nothing there is nothing to learn
            self.actor_optimiser.zero_grad()
            value.backward()
            self.actor_optimiser.step()
        return float(error.detach()), -float(value.detach())

    # ------------------------------------------------------------------ on disk

    def value(self, observation: Array) -> float | None:
        """What the critic says of the actor's action."""
        with torch.no_grad():
            seen = self._state(observation)[None]
            return float(self.critic(seen, act(self.actor, seen))[0, 0])

    def save(self, folder: Path) -> None:
        """Networks, optimisers and counts; what was seen is not kept."""
        parts = ("actor", "critic", "actor_optimiser", "critic_optimiser")
        tree = {name: getattr(self, name).state_dict() for name in parts}
        save_tree(folder, {**tree, "config": asdict(self.config), "counts": self.counts, "decisions": self.decisions})

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; the settings are those of this object."""
        tree = load_tree(folder)
        for name in ("actor", "critic", "actor_optimiser", "critic_optimiser"):
            getattr(self, name).load_state_dict(tree[name])
        self.counts, self.decisions = Counter(tree["counts"]), tree["decisions"]

    @property
    def flops(self) -> int:
        """Two for each parameter of the actor."""
        return 2 * sum(p.numel() for p in self.actor.parameters())
