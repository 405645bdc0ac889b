"""What a step trains, phases, resumption in the middle of any phase, learning on real digits, the predictor."""

import copy

import numpy as np
import pytest
import torch
from edge_shared.data.vision import ImageSet, load_images
from edge_shared.errors import InputError
from moofa.budget import Budget, Target
from moofa.costs import CostTable
from moofa.measure import Gauge, label, sample_balanced
from moofa.predictor import Predictor, PredictorConfig, encode, fit_predictor
from moofa.presets import PRESETS
from moofa.search import Evolution, search
from moofa.space import Genes, Space, Stage, Stem
from moofa.supernet import Supernet, extract
from moofa.training import ProgressiveLoss, SandwichLoss, SupernetConfig, phases, train_supernet
from moofa.training.run import share

TINY = Space(
    name="tiny",
    in_channels=1,
    classes=3,
    resolutions=(6, 8),
    stem=Stem(out=4, stride=1),
    stages=(Stage(width=4, stride=1, depths=(1, 2), kernels=(3, 5), expands=(2, 3, 4)), Stage(width=8, depths=(1, 2), expands=(2, 3, 4))),
)


def batches(count: int = 3) -> list:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 1, 8, 8, generator=generator), torch.randint(0, 3, (4,), generator=generator)) for _ in range(count)]


def fresh() -> Supernet:
    torch.manual_seed(0)
    return Supernet(TINY)


def test_every_sandwich_step_trains_largest_smallest_and_others():
    loss = SandwichLoss(TINY, seed=3, random=2)
    for step in range(20):
        largest, smallest, *others = loss.choices(step)
        assert (largest, smallest) == (TINY.largest(), TINY.smallest())
        assert len(others) == 2
        for choice in others:
            TINY.check(choice)
        assert loss.choices(step) == [largest, smallest, *others]
    assert loss.choices(0) != loss.choices(1)


def test_others_learn_from_the_largest_not_from_labels():
    supernet = fresh()
    images, labels = batches(1)[0]
    with torch.no_grad():
        one = SandwichLoss(TINY, random=0, label_smoothing=0.0)(copy.deepcopy(supernet).train(), (images, labels))
        logits = supernet.train()(images, TINY.largest())
        small = supernet(images, TINY.smallest())
    by_hand = torch.nn.functional.cross_entropy(logits, labels) - (logits.softmax(1) * small.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(one, by_hand)


@pytest.mark.parametrize("source", ["once-for-all", "moofa"])
def test_progressive_phases_draw_only_their_networks(source):
    supernet = fresh()
    for phase in phases(source)[1:]:
        loss = ProgressiveLoss(TINY, phase, teacher=supernet)
        drawn = [choice for step in range(60) for choice in loss.choices(step)]
        assert len(drawn) == 60 * phase.networks
        expands = {expand for choice in drawn for stage in choice.stages for _, expand in stage}
        depths = {depth for choice in drawn for depth in choice.depths}
        assert expands == {"kernel": {4}, "depth_1": {4}, "depth_2": {4}, "expand_1": {3, 4}, "expand_2": {2, 3, 4}}[phase.name]
        assert depths == ({2} if phase.name == "kernel" else {1, 2})
        assert {kernel for choice in drawn for stage in choice.stages for kernel, _ in stage} == {3, 5}


def test_phases_share_the_epochs_as_the_papers_do():
    table = phases("once-for-all")
    assert share(table, 590) == [180, 120, 25, 120, 25, 120]
    for epochs in (6, 7, 13, 100):
        parts = share(table, epochs)
        assert sum(parts) == epochs
        assert min(parts) >= 1
    # MOOFA: ten times less for kernel and depth, thirty times less for the last phase.
    ratios = [ours.lr / theirs.lr for ours, theirs in zip(phases("moofa"), table, strict=True)]
    assert ratios == pytest.approx([1, 1 / 10, 1 / 10, 1 / 10, 1 / 10, 1 / 30])


def test_defect_1_channels_are_sorted_before_the_expand_phases(tmp_path, monkeypatch):
    calls = []
    import moofa.training.run as module

    real = module.sort_channels
    monkeypatch.setattr(module, "sort_channels", lambda supernet, trained: (calls.append(trained[0]), real(supernet, trained)))
    train_supernet(fresh(), batches(1), SupernetConfig(schedule="progressive", epochs=6), tmp_path, device="cpu")
    assert calls == [(4,), (3, 4)]


def test_defect_2_all_resolutions_are_trained():
    loss = SandwichLoss(TINY)
    assert {choice.resolution for step in range(20) for choice in loss.choices(step)[2:]} == {6, 8}


@pytest.mark.parametrize(("schedule", "stop"), [("sandwich", 4), ("progressive", 2), ("progressive", 14)])
def test_defect_6_an_interrupted_run_ends_at_the_same_weights(tmp_path, monkeypatch, schedule, stop):
    """Interrupted in the middle of a phase (momentum and all), continued, against a run in one go."""
    config = SupernetConfig(schedule=schedule, epochs=6 if schedule == "progressive" else 3, lr=0.02)
    whole = fresh()
    train_supernet(whole, batches(), config, tmp_path / "whole", device="cpu")
    count = [0]
    for kind in (SandwichLoss, ProgressiveLoss):
        real = kind.__call__

        def interrupted(self, model, batch, real=real):
            count[0] += 1
            if count[0] == stop + 1:
                raise KeyboardInterrupt
            return real(self, model, batch)

        monkeypatch.setattr(kind, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_supernet(fresh(), batches(), config, tmp_path / "parts", device="cpu", checkpoint_steps=1)
    resumed = fresh()
    train_supernet(resumed, batches(), config, tmp_path / "parts", device="cpu", checkpoint_steps=1)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_of_another_space_is_refused(tmp_path):
    train_supernet(fresh(), batches(1), SupernetConfig(epochs=1), tmp_path, device="cpu")
    other = Supernet(TINY.model_copy(update={"resolutions": (8,)}))  # the same weights, another space
    with pytest.raises(InputError, match="another space"):
        train_supernet(other, batches(1), SupernetConfig(epochs=1), tmp_path, device="cpu")


def test_bad_settings_are_refused():
    for options, message in (
        ({"schedule": "random"}, "sandwich, progressive"),
        ({"schedule": "progressive", "epochs": 5}, "at least 6"),
        ({"source": "paper"}, "once-for-all, moofa"),
    ):
        with pytest.raises(InputError, match=message):
            SupernetConfig(**options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of `moofa train`, and which parts of the data were read for it."""
    from edge_shared.cli import run
    from moofa.cli import app

    folder, seen, arrays = tmp_path_factory.mktemp("trained") / "supernet", set(), ImageSet.arrays
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageSet, "arrays", lambda images, part: seen.add(part) or arrays(images, part))
        assert run(app, ["train", "--limit", "200", "--epochs", "1", "--networks", "10", "--out", str(folder)]) == 0
    return folder, seen


def test_defect_5_neither_supernet_nor_predictor_sees_the_test_part(trained):
    """The accuracies that the predictor learns from are counted on held-out training images."""
    assert trained[1] == {"train", "val"}


def test_defect_10_learns_digits_on_a_cpu_and_predicts(tmp_path):
    images = load_images("digits", seed=0)
    space = PRESETS["digits8"]()
    torch.manual_seed(0)
    supernet = Supernet(space)
    gauge = Gauge.of(images, "val")
    history = train_supernet(supernet, images.loader("train", 64, shuffle=True), SupernetConfig(epochs=3), tmp_path, device="cpu")[
        "sandwich"
    ]
    losses = [epoch["train_loss"] for epoch in history.epochs]
    assert losses[-1] < 0.8 * losses[0]
    assert gauge.accuracy(supernet, space.largest()) > 0.85
    assert gauge.accuracy(supernet, space.smallest()) > 0.7
    assert len(gauge.labels) == len(images.val_y)
    network = extract(supernet, space.smallest())
    with torch.no_grad():
        assert float((network(gauge.images).argmax(1) == gauge.labels).float().mean()) == gauge.accuracy(supernet, space.smallest())
    known: dict[str, float] = {}
    rows = sample_balanced(CostTable(space, Target()), 5, 0)
    accuracies = label(supernet, rows, gauge, known, lambda values: None)
    assert list(known.values()) == accuracies.tolist()
    # What is known already is not measured again.
    assert label(supernet, rows[:1], gauge, {" ".join(map(str, rows[0])): 0.25}, lambda values: None) == [0.25]


def test_predictor_learns_an_additive_accuracy(tmp_path):
    space = PRESETS["mnist28"]()
    genes = Genes(space)
    rows = genes.sample(300, np.random.default_rng(0))
    features = encode(genes, rows)
    truth = 0.8 + 0.01 * features @ np.random.default_rng(1).normal(size=features.shape[1])
    predictor, quality = fit_predictor(space, rows, truth, PredictorConfig(epochs=120, lr=3e-3, monotone=False))
    assert quality.kendall_tau > 0.8
    assert quality.held_out == 60
    predictor.save(tmp_path, quality)
    again = Predictor.load(tmp_path, space)
    assert (again(rows) == predictor(rows)).all()
    assert (predictor(rows[:7]) == predictor(rows)[:7]).all()
    with pytest.raises(InputError, match="another space"):
        Predictor.load(tmp_path, PRESETS["digits8"]())


def noisy_accuracies(space, count=80):
    """Accuracy that fades with memory, in counts of 270 images: noise as large as what there is to learn."""
    rng = np.random.default_rng(3)
    table = CostTable(space, Target("D", 8))
    rows = sample_balanced(table, count, 0)
    truth = 0.98 + 0.01 * np.log(table.costs(rows).ram / table.costs(rows).ram.max())
    return table, rows, rng.binomial(270, truth) / 270


def test_a_network_is_never_predicted_below_one_that_it_contains():
    space = PRESETS["mnist28"]()
    table, rows, accuracies = noisy_accuracies(space)
    predictor, _ = fit_predictor(space, rows, accuracies, PredictorConfig(epochs=60))
    genes, rng = table.genes, np.random.default_rng(0)
    smaller = genes.sample(400, rng)
    larger, kernels = smaller.copy(), [kernel for columns in genes.block_columns for kernel, _ in columns]
    for row in larger:
        columns = rng.permutation([column for column in range(len(genes.sizes)) if column not in kernels])[:3]
        row[columns] = np.minimum(row[columns] + 1, genes.sizes[columns] - 1)
    # A block that appears may have any kernel and expansion.
    fresh = genes.active(larger) & ~genes.active(smaller)
    larger = genes.canonical(np.where(fresh, (rng.random(larger.shape) * genes.sizes).astype(int), larger))
    assert (larger != smaller).any(1).mean() > 0.7
    assert (predictor(larger) >= predictor(smaller)).all()
    # No order is assumed of kernels: with other labels either is ahead.
    change = genes.canonical(np.where(np.isin(np.arange(len(genes.sizes)), kernels[:1]), 1 - smaller, smaller))
    for sign in (-1, 1):
        taught, _ = fit_predictor(space, rows, 0.9 + 0.02 * sign * rows[:, kernels[0]], PredictorConfig())
        ahead = taught(change) - taught(smaller)
        assert (sign * ahead[smaller[:, kernels[0]] == 0] > 0.005).all()


@pytest.mark.parametrize("method", ["exhaustive", "evolution"])
def test_found_networks_use_the_budget_whatever_the_noise(method):
    """Use of at least 0.85 of every budget inside the feasible range, and never a larger budget with a lower prediction."""
    table, rows, accuracies = noisy_accuracies(PRESETS["digits8"]())
    predictor, _ = fit_predictor(table.space, rows, accuracies, PredictorConfig(epochs=60))
    values = np.unique(table.costs(table.genes.enumerate()).ram)
    last = 0.0
    for budget in np.linspace(values[0], values[-1], 9).astype(int):
        found = search(table, predictor, Budget(ram=int(budget)), method=method, settings=Evolution(population=40, generations=4))
        assert found.utilisation >= 0.85
        assert found.found.score >= last
        last = found.found.score
        # As much as any network of the space can use.
        assert found.found.costs["ram"] == values[values <= budget][-1]


def test_features_hide_what_does_not_exist():
    space = PRESETS["digits8"]()
    genes = Genes(space)
    row = genes.encode([space.smallest()])
    noisy = row.copy()
    for columns in genes.block_columns:
        noisy[0, columns[1][0]] = 1  # a block beyond the depth
    assert (encode(genes, noisy) == encode(genes, row)).all()
    assert (genes.canonical(noisy) == row).all()
    # One resolution, per existing block one kernel and one expansion.
    assert encode(genes, row).sum() == 1 + 2 * 2


def test_measured_networks_are_spread_over_memory():
    table = CostTable(PRESETS["mnist28"](), Target("D", 8))
    rows = sample_balanced(table, 60, 0)
    ram = table.costs(rows).ram
    assert len(np.unique(rows, axis=0)) == 60
    random = table.costs(table.genes.sample(60, np.random.default_rng(0))).ram
    assert ram.std() > random.std()
    ends = table.costs(table.genes.encode([table.space.smallest(), table.space.largest()])).ram
    assert {int(ram.min()), int(ram.max())} == set(map(int, ends))


def test_an_interrupted_fine_tuning_goes_on_and_ends_at_the_same_weights(trained, tmp_path, capsys, monkeypatch):
    import edge_shared.training
    from edge_shared.cli import run
    from moofa.cli import app

    words = ["extract", "--model", str(trained[0]), "--budget", "3kB", "--epochs", "2", "--out"]
    fit, ends = edge_shared.training.fit, []

    def whole(network, *arguments, **settings):
        fit(network, *arguments, **settings)
        ends.append({name: value.clone() for name, value in network.state_dict().items()})
        raise KeyboardInterrupt  # nothing after the fine-tuning matters here

    def part(*arguments, **settings):
        def interrupt(step):
            if step.step == 5:  # in the second of two epochs of four steps
                raise KeyboardInterrupt

        return fit(*arguments, **settings, on_step=interrupt)

    monkeypatch.setattr(edge_shared.training, "fit", whole)
    assert run(app, [*words, str(tmp_path / "whole")]) == 130
    monkeypatch.setattr(edge_shared.training, "fit", part)
    assert run(app, [*words, str(tmp_path / "parts")]) == 130
    monkeypatch.setattr(edge_shared.training, "fit", whole)
    assert run(app, ["extract", "--resume", str(tmp_path / "parts")]) == 130
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
    assert run(app, ["extract", "--out", str(tmp_path / "none")]) == 2
    capsys.readouterr()
