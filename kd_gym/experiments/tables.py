"""Comparisons and lists as tables for the terminal."""

from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from kd_gym.envs.lab import Lab
from kd_gym.experiments.distill import Distilled
from kd_gym.experiments.evaluate import Comparison, Row
from kd_gym.experiments.prepare import SCORED, Scores
from kd_gym.experiments.stats import interval
from kd_gym.experiments.transfer import Transfer


def _mean(row: Row, name: str) -> float:
    return float(np.mean([getattr(episode, name) for episode in row.episodes]))


def told(overrides: dict[str, Any]) -> str:
    """What a controller needs otherwise, in words."""
    return "its env has " + ", ".join(f"{key}={value}" for key, value in overrides.items())


def comparison_table(comparison: Comparison) -> Table:
    """Score with interval, reward and cost of each controller."""
    seeds = len(comparison.rows[0].episodes)
    few = " (few: intervals are wide)" if seeds < 5 else ""
    title = (
        f"{comparison.env}, context {comparison.context}, report split,\n"
        f"{seeds} seeds{few}: mean ± half of the 95 % interval"
    )
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.collapse_padding = True  # so that it fits into 80 columns
    table.add_column("controller", overflow="fold")
    for head in (*(f"report {metric}" for metric in comparison.metrics), "cross-entropy", "reward", "GFLOP", "s"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in comparison.rows:
        table.add_row(
            row.name,
            *(interval(row.scores(metric)).text() for metric in comparison.metrics),
            f"{_mean(row, 'cross_entropy'):.3f}",
            "" if row.reads_reward else interval([episode.reward for episode in row.episodes]).text(),
            f"{_mean(row, 'spent') / 1e9:.1f}",
            f"{_mean(row, 'seconds'):.1f}",
        )
    teacher = ", ".join(f"{metric} {value:.3f}" for metric, value in comparison.teacher.items())
    table.caption = (
        f"data {comparison.source} ({comparison.data_fingerprint}), "
        + ", ".join(f"teacher {name} {weights}" for name, weights in comparison.teachers.items())
        + (f"; the first one has report {teacher}" if teacher else "")
        + "; reward is from the reward split; GFLOP and s (seconds): one episode of student, evaluations and controller"
        + "".join(f"\n{row.name}: {told(row.overrides)}" for row in comparison.rows if row.overrides)
        + (f"\nteachers, once: {comparison.teacher_seconds:.0f} s" if comparison.teacher_seconds else "")
        + (f"\n{comparison.notice}" if comparison.notice else "")
    )
    return table


def transfer_table(found: Transfer, seeds: int) -> Table:
    """What policies gain over the uniform control, by target."""
    title = f"report score less that of uniform, paired over {seeds} seeds (*: beyond chance)"
    table = Table("target", *found.cells, title=title, title_justify="left")
    for i, target in enumerate(found.targets):
        row = [cells[i] for cells in found.cells.values()]
        table.add_row(target, *(f"{cell.text} ({cell.metric} {cell.score:.3f})" if cell else "-" for cell in row))
    return table


def distilled_table(found: Distilled) -> Table:
    """A student beside its teacher: score, size and latency."""
    metrics = list(found.episode.scores)
    table = Table("model", *(f"report {metric}" for metric in metrics), "parameters", "MB", "ms for 32 rows")
    for size in found.sizes:
        scores = found.episode.scores if size.name == "student" else found.teacher
        said = [f"{scores[metric]:.4f}" for metric in metrics]
        table.add_row(size.name, *said, f"{size.parameters:,}", f"{size.megabytes:.1f}", f"{size.milliseconds:.1f}")
    if found.teacher:
        kept = found.episode.scores[metrics[0]] / found.teacher[metrics[0]]
        teacher, student = found.sizes
        table.caption = (
            f"the student keeps {kept:.1%} of its teacher's {metrics[0]} at "
            f"{student.milliseconds / teacher.milliseconds:.2f} times its latency"
        )
    return table


def teacher_table(lab: Lab, scores: Scores) -> Table:
    """Scores and cost of all teachers that were prepared."""
    columns = [(split, metric) for split in SCORED for metric in lab.data.task.metrics]
    table = Table("teacher", "weights", *(" ".join(column) for column in columns), "seconds, once")
    for teacher in lab.made:
        found = scores[teacher.spec.name]
        said = [f"{found[split][metric]:.4f}" if found[split] else "pretended" for split, metric in columns]
        table.add_row(teacher.spec.name, teacher.hash, *said, f"{teacher.seconds:.0f}")
    return table
