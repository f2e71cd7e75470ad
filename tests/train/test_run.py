"""The run folder: what training writes, that it survives what goes wrong, and that damage is told."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from gpuconv import BackendUnavailable, backends
from gpuconv.errors import UserError
from gpuconv.train import checkpoint, data as datasets, export as exports, loop, run as runs
from gpuconv.train.config import Config
from gpuconv.train.progress import Callback, ProgressLines, TensorBoardWriter, draw_curves

SHORT = Config(steps=3, batch_size=32)
FILES = ["checkpoint.safetensors", "config.json", "curves.png", "metrics.jsonl", "model.safetensors"]


def train(path: Path, config: Config = SHORT, *callbacks: Callback, **how: object) -> dict[str, object]:
    return runs.train(config, path, callbacks or [ProgressLines(io.StringIO(), "title")], **how)


def weights_of(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    train(path, Config(epochs=2, batch_size=128))
    return path


@pytest.fixture
def damaged(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be damaged."""
    path = tmp_path / "damaged"
    path.mkdir()
    for file in finished.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def test_the_folder_holds_settings_metrics_and_weights_and_nothing_else(finished: Path) -> None:
    assert sorted(file.name for file in finished.iterdir()) == FILES
    config = json.loads((finished / "config.json").read_text())
    assert config["epochs"] == 2 and config["image_shape"] == [1, 8, 8] and len(config["classes"]) == 10
    assert runs.load_config(finished) == Config(epochs=2, batch_size=128)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["epoch"], line["step"]) for line in lines] == [("epoch", 1, 12), ("epoch", 2, 24)]
    expected = {"loss", "accuracy", "test_loss", "test_accuracy", "seconds", "images_per_second", "lr"}
    assert set(lines[0]) == {"kind", "epoch", "step"} | expected


def test_the_normalisation_is_saved_with_the_weights(finished: Path) -> None:
    weights = safetensors.torch.load_file(finished / "model.safetensors")
    assert weights["normalize.mean"].shape == weights["normalize.std"].shape == (1, 1, 1)
    data = datasets.load(Config())
    images = data.pixels(data.images, torch.float64)
    assert weights["normalize.mean"].item() == pytest.approx(images.mean().item())
    assert weights["normalize.std"].item() == pytest.approx(images.std().item())


def test_evaluation_gives_the_last_score_of_training(finished: Path) -> None:
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert runs.evaluate(finished) == loop.Score(last["test_accuracy"], last["test_loss"], 355)


def test_another_backend_or_type_scores_a_run_alike(finished: Path) -> None:
    expected = runs.evaluate(finished)
    for other in ({"backend": "numpy"}, {"dtype": "float64"}, {"dtype": "bfloat16"}):
        score = runs.evaluate(finished, **other)
        assert score.accuracy == pytest.approx(expected.accuracy, abs=0.02)
        assert score.loss == pytest.approx(expected.loss, rel=0.05)


@pytest.mark.parametrize("backend", ["aten", "numpy"])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(tmp_path: Path, backend: str) -> None:
    config = dataclasses.replace(SHORT, backend=backend, seed=7, steps=20)
    for name in ("a", "b"):
        torch.rand(3)  # whatever happened before has no say
        train(tmp_path / name, config)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b
    train(tmp_path / "c", dataclasses.replace(config, seed=8))
    assert (tmp_path / "c" / "model.safetensors").read_bytes() != a


def test_steps_are_logged_as_often_as_asked(tmp_path: Path) -> None:
    result = train(tmp_path / "run", dataclasses.replace(SHORT, steps=7), log_every=3)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [("step", 3), ("step", 6), ("epoch", 7)]
    assert result["losses"] == [lines[0]["loss"], lines[1]["loss"]]


def test_float64_weights_are_saved_as_float64_and_16_bit_runs_keep_float32_weights(tmp_path: Path) -> None:
    for dtype, saved in (("float64", torch.float64), ("bfloat16", torch.float32), ("float16", torch.float32)):
        train(tmp_path / dtype, dataclasses.replace(SHORT, dtype=dtype))
        weights = safetensors.torch.load_file(tmp_path / dtype / "model.safetensors")
        assert {t.dtype for t in weights.values()} == {saved}


def test_training_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        return torch.get_num_threads(), torch.backends.cudnn.deterministic, backends.selected()

    before = state()
    train(tmp_path / "run", dataclasses.replace(SHORT, backend="numpy"))
    assert state() == before


def test_training_works_outside_the_main_thread(tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(tmp_path / "run",))
    thread.start()
    thread.join()
    assert runs.evaluate(tmp_path / "run").n == 355


def test_a_run_is_never_overwritten(finished: Path) -> None:
    before = {file.name: file.read_bytes() for file in finished.iterdir()}
    with pytest.raises(UserError, match="already holds a run"):
        train(finished)
    assert {file.name: file.read_bytes() for file in finished.iterdir()} == before


@pytest.mark.parametrize("where", ["a file", "below a file"])
def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path, where: str) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match=f"cannot write to .*: {file} is not a folder"):
        train(file if where == "a file" else file / "x" / "run")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that even root cannot write to")
def test_a_folder_that_cannot_be_made_is_told() -> None:
    with pytest.raises(UserError, match="cannot write to /proc/gpuconv/run"):
        train(Path("/proc/gpuconv/run"))


class Refusing(backends.Backend):
    name = "refusing"

    def refuses(self, *_: object) -> str:
        return "it is a test"


def test_where_a_backend_refuses_the_network_nothing_is_written(tmp_path: Path) -> None:
    backends.register(Refusing())
    try:
        with pytest.raises(BackendUnavailable, match="it is a test"):
            train(tmp_path / "run", dataclasses.replace(SHORT, backend="refusing"))
    finally:
        del backends._loaded["refusing"]
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_weights_of_the_epoch_before(tmp_path: Path) -> None:
    config = Config(epochs=3, batch_size=1442, lr=1e18)
    with pytest.raises(UserError, match=r"the loss of epoch \d is (nan|inf): training diverged; try a smaller --lr"):
        train(tmp_path / "run", config, log_every=1)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_what_cannot_be_written_leaves_the_file_before_it(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="file sizes can only be limited on Unix")
    path = tmp_path / "file"
    checkpoint.write(path, b"first")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*file: .*; the one saved before is still there"):
            checkpoint.write(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / name).write_bytes(change((path / name).read_bytes()))

    return damage


def settings(**other: object) -> Callable[[Path], None]:
    return rewrite("config.json", lambda text: json.dumps(json.loads(text) | other).encode())


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors = safetensors.torch.load_file(path / "model.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, path / "model.safetensors")

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda path: (path / "config.json").unlink(), "is not a run: cannot read config.json"),
    "config is a folder": (
        lambda path: ((path / "config.json").unlink(), (path / "config.json").mkdir()),
        "is not a run: cannot read config.json",
    ),
    "half a config": (rewrite("config.json", lambda text: text[:100]), "config.json is damaged: it is not JSON"),
    "empty config": (rewrite("config.json", lambda text: b""), "config.json is damaged: it is not JSON"),
    "binary config": (rewrite("config.json", lambda text: b"\xff\xfe\x00"), "config.json is damaged: it is not JSON"),
    "deep config": (rewrite("config.json", lambda text: b"[" * 200_000), "config.json is damaged: it is not JSON"),
    "config is a list": (rewrite("config.json", lambda text: b"[1]"), "config.json is damaged: settings are missing"),
    "setting missing": (rewrite("config.json", lambda text: b"{}"), "damaged: settings are missing: data, model"),
    "wrong type": (settings(lr="fast"), "config.json is damaged: lr must be float, but got 'fast'"),
    "bool for int": (settings(seed=True), "config.json is damaged: seed must be int, but got True"),
    "unknown network": (settings(model="huge"), "model must be one of small, .*, but got 'huge'"),
    "unknown data": (settings(data="cats"), "data must be one of digits, .*, but got 'cats'"),
    "classes missing": (settings(classes=3), "config.json is damaged: image_shape or classes is missing or wrong"),
    "a bit flipped": (
        rewrite("model.safetensors", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]),
        "model.safetensors is damaged: its checksum is wrong",
    ),
    "other data": (settings(classes=["a", "b"]), "the network was made for 2 classes|is another network's"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "cannot read .*model.safetensors: No such file"),
    "half the weights": (rewrite("model.safetensors", lambda data: data[: len(data) // 2]), "safetensors is damaged"),
    "empty weights": (rewrite("model.safetensors", lambda data: b""), "model.safetensors is damaged"),
    "garbled weights": (rewrite("model.safetensors", lambda data: b"\xff" * 1000), "model.safetensors is damaged"),
    "weight missing": (
        weights(lambda tensors: tensors.pop("fc.bias")),
        r"another network's: expected fc.bias of shape \[10\], but got None",
    ),
    "weight unknown": (
        weights(lambda tensors: tensors.update(extra=torch.zeros(2))),
        r"another network's: expected extra of shape None, but got \[2\]",
    ),
    "weight of another shape": (
        weights(lambda tensors: tensors.update({"conv1.weight": torch.zeros(64, 3, 3, 3)})),
        r"another network's: expected conv1.weight of shape \[64, 1, 3, 3\], but got \[64, 3, 3, 3\]",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_in_one_line(damaged: Path, damage: str) -> None:
    damage_it, message = DAMAGES[damage]
    damage_it(damaged)
    with pytest.raises(UserError, match=message):
        runs.evaluate(damaged)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run: there is no such folder"):
        runs.evaluate(tmp_path / "nothing")


# ---- going on -------------------------------------------------------------------------------------------------------

BUSY = Config(
    model="tutorial",
    steps=30,
    epochs=3,
    batch_size=91,
    shift=1,
    flip=True,
    cutout=2,
    ema=0.9,
    clip=1.0,
    dtype="float16",
    optimizer="adamw",
    lr=1e-3,
    label_smoothing=0.1,
)


class StopAt(Callback):
    """Sends this process a signal after a step."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGINT) -> None:
        self.at, self.number = step, number

    def step(self, at: loop.Position) -> None:
        if at.step == self.at:
            os.kill(os.getpid(), self.number)


def same_but_for_time(a: Path, b: Path) -> None:
    lines = [
        [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in runs.metrics(path)]
        for path in (a, b)
    ]
    assert [line for line in lines[0] if line["kind"] != "stopped"] == lines[1]


@pytest.mark.parametrize(
    "config", [BUSY, dataclasses.replace(BUSY, model="small", optimizer="sgd", channels_last=True, dtype="float32")]
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, config: Config) -> None:
    config = dataclasses.replace(config, data=f"npz:{images(tmp_path)}")
    whole = train(tmp_path / "whole", config, log_every=3)
    assert whole["steps"] == 30
    for step in (1, 17, 26):  # an epoch has 17
        how = {} if step == 1 else {"resume": True}
        result = train(tmp_path / "run", config, StopAt(step), log_every=3, **how)
        assert (result["stopped_by"], result["steps"]) == ("SIGINT", step)
    result = train(tmp_path / "run", config, log_every=3, resume=True)
    assert {k: result[k] for k in ("accuracy", "loss", "steps")} == {k: whole[k] for k in ("accuracy", "loss", "steps")}
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole")
    same_but_for_time(tmp_path / "run", tmp_path / "whole")
    assert train(tmp_path / "run", config, resume=True)["accuracy"] == whole["accuracy"]  # nothing is left to do


def images(folder: Path, n: int = 1500) -> Path:
    """Random images of 8×8 with marks that tell their class, which need no scikit-learn; each class starts anew."""
    draw = np.random.default_rng(3)
    labels = draw.integers(0, 4, n)
    pixels = draw.integers(0, 200, (n, 8, 8), np.uint8)
    pixels[np.arange(n), labels, labels] = 255
    held = slice(0, n - 1547 if n > 1547 else 50)
    np.savez(folder / "x.npz", images=pixels, labels=labels, test_images=pixels[held], test_labels=labels[held])
    return folder / "x.npz"


def command(path: Path, config: Config, *options: object) -> list[str]:
    given = {k: v for k, v in dataclasses.asdict(config).items() if v not in (None, False)}
    settings = [f"--{k.replace('_', '-')}" + ("" if v is True else f"={v}") for k, v in given.items()]
    return [sys.executable, "-m", "gpuconv", "train", *map(str, options or (*settings, "--out", path))]


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_run_killed_at_any_step_goes_on_to_the_same_bits(
    tmp_path: Path, clean_environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    config = dataclasses.replace(BUSY, data=f"npz:{images(tmp_path)}", steps=60, epochs=4)
    train(tmp_path / "whole", config)
    seed = int(np.random.default_rng().integers(2**31))
    draw, kills, more = np.random.default_rng(seed), 0, ()
    for _ in range(20 if request.config.getoption("--full") else 2):
        options = (*more, "--checkpoint-every", draw.integers(1, 5), "--log-every", 1, "--device", "cpu")
        arguments = command(tmp_path / "run", config)[4:] if not more else []
        process = subprocess.Popen(
            command(tmp_path / "run", config, *arguments, *options), env=clean_environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        left = int(draw.integers(1, 25))
        for line in process.stdout:
            left -= line.startswith("step")
            if left == 0:
                process.kill()
                break
        process.stdout.close()
        kills += process.wait(60) == -signal.SIGKILL
        more = ("--resume", tmp_path / "run")
    assert kills, seed
    train(tmp_path / "run", config, resume=True)
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole"), f"seed {seed}"


def test_dropout_goes_on_with_its_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dropping(torch.nn.Sequential):
        def __init__(self, shape: tuple[int, ...], classes: int) -> None:
            super().__init__(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, classes))
            self.normalize = runs.networks.Normalize(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[2](self[1](self[0](self.normalize(x))))

    monkeypatch.setitem(runs.networks.NETWORKS, "small", Dropping)
    config = dataclasses.replace(SHORT, steps=9)
    train(tmp_path / "whole", config)
    train(tmp_path / "run", config, StopAt(4, signal.SIGTERM))
    torch.rand(7)
    train(tmp_path / "run", config, resume=True)
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole")


def test_patience_chooses_by_validation_images_and_tests_what_it_chose_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[str] = []

    def evaluate(network: torch.nn.Module, data: datasets.Data, config: Config, part: str = "test") -> loop.Score:
        judged.append(part)
        return EVALUATE(network, data, config, part)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    config = Config(epochs=30, batch_size=600, lr=3.0, patience=2)  # too quick: accuracy jumps about
    result = train(tmp_path / "run", config)
    *lines, last = runs.metrics(tmp_path / "run")
    scores = [line["val_accuracy"] for line in lines]
    assert len(lines) == result["epochs"] < 30 and not any("test_accuracy" in line for line in lines)
    assert scores.index(max(scores)) == len(scores) - 3
    assert judged == ["val"] * len(lines) + ["test"] and last["kind"] == "test"
    test = runs.evaluate(tmp_path / "run")
    assert test == loop.Score(result["accuracy"], result["loss"], 355)
    assert (test.accuracy, test.loss) == (last["test_accuracy"], last["test_loss"])
    data = datasets.load(config)
    assert EVALUATE(runs.load_run(tmp_path / "run")[0], data, config, "val").accuracy == max(scores) != test.accuracy
    assert train(tmp_path / "run", config, resume=True) | {"losses": []} == result | {"losses": []}
    assert runs.metrics(tmp_path / "run") == [*lines, last]


EVALUATE = loop.evaluate


def test_a_run_with_patience_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = Config(epochs=4, batch_size=400, patience=3)
    whole = train(tmp_path / "whole", config)
    for step in (2, 4):
        assert train(tmp_path / "run", config, StopAt(step), resume=step > 2)["accuracy"] is None
    assert train(tmp_path / "run", config, resume=True)["accuracy"] == whole["accuracy"]
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole")
    same_but_for_time(tmp_path / "run", tmp_path / "whole")


@pytest.mark.skipif(os.name != "posix", reason="file sizes can only be limited on Unix")
def test_a_full_disk_ends_a_run_in_one_line_and_the_checkpoint_before_goes_on(tmp_path: Path) -> None:
    import resource

    config = dataclasses.replace(SHORT, steps=6)
    train(tmp_path / "whole", config)
    train(tmp_path / "run", config, StopAt(2))
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))  # more than the model, less than a checkpoint
    try:
        with pytest.raises(UserError, match=r"^cannot write .*checkpoint.safetensors: [^\n]*; the one saved before is"):
            train(tmp_path / "run", config, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before["checkpoint.safetensors"]
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == sorted(before)
    train(tmp_path / "run", config, resume=True)
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole")


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    train(tmp_path / "stopped", SHORT, StopAt(2))
    return tmp_path / "stopped"


def other_checkpoint(path: Path) -> None:
    train(path.with_name("other"), dataclasses.replace(SHORT, data=f"npz:{images(path.parent)}"))
    (path / "checkpoint.safetensors").write_bytes((path.with_name("other") / "checkpoint.safetensors").read_bytes())


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda path: (path / "checkpoint.safetensors").unlink(),
        "cannot read .*checkpoint.safetensors: No such",
    ),
    "cut": (rewrite("checkpoint.safetensors", lambda data: data[:-1]), "checkpoint.safetensors is damaged"),
    "a bit flipped": (
        rewrite("checkpoint.safetensors", lambda data: data[:-99] + bytes([data[-99] ^ 4]) + data[-98:]),
        "checkpoint.safetensors is damaged: its checksum is wrong",
    ),
    "a model": (
        lambda path: (path / "model.safetensors").replace(path / "checkpoint.safetensors"),
        "checkpoint.safetensors is damaged: it is no checkpoint",
    ),
    "a pickle": (
        rewrite("checkpoint.safetensors", lambda data: b"cos\nsystem\n(S'touch pwned'\ntR."),
        "checkpoint.safetensors is damaged",
    ),
    "another network's": (other_checkpoint, r"is another network's: expected fc.bias of shape \[10\], but got \[4\]"),
    "other data": (settings(images=1441), "digits has changed: images was 1441, and is 1442"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_checkpoint_is_told_in_one_line_and_executes_nothing(stopped: Path, case: str) -> None:
    damage_it, message = BROKEN[case]
    damage_it(stopped)
    with pytest.raises(UserError, match=message) as caught:
        train(stopped, SHORT, resume=True)
    assert "\n" not in str(caught.value)


# ---- several processes ----------------------------------------------------------------------------------------------


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


# `python -m gpuconv`, which says at the end which threads of a process group are still there.
ENTRY = """
import atexit, pathlib
tasks = pathlib.Path("/proc/self/task")
left = lambda: [name for task in tasks.iterdir() if "gloo" in (name := (task / "comm").read_text().strip())]
atexit.register(lambda: print("threads left:", left()))
from gpuconv.__main__ import main
main()
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are listed in Linux's /proc")
def test_two_processes_train_as_one(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    config = Config(
        data=f"npz:{images(tmp_path)}", model="tutorial", dtype="float64", steps=20, epochs=2, batch_size=101, shift=1,
        flip=True, cutout=2, ema=0.8, label_smoothing=0.1,
    )  # fmt: skip
    train(tmp_path / "one", config)
    environment = clean_environment | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    (tmp_path / "entry.py").write_text(ENTRY)
    arguments = [tmp_path / "entry.py", *command(tmp_path / "two", config)[3:]]
    done = subprocess.run([*TORCHRUN, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("threads left: []\n") == 2, done.stdout  # one that is left may abort its process
    assert done.stdout.count("held-out images") == 1  # one process speaks
    one, two = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        assert (two[name] - value).norm() <= 1e-9 * value.norm(), name
    epochs = [[line for line in runs.metrics(tmp_path / name)] for name in ("one", "two")]
    for a, b in zip(*epochs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-9) and a["test_accuracy"] == b["test_accuracy"]
    with pytest.raises(UserError, match=r"checkpoint.safetensors is of 2 processes, but there are 1"):
        train(tmp_path / "two", config, resume=True)


@pytest.mark.full
@pytest.mark.skipif(os.name != "posix", reason="torchrun is tried on Unix")
def test_two_processes_that_were_stopped_go_on_to_the_same_bits(
    tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    environment = clean_environment | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    config = Config(data=f"npz:{images(tmp_path)}", model="tutorial", epochs=3, batch_size=32)
    subprocess.run([*TORCHRUN, *command(tmp_path / "whole", config)[1:]], env=environment, check=True)
    process = subprocess.Popen(
        [*TORCHRUN, *command(tmp_path / "run", config)[1:]], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIG" in process.communicate(timeout=60)[0]
    resume = command(tmp_path / "run", config, "--resume", tmp_path / "run")[1:]
    subprocess.run([*TORCHRUN, *resume], env=environment, check=True)
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole")


# ---- afterwards -----------------------------------------------------------------------------------------------------


def test_predict_names_the_digit_on_a_picture_of_any_size(finished: Path, tmp_path: Path) -> None:
    data = datasets.load(Config())
    files = []
    for k in range(20):
        picture = Image.fromarray((data.test_images[k, 0].numpy() * 15.9).astype(np.uint8))
        files.append(tmp_path / f"{k}.png")
        picture.resize((8, 8) if k else (24, 24)).convert("RGB").save(files[-1])
    found = runs.predict(finished, files)
    right = sum(
        next(iter(shares)) == str(label) for shares, label in zip(found, data.test_labels.tolist(), strict=False)
    )
    assert right >= 17
    for shares in found:
        assert len(shares) == 10 and sum(shares.values()) == pytest.approx(1)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
    with pytest.raises(UserError, match=r"cannot read the image .*no\.png: No such file"):
        runs.predict(finished, [tmp_path / "no.png"])
    (tmp_path / "deeper").mkdir()
    files[3].rename(tmp_path / "deeper" / "3.png")
    (tmp_path / "deeper" / "broken.png").write_bytes(files[4].read_bytes()[:60])
    (tmp_path / "notes.txt").write_text("hello")
    said: list[str] = []
    again = dict(runs.iter_predictions(finished, [tmp_path], said.append))
    assert again.keys() == {*files[:3], *files[4:], tmp_path / "deeper" / "3.png"}
    assert all(shares == pytest.approx(found[int(file.stem)]) for file, shares in again.items())
    assert said == [
        f"left out 1 file without an image: {tmp_path}/notes.txt",
        f"left out 1 broken images: {tmp_path}/deeper/broken.png",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no images"):
        runs.predict(finished, [tmp_path / "empty"])


@pytest.mark.parametrize("format", exports.FORMATS)
def test_an_export_has_standard_convolutions_and_agrees(finished: Path, tmp_path: Path, format: str) -> None:
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed")
    out = tmp_path / f"net.{format}"
    assert "PyTorch's own" in exports.export(finished, format, out)
    assert out.stat().st_size > 100_000 and list(tmp_path.iterdir()) == [out]
    assert about(out) == {"classes": list("0123456789"), "image_shape": [1, 8, 8], "model": "small"}


def about(file: Path) -> dict[str, object]:
    """What an exported file says of itself, read as anybody would."""
    if file.suffix == ".onnx":
        import onnxruntime

        found = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
        return {name: value if name == "model" else json.loads(value) for name, value in found.items()}
    if file.suffix == ".pt2":
        torch.export.load(file, extra_files=(extra := {"gpuconv.json": ""}))
        return json.loads(extra["gpuconv.json"])
    with safetensors.safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["gpuconv"])["about"]


def test_an_export_that_cannot_be_written_is_told_before_anything_is_computed(finished: Path, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "file" / "net.onnx"):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"cannot write to .*(Is a directory|Not a directory)"):
            exports.export(tmp_path / "no-run", "onnx", path)


def test_an_export_that_does_not_agree_is_not_kept(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(network: torch.nn.Module, *_: object) -> Callable[[torch.Tensor], torch.Tensor]:
        _[1].write_bytes(b"x")
        return lambda images: network(images) * (1 + 1e-5)

    monkeypatch.setitem(exports.FORMATS, "pt2", wrong)
    with pytest.raises(UserError, match=r"pt2 was not written: its outputs are off by \S+, PyTorch's by "):
        exports.export(finished, "pt2", tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_what_metrics_get(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path / "run", SHORT, TensorBoardWriter(tmp_path / "run" / "tensorboard"), log_every=1)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = [line for line in runs.metrics(tmp_path / "run") if line["kind"] == "step"]
    assert [(e.step, e.value) for e in events.Scalars("step/loss")] == [
        (line["step"], pytest.approx(line["loss"])) for line in lines
    ]


def test_broken_images_that_were_left_out_are_named(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for k in range(6):
            Image.new("RGB", (8, 8), (40 * k, 0, 0)).save(tmp_path / "data" / label / f"{k}.png")
    (tmp_path / "data" / "a" / "x.png").write_bytes(b"hello")
    told = io.StringIO()
    train(
        tmp_path / "run",
        Config(data=f"folder:{tmp_path / 'data'}", steps=1, skip_broken=True),
        ProgressLines(told, "title"),
    )
    assert told.getvalue().splitlines()[:2] == ["title", f"left out 1 broken images: {tmp_path}/data/a/x.png"]


def test_the_curves_are_a_picture(finished: Path) -> None:
    with Image.open(finished / "curves.png") as picture:
        assert picture.format == "PNG" and picture.size == (720, 270)


@pytest.mark.parametrize("part", ["test", "val"])
def test_one_epoch_is_seen_in_the_curves(part: str) -> None:
    line = {"kind": "epoch", "epoch": 1, "loss": 1.0, "accuracy": 0.4, f"{part}_loss": 0.8, f"{part}_accuracy": 0.6}
    draw_curves([line], png := io.BytesIO())
    picture = np.asarray(Image.open(png).convert("RGB")).astype(int)
    for inside in (slice(50, 340), slice(410, 580)):  # the axes of the loss; of the accuracy, left of the legend
        for colour in ((31, 119, 180), (0, 0, 0)):
            assert (abs(picture[30:224, inside] - colour).sum(2) < 60).sum() > 10  # pixels of a marker
    draw_curves([line | {"loss": None, f"{part}_loss": None}], io.BytesIO())
