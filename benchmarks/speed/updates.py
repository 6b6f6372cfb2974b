"""Milliseconds for one distillation update: this backend beside the alternatives, in one alternating run.

    python benchmarks/speed/updates.py [--layers 2 --hidden 128] [--dropout 0] [--repeats 5] [--updates 40]
                                       [--device cpu] [--out FILE]

The work: tau^2 KL + cross-entropy, batch 32, AdamW, MiniLM-L6 as the teacher, SST-2 (or the embedded sentences where
its files are not given), tokenised beforehand. The contenders:

- kd-gym: this backend with the same two knowledge types, N = 1, and N = 4 and 16 per student; N = 1 and 4 in bfloat16,
  where that is fast. Dropout is an override of `encode`; the masks of a student follow from its seed and the update.
- by hand, with `transformers` modules and a `DataLoader`:
  - naive: the teacher in the loop, everything padded to 128.
  - dynamic: each batch padded to its longest sentence.
  - bucketed: batches of about one length, too.
  - looked up: bucketed, and the teacher's logits come from a table.
  - tuned: looked up, with a fused optimiser, the word pieces that occur, and batches cut out of tensors.
- libraries: TextBrewer, torchdistill and `transformers.Trainer`, see peers.py.

Bucketed contenders get the rows of kd-gym's first student, the others as many in random order. Only kd-gym, Trainer
and torchdistill clip the gradient, and only they have a schedule. The teacher's pass ahead is not in the time of those
who look up its logits. The last column says how many times as fast kd-gym with N = 1 is.
"""

from typing import Any

import torch
from torch import Tensor

from bench import (
    Contender,
    Run,
    about,
    advancing,
    alternate,
    architecture,
    bars,
    device_of,
    make_process,
    parser,
    ratio,
    save,
    sst2,
    table,
)
from kd_gym.backend.encoder import Dropout, Encoded, Params, Precision, keep
from kd_gym.backend.meta import dropout_of
from kd_gym.backend.process import DistillationProcess
from kd_gym.backend.teacher import fast_bfloat16
from kd_gym.tasks.tokens import Tokens
from peers import RATE, Batches, Work, kd_loss, peers


def with_dropout(rate: float) -> type[DistillationProcess]:
    """The backend with dropout in the student's passes."""

    class Dropping(DistillationProcess):
        def encode(self, params: Params, tokens: Tokens, dropout: Dropout = keep, plain: bool = False) -> Encoded:
            word = params["word"]  # a part's is a view of everybody's: where it begins says whose it is
            first = word.storage_offset() // word.stride(0)
            seeds = self.lessons.seeds[first : first + len(word)]
            return super().encode(params, tokens, dropout_of(rate, seeds, int(self.update[first])), plain)

    return Dropping if rate else DistillationProcess


def by_hand(work: Work, batches: Batches, looked_up: bool = False, **padding: Any) -> Run:
    """As everybody writes it."""
    student = work.student()
    teacher = None if looked_up else work.teacher()
    optimiser = torch.optim.AdamW(student.parameters(), lr=RATE)

    def run(first: int, count: int) -> None:
        for batch in work.loader(batches(first, count), looked_up, **padding):
            inputs = batch.to(work.device)
            labels = inputs.pop("labels")
            if teacher is None:
                said = inputs.pop("said")
            else:
                with torch.no_grad():
                    said = teacher(**inputs).logits
            kd_loss(student(**inputs).logits, said, labels).backward()
            optimiser.step()
            optimiser.zero_grad()

    return run


def tuned(work: Work) -> Run:
    """The best by hand: nothing is looked up or moved but what an update needs."""
    student = work.student(len(work.data.vocabulary))
    optimiser = torch.optim.AdamW(student.parameters(), lr=RATE, fused=True)
    train, logits = work.data.split("train").to(work.device), work.logits.to(work.device)

    def update(rows: Tensor, width: int) -> None:
        tokens = train.batch(rows, width)
        said = student(input_ids=tokens.ids, attention_mask=tokens.mask.long()).logits
        kd_loss(said, logits[rows], train.labels[rows]).backward()
        optimiser.step()
        optimiser.zero_grad()

    def run(first: int, count: int) -> None:
        for u in range(first, first + count):
            rows, width = work.stream.rows(u)
            update(torch.from_numpy(rows).to(work.device), width)

    return run


def own(work: Work, one: DistillationProcess) -> dict[str, Contender]:
    """This backend; `one` holds a single student."""

    def many(students: int, precision: Precision = "float32") -> Contender:
        process = make_process(work.data, work.arch, students, work.device, kind=type(one), precision=precision)
        return Contender(advancing(process), students)

    found = {"kd-gym": Contender(advancing(one)), "kd-gym, N = 4": many(4), "kd-gym, N = 16": many(16)}
    if fast_bfloat16(work.device):
        found |= {"kd-gym, bfloat16": many(1, "bfloat16"), "kd-gym, N = 4, bfloat16": many(4, "bfloat16")}
    return found


def hands(work: Work) -> dict[str, Contender]:
    """`transformers` modules in a loop of one's own; what takes long, whichever the rows, is run less often."""
    return {
        "naive": Contender(by_hand(work, work.shuffled, padding="max_length", max_length=128), share=0.25),
        "dynamic": Contender(by_hand(work, work.shuffled), share=0.5),
        "bucketed": Contender(by_hand(work, work.bucketed)),
        "looked up": Contender(by_hand(work, work.bucketed, looked_up=True)),
        "tuned": Contender(tuned(work)),
    }


def main() -> None:
    options = parser(__doc__, repeats=5, updates=40)
    options.add_argument("--layers", type=int, default=2)
    options.add_argument("--hidden", type=int, default=128)
    options.add_argument("--dropout", type=float, default=0.0)
    args = options.parse_args()
    device, data = device_of(args), sst2()
    arch = architecture(data, args.layers, args.hidden)
    one = make_process(data, arch, 1, device, kind=with_dropout(args.dropout))
    logits = one.lessons.first[0].logits.float().cpu()
    work = Work(data, arch, args.dropout, device, one.lessons.streams[0], logits)
    libraries, missing = peers(work)
    contenders = {**own(work, one), **hands(work), **libraries}
    what = {k: getattr(args, k) for k in ("layers", "hidden", "dropout", "updates")}

    def keep_times(times: dict[str, list[float]]) -> None:
        ratios = {name: ratio(times, name, "kd-gym") for name in times}
        save(args.out, {**what, **about(device, data), "ms": times, "ratio": ratios, "missing": missing})
        bars(args.out, times, f"student {args.layers} x {args.hidden}, dropout {args.dropout:g}, {data.source}")

    times = alternate(contenders, args.repeats, args.updates, device, keep_times)
    print(f"student {args.layers} x {args.hidden}, dropout {args.dropout}, {data.source}, {device}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(table(times, "kd-gym"))
    for name, word in missing.items():
        print(f"{name}: {word}")


if __name__ == "__main__":
    main()
