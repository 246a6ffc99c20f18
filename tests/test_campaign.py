"""The campaign runs as a whole, and in a time and on runs that are made up."""

import json
import signal

import pytest

from benchmarks import campaign
from tests.conftest import SMALL_ONE_LENGTH
from tests.written_runs import RESULT


def test_the_campaign_gives_whole_results_and_goes_on(tmp_path, capsys, cache_home):
    small = [x for x in SMALL_ONE_LENGTH[2:] if "num_train_steps" not in x and "every" not in x]
    arguments = [f"--out={tmp_path}", "--tasks", "listops", "image", "--scale=0.001", *small]
    assert campaign.main([*arguments, "--config.task.source=synthetic", "--minutes=10"]) == 0
    summary = json.loads((tmp_path / "results/campaign.json").read_text())
    assert list(summary["runs"].values()) == ["finished"] * 2
    assert list(summary["left_out"]) == ["image"]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["finished"] == 2 and {"test_accuracy", "run"} <= set(lines[-2])
    results = [json.loads(x.read_text()) for x in tmp_path.glob("results/*/result.json")]
    assert {x["config"]["model"]["attention"] for x in results} == {"nystrom", "softmax"}
    # Again: nothing is left to do, and with no time left nothing is begun.
    assert campaign.main([*arguments, "--config.task.source=synthetic", "--minutes=0.01"]) == 0
    assert "finished" in capsys.readouterr().out


class Machine:
    """A clock, and the run that its time goes to: for the campaign's `time`, and its `start`."""

    def __init__(self, monkeypatch, seconds):
        self.clock, self.seconds, self.begun, self.job = 0.0, seconds, [], None
        monkeypatch.setattr(campaign, "time", self)
        monkeypatch.setattr(campaign, "start", self.start)
        monkeypatch.setattr(campaign, "stop", self.stop)

    def monotonic(self):
        return self.clock

    def sleep(self, seconds):
        self.clock += seconds
        self.job and self.job.work()

    def start(self, run):
        self.begun.append(run.label)
        self.job = MachineJob(self, run)
        return self.job

    def stop(self, jobs):
        assert jobs == [self.job]
        self.job.ended = True


class MachineJob:
    """A run of steps of known seconds: 20 s to compile, and 40 s for each evaluation."""

    def __init__(self, machine, run):
        self.machine, self.run, self.ended, self.process = machine, run, False, self
        self.path = run.workdir / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.step, self.next = campaign.steps_done(run), machine.clock + 20

    def work(self):
        seconds = self.machine.seconds[self.run.label]
        while self.machine.clock >= self.next and not self.ended:
            self.step += 1
            self.next += seconds + 40 * (self.step % 30 == 0)
            if self.step % 10 == 0:
                rate = self.run.config.batch_size / seconds
                report = {"step": self.step, "split": "train", "examples_per_second": rate}
                with self.path.open("a") as file:
                    file.write(json.dumps(report) + "\n")
            if self.step == self.run.config.num_train_steps:
                (self.run.workdir / "result.json").write_text(json.dumps(RESULT))
                self.ended = True

    def poll(self):
        return 0 if self.ended else None

    def wait(self):
        assert self.ended


@pytest.mark.parametrize(
    ("seconds", "minutes", "begun", "finished"),
    [
        # One that would end easily, however long it is silent; then one that gets the rest.
        ([1, 9], 5, [0, 1], [0]),
        # Those that end go before one that doesn't, which has what remains.
        ([9, 1, 1], 12, [0, 1, 2, 0], [1, 2]),
        # Also where the last is the one that doesn't.
        ([4.5, 1, 9], 8, [0, 1, 2, 0], [1]),
    ],
)
def test_a_campaign_has_whole_results_first(
    seconds, minutes, begun, finished, tmp_path, monkeypatch, capsys
):
    seeds = ",".join(str(seed) for seed in range(len(seconds)))
    fields = [f"--config.seed={seeds}", "--config.num_train_steps=100", "--config.log_every=10"]
    runs = campaign.make_runs(["--config=configs/lra_listops.py", *fields], tmp_path)
    machine = Machine(monkeypatch, {f"seed={i}": each for i, each in enumerate(seconds)})
    stop = campaign.StopSignals()
    assert campaign.Campaign(runs, 60 * minutes, 60.0, stop).run() == {}
    assert machine.begun == [f"seed={i}" for i in begun]
    assert [i for i, run in enumerate(runs) if campaign.is_finished(run)] == finished
    assert machine.clock <= 60 * minutes - campaign.SAVE_SECONDS + 1


def test_a_campaign_that_breaks_leaves_no_run_behind(tmp_path, monkeypatch):
    runs = campaign.make_runs(["--config=configs/lra_listops.py", "--config.seed=0,1"], tmp_path)
    machine = Machine(monkeypatch, {"seed=0": 9, "seed=1": 9})

    def closed(**_):
        raise BrokenPipeError

    monkeypatch.setattr(campaign, "say", closed)
    with pytest.raises(BrokenPipeError):
        campaign.Campaign(runs, 600, 60.0, campaign.StopSignals()).run()
    assert machine.job.ended


def test_a_campaign_says_what_it_goes_without(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(campaign, "ask_devices", lambda: ("cpu", 1))
    monkeypatch.setattr(campaign.Campaign, "run", lambda self: {})
    with pytest.raises(SystemExit):
        campaign.main([f"--out={tmp_path}", f"--data_dir={tmp_path / 'nix'}"])
    assert "nix: no such folder" in capsys.readouterr().err
    arguments = [f"--out={tmp_path / 'out'}", f"--data_dir={tmp_path}", "--tasks", "listops"]
    assert campaign.main(arguments) == 0
    summary = json.loads((tmp_path / "out/results/campaign.json").read_text())
    assert str(tmp_path) in summary["not_from_data_dir"]["listops"]
    assert "not_from_data_dir" in capsys.readouterr().out
    assert campaign.main([*arguments, "--config.batch_size=0"]) == 1  # nothing is left to run
    assert "expected 1 or more" in capsys.readouterr().out


def test_a_campaign_without_a_place_or_devices_ends_in_a_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    arguments = [f"--out={tmp_path / 'file'}", "--tasks", "listops"]
    monkeypatch.setattr(campaign, "ask_devices", lambda: ("cpu", 1))
    assert campaign.main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: [Errno")

    def none_there():
        raise RuntimeError("JAX finds no devices")

    monkeypatch.setattr(campaign, "ask_devices", none_there)
    assert campaign.main(arguments) == 1
    assert capsys.readouterr().err == "error: JAX finds no devices\n"


@pytest.mark.parametrize(
    ("ending", "status"), [("", 0), ("fails", 1), ("SIGINT", 130), ("SIGTERM", 143)]
)
def test_a_campaign_exits_as_its_runs_and_signals_have_it(ending, status, tmp_path, monkeypatch):
    def run(self):
        for each in self.runs:
            each.workdir.mkdir(parents=True)
            (each.workdir / "metrics.jsonl").write_text('{"step": 3}\n')
        if ending.startswith("SIG"):
            signal.raise_signal(signal.Signals[ending])
        return {self.runs[0].workdir.name: "its last words"} if ending == "fails" else {}

    monkeypatch.setattr(campaign, "ask_devices", lambda: ("cpu", 1))
    monkeypatch.setattr(campaign.Campaign, "run", run)
    assert campaign.main([f"--out={tmp_path}", "--tasks", "listops"]) == status
    states = json.loads((tmp_path / "results/campaign.json").read_text())["runs"]
    assert ("its last words" in states.values()) == (ending == "fails")
    assert all((tmp_path / f"results/{name}/metrics.jsonl").exists() for name in states)


def test_a_campaign_ends_at_a_signal_and_tries_no_run_again_that_failed(tmp_path, monkeypatch):
    runs = campaign.make_runs(["--config=configs/lra_listops.py", "--config.seed=0,1"], tmp_path)
    with campaign.StopSignals() as signals:
        whole = campaign.Campaign(runs, float("inf"), 60.0, signals)
        whole.failed = {runs[0].workdir.name: "its last words"}
        assert [whole.can_go_on(run) for run in runs] == [False, True]
        signal.raise_signal(signal.SIGTERM)
        assert whole.over() and not whole.can_go_on(runs[1])
