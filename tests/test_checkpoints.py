"""Checkpoints, damaged in every way: what is restored is what was saved, or the error says why."""

import contextlib
import json
import resource
import shutil
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiment import checkpoints as module
from experiment.checkpoints import CheckpointError, Checkpoints
from experiment.load import best_step
from experiment.quiet import orbax_quiet
from experiment.workdir import WorkdirError
from tests.written_runs import RESULT

STEPS = {4: 0.5, 6: 0.2, 8: 0.4, 12: 0.3}  # accuracies; what is kept is 4, the best, 8 and 12
PROGRESS = {"fingerprint": "f", "seconds": 1.5, "since_report": {"loss": (0.1, 8.0)}}


def state_of(step):
    """A small state with every type there is in a real one, a number of its own per step."""
    return {
        "params": {
            "kernel": jax.random.normal(jax.random.key(step), (30, 40)),
            "half": jnp.full(5, step, jnp.bfloat16),
        },
        "opt_state": (jnp.zeros(3), jnp.int32(step)),
        "step": jnp.int32(step),
    }


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and bool((x == y).all()) for x, y in leaves)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    directory = tmp_path_factory.mktemp("intact") / "checkpoints"
    checkpoints = Checkpoints(directory)
    for step, accuracy in STEPS.items():
        checkpoints.save(step, state_of(step), PROGRESS, accuracy)
    checkpoints.close()
    return directory


@pytest.fixture
def copy(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "checkpoints")


def resume(directory):
    """(step, lines said) if all that can be restored is as saved; (None, message) for an error."""
    said = []
    checkpoints = Checkpoints(directory, say=said.append)
    try:
        found = checkpoints.resume(state_of(0))
    except CheckpointError as error:
        assert "\n" not in str(error) and str(directory) in str(error)
        assert "intact cop" in str(error) and "delete" in str(error)
        return None, str(error)
    step, state, progress = found
    assert same(state, state_of(step))
    assert progress["since_report"] == {"loss": [0.1, 8.0]} and progress["seconds"] == 1.5
    # What the result would be scored with.
    assert checkpoints.best() == (4, 0.5)
    assert same(checkpoints.restore(4, state_of(0))[0], state_of(4))
    # A step that was there, whole or broken, is made again and is then the latest.
    if step != 12:
        checkpoints.save(12, state_of(12), PROGRESS, STEPS[12])
        checkpoints.close()
        assert Checkpoints(directory).resume(state_of(0))[0] == 12
    return step, said


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path):
    assert Checkpoints(tmp_path / "none").latest_step() is None
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file can't be read \(.*Not a directory"):
        Checkpoints(tmp_path / "file")


def test_the_latest_two_and_the_best_are_kept_and_restored(copy):
    assert sorted(path.name for path in copy.iterdir()) == ["12", "4", "8"]
    assert resume(copy) == (12, [])


def test_a_damaged_latest_step_that_is_the_best_leaves_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, accuracy in {4: 0.3, 8: 0.2, 12: 0.25, 16: 0.4}.items():
        checkpoints.save(step, state_of(step), PROGRESS, accuracy)
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["12", "16", "4"]
    (tmp_path / "16" / "record" / "metadata").write_text("{")
    checkpoints = Checkpoints(tmp_path, say=lambda line: None)
    assert checkpoints.resume(state_of(0))[0] == 12
    assert checkpoints.best() == (4, 0.3)


def test_an_abstract_state_with_shardings_will_do(copy):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state_of(0)
    )
    assert same(Checkpoints(copy).resume(like)[1], state_of(12))


@pytest.mark.parametrize("seed", range(25))
def test_a_flipped_bit(seed, copy):
    rng = np.random.default_rng(seed)
    # By size, as it happens on a disk: mostly in the numbers.
    files = files_of(copy / "12" if seed % 2 else copy)
    sizes = np.array([path.stat().st_size for path in files])
    path = files[rng.choice(len(files), p=sizes / sizes.sum())]
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    expect(resume(copy), copy, path)


@pytest.mark.parametrize("seed", range(25))
def test_a_truncated_file(seed, copy):
    rng = np.random.default_rng(100 + seed)
    files = files_of(copy / "12" if seed % 2 else copy)
    path = files[rng.integers(len(files))]
    path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])
    expect(resume(copy), copy, path)


def test_every_half_deleted_state_of_a_step(intact, tmp_path):
    for step in ("4", "8", "12"):
        order = files_of(intact / step)
        np.random.default_rng(int(step)).shuffle(order)
        for count in range(1, len(order) + 1):
            directory = shutil.copytree(intact, tmp_path / f"{step}-{count}")
            for path in order[:count]:
                (directory / path.relative_to(intact)).unlink()
            expect(resume(directory), directory, directory / step)
            shutil.rmtree(directory)


def expect(outcome, directory, path):
    """Damage to the latest is survived, damage to the best is too or else named."""
    step, said = outcome
    damaged = path.relative_to(directory).parts[0]
    if damaged == "12":
        assert step in (8, 12)
        assert len(said) == (step == 8)  # one line, if it mattered
        if said:
            assert str(directory / "12") in said[0] and "broken-12" in said[0]
            assert "\n" not in said[0] and (directory / "broken-12").is_dir()
    elif damaged == "8":  # neither: named at most, and out of the way
        assert step == 12 and len(said) <= 1
        assert all(str(directory / "8") in line and "broken-8" in line for line in said)
    else:
        assert (step, said) == (12, []) or (str(directory / "4") in said and "best" in said)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_an_empty_folder_of_a_later_step_does_not_count(copy, make):
    make(copy / "16")
    step, (line,) = resume(copy)
    assert step == 12 and "16" in line


def test_what_is_set_aside_replaces_nothing(copy):
    for name in ("16", "broken-16", "broken-16-1", "020"):  # the last is no step's
        (copy / name).mkdir()
    step, (line,) = resume(copy)
    assert step == 12 and "renamed to broken-16-2" in line
    names = {"4", "8", "12", "020", "broken-16", "broken-16-1", "broken-16-2"}
    assert {path.name for path in copy.iterdir()} == names


def test_an_empty_folder_alone_is_a_new_run(tmp_path):
    (tmp_path / "c" / "5" / "state").mkdir(parents=True)
    said = []
    checkpoints = Checkpoints(tmp_path / "c", say=said.append)
    assert checkpoints.resume(state_of(0)) is None and checkpoints.latest_step() is None
    checkpoints.save(5, state_of(5), PROGRESS, 0.1)
    checkpoints.close()
    assert Checkpoints(tmp_path / "c").resume(state_of(0))[0] == 5
    assert len(said) == 1


def test_where_no_step_is_whole_nothing_is_touched_and_the_error_says_so_each_time(copy):
    for step in ("4", "8", "12"):
        (copy / step / "record" / "metadata").write_text("{")
    before = files_of(copy)
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"no step there is whole \(4: .*; 8: .*; 12: .*delete"
        ):
            Checkpoints(copy).resume(state_of(0))
        assert files_of(copy) == before


def test_a_best_step_that_breaks_during_the_run_is_an_error_at_its_end(copy):
    checkpoints = Checkpoints(copy)
    assert checkpoints.resume(state_of(0))[0] == 12
    shutil.rmtree(copy / "4" / "state")
    with pytest.raises(CheckpointError, match=r"/4: .*best on validation.*intact copy.*delete"):
        checkpoints.restore(checkpoints.best()[0], state_of(0))


def test_a_copy_under_another_number_is_not_that_step(copy):
    shutil.copytree(copy / "4", copy / "16")
    step, (line,) = resume(copy)
    assert step == 12 and "step 4" in line


def test_a_state_of_another_structure_is_no_damage(copy):
    other = state_of(0) | {"more": jnp.zeros(2)}
    with pytest.raises(CheckpointError, match=r"/12: saved by a program with other parameters"):
        Checkpoints(copy).resume(other)
    assert sorted(path.name for path in copy.iterdir()) == ["12", "4", "8"]


def test_checkpoints_of_the_version_without_digests_are_resumed(tmp_path):
    manager = ocp.CheckpointManager(
        tmp_path, options=ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["accuracy"])
    )
    for step in (4, 12):
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state_of(step)), progress=ocp.args.JsonSave(PROGRESS)
            ),
            metrics={"accuracy": STEPS[step], "step": step},
        )
    manager.wait_until_finished()
    manager.close()
    assert resume(tmp_path) == (12, [])
    checkpoints = Checkpoints(tmp_path)
    assert best_step(checkpoints) == checkpoints.best()[0] == 4
    checkpoints.save(16, state_of(16), PROGRESS, 0.45)
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["12", "16", "4"]
    (tmp_path / "16" / "record" / "metadata").write_text("{")
    assert Checkpoints(tmp_path).resume(state_of(0))[0] == 12


def test_a_disk_that_takes_no_more_is_named_once_and_keeps_what_was_saved(copy, capfd):
    checkpoints, closed = Checkpoints(copy), []
    checkpoints.resume(state_of(0))
    close = checkpoints.manager.close
    checkpoints.manager.close = lambda: closed.append(close())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(CheckpointError, match=r"can't be written .*Those before are kept; make"):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))  # of any file, in bytes
            checkpoints.save(16, state_of(16), PROGRESS, 0.9)
            checkpoints.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Traceback" not in capfd.readouterr().err
    assert closed  # so no thread of its is left
    assert resume(copy) == (12, [])


def test_a_checkpoint_that_can_not_be_written_is_known_before_the_next(copy):
    checkpoints = Checkpoints(copy)
    checkpoints.check()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
        with pytest.raises(CheckpointError, match="can't be written"):
            checkpoints.save(16, state_of(16), PROGRESS, 0.9)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                checkpoints.check()
                time.sleep(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        with contextlib.suppress(CheckpointError):  # may be told again
            checkpoints.close()


def test_a_folder_that_can_not_be_written_is_refused_at_once(copy, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"link: a file or a link to nothing"):
        Checkpoints(tmp_path / "link").resume(state_of(0))
    checkpoints = Checkpoints(copy)

    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module.tempfile, "TemporaryDirectory", refuse)
    for write in (lambda: checkpoints.resume(state_of(0)), lambda: checkpoints.save(9, {}, {})):
        with pytest.raises(CheckpointError, match=r"can't write there .*Read-only file system"):
            write()
    assert "manager" not in checkpoints.__dict__


def test_a_finished_run_is_never_read_from_another_step_than_it_was_scored_at(copy):
    result = copy.parent / "result.json"
    result.write_text(json.dumps(RESULT | {"best_step": 12}))
    assert best_step(Checkpoints(copy)) == 4  # what the records say, where both are there
    (copy / "12" / "record" / "metadata").write_text("[]")
    with pytest.raises(WorkdirError, match=r"checkpoints/12: the run's best .*can't be read"):
        best_step(Checkpoints(copy))
    shutil.rmtree(copy / "12")
    with pytest.raises(WorkdirError, match=r"checkpoints/12: the run's best .*is gone; put"):
        best_step(Checkpoints(copy))
    result.unlink()
    assert best_step(Checkpoints(copy)) == 4


def test_what_was_never_closed_may_be_collected_in_a_thread_of_orbaxs():
    raised = []

    class Thread(threading.Thread):
        __module__ = "orbax.checkpoint"

        def run(self):
            try:
                with orbax_quiet():
                    pass
            except RuntimeError as error:  # of a thread that waits for itself
                raised.append(error)

    thread = Thread()
    thread.start()
    thread.join()
    assert not raised


def test_digests_tell_names_types_shapes_and_bits_apart():
    x = np.arange(6, dtype=np.float32)
    states = [{"a": x}, {"b": x}, {"a": x.view(np.int32)}, {"a": x.reshape(2, 3)}, {"a": -x}]
    digests = [module.state_digest(state) for state in states]
    assert len(set(digests)) == len(states)
    assert module.state_digest({"a": jnp.asarray(x)}) == digests[0]
    assert len({module.layout_digest(state) for state in states}) == len(states) - 1


def test_of_equals_the_earliest_is_best_and_a_step_is_saved_once(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state_of(step), {}, 0.5)
        checkpoints.save(4, state_of(5), {}, 0.9)
        assert checkpoints.best() == (1, 0.5)
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as again:
        assert again.best() == (1, 0.5)
