import torch

from mocokit.evaluate.fast_linear import best_pair, fast_linear, measure_scale, train_heads
from mocokit.evaluate.features import Features
from mocokit.evaluate.protocols import FastLinearProtocol, Schedule
from mocokit.randomness import Purpose, permutation
from tests.oracles import sgd_classifier

CPU = torch.device("cpu")
SCHEDULE = Schedule(epochs=3, cos=True, by="step")


def _clusters(count: int, seed: int, *, noise: float = 1.5) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=generator)
    centres = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    rows = centres[labels] + noise * torch.randn(count, 16, generator=generator)
    return Features(rows=rows * torch.linspace(0.01, 100, 16) + 7, labels=labels)  # scales far apart


def test_each_head_equals_one_trained_alone_by_autograd_and_sgd() -> None:
    features = _clusters(203, 1)
    pairs = [(0.3, 0.0), (10.0, 1e-3), (3.0, 0.1)]
    members = torch.arange(3, 203)
    standardise = measure_scale(features.rows, CPU)
    heads = train_heads(
        features,
        members,
        pairs,
        standardise=standardise,
        num_classes=5,
        batch_size=32,
        schedule=SCHEDULE,
        device=CPU,
        seed=4,
    )
    batches = [
        members[permutation(4, Purpose.EPOCH_ORDER, 200, epoch)[start : start + 32]].tolist()
        for epoch in range(3)
        for start in range(0, 200, 32)
    ]
    for number, (rate, decay) in enumerate(pairs):
        rates = [SCHEDULE.lr(step, steps_per_epoch=7, peak_lr=rate) for step in range(21)]
        weight, bias = sgd_classifier(standardise(features.rows), features.labels, batches, rates, decay, 5)
        torch.testing.assert_close(heads.weight[:, number].T, weight, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(heads.bias[number], bias, rtol=1e-4, atol=1e-4)


def test_standardised_rows_have_mean_0_equal_variances_and_length_1() -> None:
    rows = _clusters(500, 1).rows
    rows[:, 3] = 2.5  # a dead feature
    out = measure_scale(rows, CPU)(rows)
    assert out.mean(dim=0).abs().max() < 1e-5
    alive = [dimension for dimension in range(16) if dimension != 3]
    torch.testing.assert_close(out[:, alive].std(dim=0), torch.full((15,), 0.25))
    assert (out[:, 3] == 0).all()
    assert abs(float(out.square().sum(dim=1).mean()) - 15 / 16) < 0.01


def test_the_test_labels_do_not_influence_the_choice() -> None:
    train = _clusters(400, 1)
    test = _clusters(100, 2)
    protocol = FastLinearProtocol(batch_size=32, schedule=SCHEDULE)
    result = fast_linear(train, test, protocol, num_classes=5, device=CPU, seed=0)
    wrong = Features(rows=test.rows, labels=(test.labels + 1) % 5)
    other = fast_linear(train, wrong, protocol, num_classes=5, device=CPU, seed=0)
    assert (other.lr, other.weight_decay) == (result.lr, result.weight_decay)
    assert result.accuracy > 0.6 > other.accuracy


def test_ties_go_to_the_lower_loss_and_nan_never_wins() -> None:
    pairs = [(1.0, 0.0), (2.0, 0.0), (3.0, 0.0)]
    assert best_pair(pairs, [0.5, 0.5, 0.4], [1.2, 1.1, 0.1]) == (2.0, 0.0)
    assert best_pair(pairs, [0.9, 0.5, 0.4], [float("nan"), 1.1, 0.1]) == (2.0, 0.0)
