"""Write the leaderboard's page out of its entries' records.

python benchmarks/leaderboard/page.py
"""

from pathlib import Path

import numpy as np
from check import ENTRIES, read_entry

from kd_gym.experiments.publish import markdown
from kd_gym.experiments.records import Record
from kd_gym.experiments.stats import interval
from kd_gym.experiments.summary import difference, value_of
from kd_gym.files import write_text

HEADS = ("entry", "seeds", "score", "cross-entropy", "score less uniform, r", "GFLOP", "what it is")
LEAD = """# Leaderboard

Every line comes from records that `python benchmarks/leaderboard/check.py` plays again. Scores are of the `report`
split in the default context; ± is half of a 95 % interval (Student's t), the seed being the unit; differences are
paired by seed. Entries are sorted by their mean score: where intervals overlap, the order says little. GFLOP is one
episode's.

To submit: add a folder with `entry.yaml` (`name`, `about`, `command`) and the records of one controller (as
`kd-gym benchmark` or `kd-gym evaluate NAME --env ID --records DIR` leave them) in `records/` under `entries`, run
`check.py` and `page.py`, and open a pull request.
"""


def main() -> None:
    found = [read_entry(folder) for folder in sorted(f for f in ENTRIES.iterdir() if f.is_dir())]
    places: dict[tuple[str, ...], list[tuple[dict[str, str], dict[int, Record]]]] = {}
    for told, records in found:
        for env in sorted({record.env for record in records}):
            own = {record.episode.seed: record for record in records if record.env == env}
            first = next(iter(own.values()))  # other data and other teachers are other tables
            place = (env, first.source, first.data_fingerprint, *sorted(first.teachers.values()))
            places.setdefault(place, []).append((told, own))
    lines = [LEAD]
    for (env, source, fingerprint, *_), entries in places.items():
        first = next(iter(entries[0][1].values()))
        metric = first.metrics[0]
        uniform = next((own for _, own in entries if next(iter(own.values())).controller == "uniform"), {})
        rows = []
        for told, own in sorted(entries, key=lambda e: -np.mean([value_of(r, metric) for r in e[1].values()])):
            apart = difference(own, uniform, metric) if own is not uniform else None
            spent = np.mean([value_of(r, "spent") for r in own.values()]) / 1e9
            score, loss = (interval([value_of(r, n) for r in own.values()]).text() for n in (metric, "cross_entropy"))
            less = f"{apart.text()}, {apart.correlation:.2f}" if apart else ""
            rows.append([told["name"], str(len(own)), f"{metric} {score}", loss, less, f"{spent:.3g}", told["about"]])
        teacher = ", ".join(f"{name} {value:.3f}" for name, value in first.teacher.items())
        lines += [
            f"## {env}\n",
            f"Data {source} ({fingerprint}); the teacher has {teacher}.\n",
            markdown(HEADS, rows),
            "",
        ]
    write_text(Path(__file__).parent / "README.md", "\n".join(lines))


if __name__ == "__main__":
    main()
