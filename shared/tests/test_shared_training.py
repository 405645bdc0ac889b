"""The training loop: resume to the same bits after SIGKILL, checkpoints that cannot be half written, one line for bad input."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from edge_shared.checkpoints import load_checkpoint, previous, save_checkpoint
from edge_shared.errors import InputError
from edge_shared.training import TrainConfig, evaluate, fit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def data(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_NF = torch.randn(count, 4, generator=generator)
    return TensorDataset(x_NF, (x_NF[:, :3] * 2).argmax(1))


def loader(shuffle=True, batch_size=12, **options):
    return DataLoader(data(**options), batch_size=batch_size, shuffle=shuffle, generator=torch.Generator().manual_seed(7))


def weights(module):
    return torch.cat([tensor.double().flatten() for tensor in module.state_dict().values()])


def augmented(module, batch):
    """A loss that draws from all three generators."""
    x_BF, y_B = batch
    x_BF = x_BF + torch.randn_like(x_BF) * 0.1 + np.random.normal() * 0.1 + random.random() * 0.1  # noqa: NPY002
    return nn.functional.cross_entropy(module(x_BF), y_B)


CONFIG = TrainConfig(epochs=4, batch_size=12, lr=0.1, warmup_epochs=0.5)


def test_sgd_with_cosine_is_the_textbook_loop():
    torch.manual_seed(1)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    history = fit(ours, loader(shuffle=False), None, TrainConfig(epochs=3, lr=0.1))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
    losses = []
    for _ in range(3):
        for x_BF, y_B in loader(shuffle=False):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(theirs(x_BF), y_B)
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(float(loss.detach()))
    assert torch.allclose(weights(ours), weights(theirs), atol=1e-6)
    assert [epoch["train_loss"] for epoch in history.epochs] == pytest.approx([np.mean(losses[i : i + 5]) for i in (0, 5, 10)], rel=1e-5)
    assert history.steps == 15


def test_learning_rate_warms_up_and_ends_at_zero():
    config = TrainConfig(epochs=10, warmup_epochs=2)
    factors = [config.factor(step, 5) for step in range(50)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1
    assert all(a < b for a, b in pairwise(factors[:11]))
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert factors[30] == pytest.approx(0.5)
    assert TrainConfig(epochs=10, schedule="linear").factor(25, 5) == 0.5
    assert TrainConfig(epochs=10, schedule="constant").factor(49, 5) == 1


class Counter:
    """An extra state object."""

    def __init__(self):
        self.total = torch.zeros(2)

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state["total"]


class Killed(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 6, 10, 17])
@pytest.mark.parametrize("every", [None, 2])
def test_a_run_stopped_anywhere_resumes_to_the_same_bits(tmp_path, stop_at, every):
    def run(module, counter, path, stop=None):
        def on_step(step):
            counter.total += torch.tensor([1.0, step.loss])
            if step.step + 1 == stop:
                raise Killed

        extra = {"counter": counter}
        return fit(
            module, loader(), loader(False), CONFIG, loss=augmented, checkpoint=path, checkpoint_steps=every, on_step=on_step, extra=extra
        )

    whole, counted = model(), Counter()
    expected = run(whole, counted, None)
    with pytest.raises(Killed):
        run(model(), Counter(), tmp_path / "c.safetensors", stop_at)
    again, recounted = model(seed=99), Counter()
    torch.rand(5), random.random(), np.random.rand()  # noqa: NPY002  another process has other random states
    begun = (tmp_path / "c.safetensors").exists()
    got = run(again, recounted, tmp_path / "c.safetensors")
    if not begun:  # before the first checkpoint a run begins anew, from its own weights
        assert got.steps == 20
        return
    assert torch.equal(weights(whole), weights(again))
    assert torch.equal(counted.total, recounted.total)
    assert got == expected
    finished = model(seed=5)
    assert run(finished, Counter(), tmp_path / "c.safetensors") == expected
    assert torch.equal(weights(finished), weights(whole))


KILLED = """
import os, random, signal, sys, time
import numpy as np, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from edge_shared.training import TrainConfig, fit
torch.set_num_threads(1)
images = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
data = TensorDataset(images, images.flatten(1)[:, :10].argmax(1))
config = TrainConfig(epochs=4, lr=0.1, batch_size=50)

def loss(module, batch):
    x, y = batch
    x = torch.roll(x, int(np.random.randint(-1, 2)), 3) + 0.1 * torch.randn_like(x) * random.random()
    return nn.functional.cross_entropy(module(x), y)

def train(path, seed, on_step=None):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
    loader = DataLoader(data, 50, shuffle=True, generator=torch.Generator().manual_seed(1))
    fit(module, loader, [data[:100]], config, loss=loss,
        checkpoint=path, checkpoint_steps=3, on_step=on_step, device="cpu")
    return module

expected = train(None, 0).state_dict()
chance = random.Random(int(sys.argv[2]))
path, kills = sys.argv[1] + "/checkpoint.safetensors", 0
while True:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        # Weights of a run that has no checkpoint yet begin equal; later ones must come from the file.
        train(path, 1 if os.path.exists(path) else 0, lambda step: os.write(writing, b"."))
        os._exit(0)
    os.close(writing)
    for _ in range(chance.randint(1, 9)):
        if not os.read(reading, 1):
            break
    else:
        time.sleep(chance.random() * 0.02)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reading)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        kills += 1
        continue
    assert status == 0, status
    break
resumed = train(path, 2).state_dict()
assert kills >= 3, kills
assert all(torch.equal(expected[name], resumed[name]) for name in expected)
print("same bits after", kills, "kills")
"""


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_changes_no_bit(tmp_path, seed):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(seed)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "same bits" in done.stdout


def test_ctrl_c_saves_after_the_step_and_the_run_goes_on(tmp_path, capsys):
    path = tmp_path / "c.safetensors"

    def press(step):
        if step.step == 7:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), loader(), None, CONFIG, checkpoint=path, on_step=press)
    assert signal.getsignal(signal.SIGINT) is before
    assert "saved" in capsys.readouterr().err
    assert load_checkpoint(path)["history"]["steps"] == 8
    whole, again = model(), model(seed=3)
    fit(whole, loader(), None, CONFIG)
    fit(again, loader(), None, CONFIG, checkpoint=path)
    assert torch.equal(weights(whole), weights(again))


def test_it_trains_outside_the_main_thread():
    module, results = model(), []
    thread = threading.Thread(target=lambda: results.append(fit(module, loader(), None, CONFIG).steps))
    thread.start()
    thread.join()
    assert results == [20]


def test_early_stopping_goes_back_to_the_best_weights(tmp_path):
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    kept = []

    def on_epoch(epoch):
        kept.append(weights(epoch.model).clone())

    module = model()
    config = TrainConfig(epochs=9, patience=2, monitor="score", lr=0.1)
    history = fit(
        module, loader(), None, config, validate=lambda _: {"score": next(scores)}, on_epoch=on_epoch, checkpoint=tmp_path / "c.safetensors"
    )
    assert (len(history.epochs), history.best_epoch, history.stopped_early) == (4, 1, True)
    assert torch.equal(weights(module), kept[1])
    again = model(seed=1)
    assert fit(again, loader(), None, config, validate=lambda _: {}, checkpoint=tmp_path / "c.safetensors") == history
    assert torch.equal(weights(again), kept[1])
    losses = iter([3.0, 1.0, 2.0])
    low = fit(model(), loader(), None, TrainConfig(epochs=3, monitor="loss"), validate=lambda _: {"loss": next(losses)})
    assert low.best_epoch == 1


def test_hooks_see_gradients_and_updates_and_can_stop():
    module, seen = model(), []
    last = module[4]

    def freeze(step):
        assert last.weight.grad.abs().sum() > 0
        last.weight.grad.zero_()
        seen.append(("gradient", step.step))

    start = last.weight.detach().clone()
    config = TrainConfig(epochs=5, weight_decay=0)
    history = fit(
        module,
        loader(),
        loader(),
        config,
        on_backward=freeze,
        on_step=lambda step: seen.append(("step", step.step)),
        on_epoch=lambda epoch: epoch.epoch == 1,
    )
    assert torch.equal(start, last.weight)
    assert seen == [(what, step) for step in range(10) for what in ("gradient", "step")]
    assert history.stopped_early
    assert len(history.epochs) == 2


def test_parameter_groups_modes_and_clipping():
    module = model()
    first, norm = module[0].weight.detach().clone(), module[1].running_mean.clone()

    def only_the_head(whole):
        whole.eval()
        whole[4].train()

    norms = []

    def on_step(step):
        norms.append(float(step.model[4].weight.detach().norm()))

    groups = [{"params": module[4].parameters(), "lr": 0.2, "weight_decay": 0.0}]
    fit(
        module,
        loader(),
        None,
        TrainConfig(epochs=1, clip_norm=1e-9, momentum=0),
        parameters=groups,
        set_mode=only_the_head,
        on_step=on_step,
    )
    assert torch.equal(first, module[0].weight)
    assert torch.equal(norm, module[1].running_mean)
    assert max(norms) == pytest.approx(min(norms), abs=1e-6)  # clipped away
    own = torch.optim.Adam(module.parameters(), lr=0.01)
    rates = []
    fit(
        module,
        loader(),
        None,
        TrainConfig(epochs=1, schedule="linear"),
        optimizer=own,
        on_step=lambda step: rates.append(own.param_groups[0]["lr"]),
    )
    assert rates == pytest.approx([0.01 * (1 - step / 5) for step in range(5)])


@pytest.mark.parametrize(("channels", "sound"), [(4, False), (8, True)])
def test_narrow_strided_pointwise_layers_train_without_the_kernel_that_corrupts_memory(channels, sound):
    """Channels last, as a batch of grey images cut from pixels lies: a few hundred such steps end the process in oneDNN's kernel."""
    torch.manual_seed(0)
    pixels, labels = np.random.default_rng(0).random((32, 8, 8, 1), dtype=np.float32), torch.arange(32) % 3
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    model = nn.Sequential(nn.Conv2d(1, channels, 3), nn.Conv2d(channels, 3, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    seen = []
    fit(
        model, [(images, labels)], None, TrainConfig(epochs=2), device="cpu",
        on_backward=lambda step: seen.append(torch.backends.mkldnn.enabled),
    )  # fmt: skip
    assert seen == [sound] * 2
    assert torch.backends.mkldnn.enabled


def test_bfloat16_training_learns():
    module = nn.Linear(4, 3)
    fit(module, loader(), None, TrainConfig(epochs=8, lr=0.2, precision="bf16-mixed"))
    assert module.weight.dtype == torch.float32
    assert evaluate(module, loader())["accuracy"] > 0.9


def test_evaluate_is_the_mean_over_samples_and_touches_nothing():
    module = model()
    module[3].eval()
    metrics = evaluate(module, loader(False, batch_size=7))
    assert [part.training for part in module] == [True, True, True, False, True]
    module.eval()
    x_NF, y_N = data().tensors
    with torch.no_grad():
        logits = module(x_NF)
    assert metrics["n"] == 60
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == y_N).float().mean()))
    assert metrics["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits.double(), y_N)))
    with pytest.raises(InputError, match="no data"):
        evaluate(module, [])
    module[0].weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match="not finite for samples 0 to 11"):
        evaluate(module, loader())


def test_inputs_and_losses_that_are_not_finite_keep_the_last_good_state(tmp_path):
    path = tmp_path / "c.safetensors"
    x_NF, y_N = (tensor.clone() for tensor in data().tensors)
    x_NF[40, 2] = torch.nan
    bad = DataLoader(TensorDataset(x_NF, y_N), batch_size=12)
    with pytest.raises(InputError, match="sample 4, at epoch 1, step 4; the last good state"):
        fit(model(), bad, None, CONFIG, checkpoint=path, checkpoint_steps=1)
    assert load_checkpoint(path)["history"]["steps"] == 3
    wild = TrainConfig(epochs=40, lr=1e30, schedule="constant")
    with pytest.raises(InputError, match=r"the loss is .* lower the learning rate"):
        fit(nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 3)), loader(), None, wild)


STATE = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": {1: (2, [None, "x"]), "n": np.arange(3, dtype=np.uint32)},
    "c": b"\0\1",
    "d": float("inf"),
    "e": True,
}


def test_a_checkpoint_keeps_types_and_the_one_before(tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, STATE)
    got = load_checkpoint(path)
    assert torch.equal(got["a"], STATE["a"])
    assert got["b"][1] == (2, [None, "x"])
    assert got["b"]["n"].dtype == np.uint32
    assert (got["c"], got["d"], got["e"]) == (b"\0\1", float("inf"), True)
    save_checkpoint(path, {"second": 1})
    assert load_checkpoint(path) == {"second": 1}
    assert torch.equal(load_checkpoint(previous(path))["a"], STATE["a"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c.previous.safetensors", "c.safetensors"]
    tied = torch.ones(3)
    save_checkpoint(
        path,
        {"one": tied, "two": tied[1:], "bf16": tied.bfloat16(), "bool": tied > 0, "empty": torch.empty(0, 4), "scalar": torch.tensor(3)},
    )
    assert load_checkpoint(path)["two"].tolist() == [1, 1]
    with pytest.raises(TypeError, match="object"):
        save_checkpoint(path, {"x": object()})


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=4)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3), max_leaves=8
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(), trees | trees.map(lambda tree: (tree,)), max_size=4))
def test_any_plain_state_comes_back_equal(tmp_path_factory, state):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_checkpoint(path, state)
    assert load_checkpoint(path) == state


@pytest.mark.parametrize("position", [0, 4, 30, 0.3, 0.6, 0.9, -1])
@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_a_truncated_or_altered_checkpoint_is_refused(tmp_path, position, harm):
    path = tmp_path / "c.safetensors"
    fit(model(), loader(), None, TrainConfig(epochs=2), checkpoint=path)
    content = bytearray(path.read_bytes())
    at = int(position * len(content)) if isinstance(position, float) else position % len(content)
    if harm == "cut":
        content = content[:at]
    else:
        content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="checkpoint") as caught:
        fit(model(), loader(), None, TrainConfig(epochs=2), checkpoint=path)
    assert "\n" not in str(caught.value)
    assert load_checkpoint(previous(path))["history"]["steps"] == 5


def test_a_pickle_is_not_opened(tmp_path):
    path = tmp_path / "c.safetensors"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    torch.save(Evil(), path)
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "text", ['{"dict": [[{"tensor": "t9"}, 1]]}', '{"what": 1}', '{"a": 1, "b": 2}', "[1]", '{"dict": [[[], 1]]}', "{" * 9, "[" * 100_000]
)
def test_a_checkpoint_of_foreign_content_is_refused(tmp_path, text):
    import hashlib

    import safetensors.torch

    digest = hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "c").write_bytes(safetensors.torch.save({}, {"format": "edgewise-checkpoint-1", "state": text, "sha256": digest}))
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(tmp_path / "c")


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    fit(model(), loader(), None, CONFIG, checkpoint=path, extra={"counter": Counter()})
    for module, config, extra, match in [
        (model(), TrainConfig(epochs=4, lr=0.2), {"counter": Counter()}, "made with"),
        (nn.Linear(4, 3), CONFIG, {"counter": Counter()}, "another model"),
        (model(), CONFIG, {}, "holds the state of"),
    ]:
        with pytest.raises(InputError, match=match):
            fit(module, loader(), None, config, checkpoint=path, extra=extra)
    save_checkpoint(path, {"some": "state"})
    with pytest.raises(InputError, match="another model or program"):
        fit(model(), loader(), None, CONFIG, checkpoint=path)


def test_places_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path, match in (
        (tmp_path / "file" / "c.safetensors", "cannot write"),
        (Path("/proc/c.safetensors"), "cannot write"),
        (tmp_path / "folder", "no checkpoint"),
    ):
        with pytest.raises(InputError, match=match):
            fit(model(), loader(), None, CONFIG, checkpoint=path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"good": 1})

    def full(self, content):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match="No space left"):
            save_checkpoint(path, {"next": 2})
    assert load_checkpoint(path) == {"good": 1}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"lr": 0}, "lr is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"epochs": -1}, "epochs is -1"),
        ({"optimizer": "lion"}, "choose one of sgd, adam, adamw"),
        ({"schedule": "steps"}, "choose one of"),
        ({"precision": "fp8"}, "choose one of"),
        ({"patience": 0}, "patience is 0"),
        ({"momentum": 1.0}, "momentum is 1.0; it is below 1"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5; it is below 1"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, match):
    with pytest.raises(InputError, match=match):
        TrainConfig(**settings)


def test_other_bad_calls_are_one_line():
    frozen = nn.Linear(4, 3).requires_grad_(False)
    for arguments, match in [
        ((model(), [], None, CONFIG), "no batches"),
        ((model(), iter([1]), None, CONFIG), "no length"),
        ((frozen, loader(), None, CONFIG), "no parameters"),
        ((model(), loader(), None, TrainConfig(patience=1)), "patience needs"),
        ((model(), loader(), loader(), TrainConfig(monitor="f1")), "validation gives accuracy, loss, n"),
    ]:
        with pytest.raises(InputError, match=match):
            fit(*arguments)
    for x_BF, y_B, match in [
        (torch.randn(4, 5), torch.zeros(4, dtype=torch.long), r"inputs of shape \(4, 5\)"),
        (torch.randn(4, 4), torch.tensor([0, 1, 2, 3]), "labels run from 0 to 3, the model has 3 classes"),
        (torch.randn(4, 4), torch.tensor([0, 1, 2, -1]), "labels run from -1"),
    ]:
        with pytest.raises(InputError, match=match):
            fit(model(), [(x_BF, y_B)], None, CONFIG)
        with pytest.raises(InputError, match=match):
            evaluate(model(), [(x_BF, y_B)])
    with pytest.raises(InputError, match="choose auto, cpu or cuda"):
        fit(model(), loader(), None, CONFIG, device="tpu")


DISTRIBUTED = """
import json, os, sys, torch
from torch.utils.data import DataLoader, TensorDataset
from edge_shared.training import TrainConfig, fit
torch.manual_seed(0)
x = torch.randn(48, 4)
module = torch.nn.Linear(4, 3)
loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=int(sys.argv[1]))
history = fit(module, loader, loader, TrainConfig(epochs=2), checkpoint=sys.argv[2] + ".safetensors")
with open(sys.argv[2] + os.environ.get("RANK", ""), "w") as file:
    json.dump([history.epochs[-1]["train_loss"], module.weight.tolist()], file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "fabric"])
def test_two_processes_train_like_one(tmp_path, launcher):
    script = tmp_path / "run.py"
    script.write_text(DISTRIBUTED)
    subprocess.run([sys.executable, script, "12", tmp_path / "one"], check=True)
    launch = {
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29611"],
        "fabric": [sys.executable, "-m", "lightning_fabric.cli", "--accelerator=cpu", "--devices=2", "--strategy=ddp"],
    }[launcher]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LT_ACCELERATOR": "cpu"}
    done = subprocess.run([*launch, script, "6", tmp_path / "two"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    one, first, second = (json.loads((tmp_path / name).read_text()) for name in ("one", "two0", "two1"))
    assert first == second
    assert one[0] == pytest.approx(first[0], rel=1e-4)
    assert np.allclose(one[1], first[1], atol=1e-6)
    assert (tmp_path / "two.safetensors").is_file()
