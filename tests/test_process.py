"""The distillation process: one loss, many students, exact copies."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kd_gym.backend.knowledge import KNOWLEDGE, Batch
from kd_gym.backend.optim import UNDECAYED
from kd_gym.backend.state import Context, State
from kd_gym.backend.terms import Control
from kd_gym.backend.tiny import tiny_data

K = 4
UNIFORM = [0.25] * K
DEFAULT = Context()


def weights(*rows):
    return Control(torch.tensor(rows or [UNIFORM], dtype=torch.float64))


def logits(process):
    batches = tiny_data("SST2").split("reward").batches(16)
    from kd_gym.backend.encoder import encode

    with torch.no_grad():
        return torch.cat([encode(process.params, process.init.arch, t, "plain").logits for t, _ in batches], 1)


def same(one: State, other: State) -> bool:
    return all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())


@pytest.mark.parametrize(("dtype", "updates", "tolerance"), [(torch.float32, 20, 1e-5), (torch.float64, 20, 1e-8)])
def test_student_i_of_n_is_the_same_student_alone(make_process, dtype, updates, tolerance):
    contexts = [DEFAULT, Context("noise", label_noise=0.3), Context("wrong", teachers="flipped", rate=0.5)]
    rows = [UNIFORM, [0.5, 0.5, 0, 0], [0, 1, 0, 0]]
    many = make_process(3, dtype=dtype)
    many.reset([5, 6, 7], contexts)
    together = many.advance(weights(*rows), updates)
    for i in range(3):
        alone = make_process(1, dtype=dtype)
        alone.reset([5 + i], [contexts[i]])
        trace = alone.advance(weights(rows[i]), updates)
        assert torch.allclose(logits(many)[i], logits(alone)[0], atol=tolerance, rtol=0)
        assert torch.allclose(together.losses[i], trace.losses[0], atol=max(tolerance, 1e-6), rtol=0)


def test_the_loss_is_the_designs_formula(make_process):
    process = make_process(2, task="MNLI", dtype=torch.float64)
    process.reset([1, 2], [DEFAULT] * 2)
    batch = process._forward(process.params, range(2))
    w = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 0, 0, 0]], dtype=torch.float64)
    s = torch.rand(2, 8, dtype=torch.float64)
    s = s / s.mean(1, keepdim=True)
    found = (process.weights(Control(w, None, s)) * batch.losses).sum((1, 2)).mean(-1)
    rows, _ = process._rows(range(2))
    for n in range(2):
        expected = 0.0
        for i in range(8):
            z = batch.encoded.logits[n, i]
            store = process.lessons.teachers["full"][0]
            teacher = store.logits[rows[n, i]].double()
            tau = process.recipe.tau
            p = (teacher / tau).softmax(0)
            terms = [
                F.cross_entropy(z, process.lessons.labels[n, rows[n, i]]),
                tau**2 * (p * (p.log() - (z / tau).log_softmax(0))).sum(),
            ]
            layers = process.lessons.layer_map[0]
            mapped = F.normalize(
                torch.stack(
                    [
                        batch.encoded.cls[n, layer, i] @ process.params["head.feature.0.map"][n, layer]
                        for layer in range(2)
                    ]
                ),
                dim=-1,
            )
            target = F.normalize(store.cls[rows[n, i]][layers].double(), dim=-1)
            terms.append((mapped - target).square().sum(-1).mean())
            student = F.normalize(batch.encoded.cls[n, -1], dim=-1)
            other = F.normalize(store.cls[rows[n]][:, layers[-1]].double(), dim=-1)
            terms.append(((student @ student[i]) - (other @ other[i])).square().mean())
            expected = expected + s[n, i] / 8 * sum(
                w[n, k] / process.scale[n, k, 0] * term for k, term in enumerate(terms)
            )
        assert torch.allclose(found[n], expected, atol=1e-10)


def moved_at_random(value):
    """All tensors of floating numbers in nested tuples, elsewhere."""
    if isinstance(value, torch.Tensor):
        return value + torch.randn_like(value) if value.is_floating_point() else value
    return type(value)(*map(moved_at_random, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", KNOWLEDGE.names())
def test_knowledge_losses_give_one_value_per_sample_and_teachers_do_not_move(make_process, name):
    kind = KNOWLEDGE.get(name)
    process = make_process(2, dtype=torch.float64, live="tokens" in kind.reads, knowledge=("hard", name))
    process.reset([1, 2], [DEFAULT] * 2)
    batch = process._forward(process.params, range(2))
    heads = {k.split(".")[-1]: v for k, v in process.params.items() if k.startswith(f"head.{name}.0.")}
    teacher = batch.teachers[0]
    loss = kind.loss(Batch(batch.encoded, teacher, batch.labels, heads, 2.0, process.progress))
    assert loss.shape == (2, 8)
    assert (loss >= -1e-12).all()
    assert not teacher.logits.requires_grad
    moved = moved_at_random(teacher)
    changed = kind.loss(Batch(batch.encoded, moved, batch.labels, heads, 2.0, process.progress))
    assert torch.equal(changed, loss) == (not kind.reads)  # it depends on the teacher exactly if it says so


def test_scales_are_measured_after_reset_and_then_frozen(make_process):
    process = make_process()
    process.reset([1], [DEFAULT])
    measured = torch.stack([process._forward(process.params, [0], u).losses.mean(-1) for u in range(4)]).mean(0)
    assert torch.allclose(process.scale, measured.clamp(min=1e-3))
    before = process.scale.clone()
    process.advance(weights(), 5)
    assert torch.equal(process.scale, before)


def test_same_seed_context_and_controls_give_equal_bits(make_process):
    def run():
        process = make_process()
        process.reset([3], [Context("c", label_noise=0.2, train_share=0.5)])
        process.advance(weights([0.1, 0.2, 0.3, 0.4]), 7)
        process.advance(weights([1, 0, 0, 0]), 5)
        return process.snapshot()

    torch.manual_seed(0)
    first = run()
    torch.manual_seed(99)  # the global generator plays no part
    assert same(first, run())
    other = make_process()
    other.reset([4], [Context("c", label_noise=0.2, train_share=0.5)])
    assert not same(first, other.snapshot())


def test_snapshot_survives_the_disk_and_resumes_bit_by_bit(make_process, tmp_path):
    process = make_process(2)
    process.reset([3, 4], [DEFAULT, Context("noise", label_noise=0.4)])
    process.advance(weights(UNIFORM, [0, 1, 0, 0]), 6)
    process.snapshot().save(tmp_path / "state.safetensors")
    other = make_process(2)
    other.restore(State.load(tmp_path / "state.safetensors"))
    for p in (process, other):
        p.advance(weights([1, 0, 0, 0], UNIFORM), 6)
    assert same(process.snapshot(), other.snapshot())


actions = st.lists(st.lists(st.floats(0.01, 1), min_size=K, max_size=K), min_size=1, max_size=4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=actions, after=actions, other=actions, seed=st.integers(0, 10**6))
def test_fork_goes_the_same_way_under_the_same_controls_and_leaves_its_parent_alone(
    make_process, before, after, other, seed
):
    def drive(process, rows):
        for row in rows:
            process.advance(weights([x / sum(row) for x in row]), 2)

    parent = make_process()
    parent.reset([seed], [DEFAULT])
    drive(parent, before)
    at_fork = parent.snapshot()
    fork, stray = parent.fork(), parent.fork()
    drive(stray, other)
    assert same(parent.snapshot(), at_fork)
    drive(parent, after)
    drive(fork, after)
    assert same(parent.snapshot(), fork.snapshot())
    assert parent.cost.flops.tolist() == fork.cost.flops.tolist()


def test_fork_may_hold_one_student_many_times(make_process):
    process = make_process(2)
    process.reset([1, 2], [DEFAULT] * 2)
    process.advance(weights(UNIFORM, UNIFORM), 4)
    fork = process.fork([1, 1, 1])
    fork.advance(weights([1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]), 4)
    state = fork.snapshot().tensors["param.word"]
    assert torch.allclose(state[0], state[1], atol=1e-5)
    assert not torch.allclose(state[0], state[2], atol=1e-5)


def test_a_student_that_diverges_ends_alone(make_process):
    process, alone = make_process(2), make_process(2)
    for p in (process, alone):
        p.reset([1, 2], [DEFAULT] * 2)
    with torch.no_grad():
        process.params["classifier.weight"][0] = torch.inf
    before = process.params["word"][0].clone()
    for p in (process, alone):
        p.advance(weights(UNIFORM, UNIFORM), 6)
    assert process.failed.tolist() == [True, False]
    assert torch.equal(process.params["word"][0], before)  # it stays as it was
    assert torch.equal(process.params["word"][1], alone.params["word"][1])  # its neighbour did not notice
    process.reset([5], [DEFAULT], slots=[0])
    assert process.failed.tolist() == [False, False]
    process.advance(weights(UNIFORM, UNIFORM), 2)
    assert process.params["word"].isfinite().all()


def test_reset_of_one_slot_leaves_the_others_as_they_are(make_process):
    process, other = make_process(2), make_process(2)
    for p in (process, other):
        p.reset([1, 2], [DEFAULT] * 2)
        p.advance(weights(UNIFORM, UNIFORM), 5)
    process.reset([9], [DEFAULT], slots=[0])
    assert same(process.snapshot([1]), other.snapshot([1]))
    for p in (process, other):
        p.advance(weights(UNIFORM, UNIFORM), 5)  # slots now stand at different updates and widths
    assert torch.allclose(logits(process)[1], logits(other)[1], atol=1e-5)


def test_contexts_do_what_they_say(make_process):
    process = make_process(4, horizon=200)
    noisy = Context("noise", label_noise=0.4)
    little = Context("little", train_share=0.1)
    wrong = Context("wrong", teachers="flipped")
    slow = Context("slow", rate=0.5)
    process.reset([1, 1, 1, 1], [noisy, little, wrong, slow])
    clean = process.train.labels
    assert (process.lessons.labels[0] != clean).float().mean() == pytest.approx(0.4, abs=0.06)
    assert torch.equal(process.lessons.labels[1], clean)
    seen = {int(r) for u in range(200) for r in process.lessons.streams[1].rows(u)[0]}
    assert 0.08 * len(clean) < len(seen) < 0.15 * len(clean)
    trace = process.advance(weights(*[UNIFORM] * 4), 20)
    assert trace.teacher_accuracy[2] < trace.teacher_accuracy[1] - 0.1
    rates = process.learning_rate()
    assert rates[3] == pytest.approx(0.5 * float(rates[2]))


def test_word_pieces_that_were_not_trained_on_stay_as_they_came(make_process):
    process = make_process()
    process.reset([1], [Context("little", train_share=0.01)])
    start = process.params["word"].detach().clone()
    process.advance(weights(), 10)
    rows = [torch.from_numpy(process.lessons.streams[0].rows(u)[0]) for u in range(10)]
    seen = torch.cat([process.train.batch(r).ids.flatten() for r in rows]).unique()
    untouched = torch.ones(len(start[0]), dtype=torch.bool)
    untouched[seen] = False
    untouched[0] = False  # padding
    assert untouched.any()
    assert torch.equal(process.params["word"][0, untouched], start[0, untouched])
    assert not torch.equal(process.params["word"][0, seen], start[0, seen])


def test_metrics_are_those_of_their_definitions():
    import numpy as np

    from kd_gym.backend.metrics import accuracy, f1, mcc

    predictions, labels = np.array([1, 1, 0, 0, 1, 0]), np.array([1, 0, 0, 1, 1, 0])
    assert accuracy(predictions, labels) == pytest.approx(4 / 6)
    assert f1(predictions, labels) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert mcc(predictions, labels) == pytest.approx((2 * 2 - 1 * 1) / 9)
    assert f1(np.zeros(4, int), np.zeros(4, int)) == 0.0
    assert mcc(np.zeros(4, int), np.array([0, 1, 0, 1])) == 0.0
    three = np.array([0, 1, 2, 1])
    assert mcc(three, three) == pytest.approx(1.0)


def test_updates_are_those_of_autograd_and_torchs_adamw(make_process):
    process, by_hand = (make_process(dtype=torch.float64) for _ in range(2))
    for p in (process, by_hand):
        p.reset([5], [DEFAULT])
    process.advance(weights(UNIFORM), 6)

    params = by_hand.params
    decayed = [v for k, v in params.items() if not any(part in k for part in UNDECAYED)]
    kept = [v for k, v in params.items() if any(part in k for part in UNDECAYED)]
    groups = [{"params": decayed, "weight_decay": by_hand.recipe.decay}, {"params": kept, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups)
    for _ in range(6):
        batch = by_hand._forward(params, [0])
        loss = (batch.losses.mean((0, 2, 3)) / by_hand.scale[0].mean(1) / K).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(params.values()), by_hand.recipe.clip)
        for group in optimiser.param_groups:
            group["lr"] = float(by_hand.learning_rate())
        optimiser.step()
        by_hand.update += 1
    for name, value in process.params.items():
        assert torch.allclose(value, params[name], atol=1e-7), name
