"""The command `python -m benchmarks`: every suite in quick, its results against the schema, merging and stopping."""

from __future__ import annotations

import csv

import pytest
import torch
from benchmark_runs import run, unboxed

from benchmarks import comparison, dissection, memory, panel, side_captum, suites, throughput
from benchmarks.agreement import DisagreementError
from benchmarks.options import Options, UnsuitableError
from benchmarks.sides import METHODS, Side

pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' own


@pytest.fixture(autouse=True)
def quick_best(monkeypatch):
    """A best mode that compiles nothing."""
    monkeypatch.setattr(comparison, "BEST", {"memory_format": "channels_last"})


def test_throughput(tmp_path):
    first, _ = run(tmp_path, "throughput", "--models", "test_resnet", "--modes", "same")
    done, found = run(tmp_path, "throughput", "--models", "test_vit")
    assert first.exit_code == done.exit_code == 0, first.output + done.output
    where, rows = found["throughput"]["environment"], found["throughput"]["rows"]
    assert where["device"] == "cpu" and where["cores"] >= 1 and "tf32" not in where
    assert (tmp_path / f"throughput_cpu_float32_torch{torch.__version__.split('+')[0]}_quick.json").exists()
    of = {(r["model"], r["case"], r["mode"], r["side"]): r for r in rows}
    assert len(of) == len(rows)
    for method in METHODS:
        bound = "forward pass" if method == "grad_cam" else "forward and backward pass"
        best = {side for m, c, mode, side in of if (m, c, mode) == ("test_vit", method, "best")}
        assert best == {"captum, autocast", "captum, float32", bound}
        assert of["test_vit", method, "same", bound]["agrees"] is None
        for model in ("test_resnet", "test_vit"):
            same = of[model, method, "same", "captum"]
            assert same["ours_per_second"] == pytest.approx(2 / same["ours_median"])
            assert same["theirs_per_second"] == pytest.approx(2 / same["theirs_median"])
        captured, same = (of["test_vit", method, mode, "captum"] for mode in ("captured", "same"))
        assert captured["options"] == {"compile": True} and captured["why"] == same["why"]
        assert of["test_vit", method, "captured", bound]["options"] == {"compile": True}
        close = of["test_vit", method, "best", "captum, float32"]["closeness"]
        assert min(close.values()) > 0.9 and ("rank_correlation" in close) == (method == "grad_cam")
        has_map = method not in ("grad_cam", "guided_grad_cam")  # Captum cannot resize what it has for tokens
        assert ("captum_raw_correlation" in close) == has_map
    assert all(of["test_resnet", method, "same", "captum"]["agrees"] for method in METHODS)
    differ = {method: of["test_vit", method, "same", "captum"]["why"] for method in METHODS}
    assert differ == {
        "grad_cam": "the layer's layout is tokens",
        "guided_backprop": GELU,
        "deconvnet": GELU,
        "guided_grad_cam": f"{GELU}; the layer's layout is tokens",
        "grad_x_image": None,
    }
    for line in ("test_vit", "against captum, autocast", "differs: the layer's layout is tokens"):
        assert line in done.output
    with next(tmp_path.glob("*.csv")).open() as file:
        table = list(csv.DictReader(file))
    assert [r["side"] for r in table] == [r["side"] for r in rows]
    assert float(table[0]["median"]) == rows[0]["median"]


GELU = "the model calls gelu outside nn.ReLU modules"


@pytest.mark.parametrize(
    ("package", "method", "library"),
    [
        ("pytorch_grad_cam", "grad_cam", "pytorch-grad-cam"),
        ("pytorch_grad_cam", "guided_backprop", "pytorch-grad-cam"),
        ("torchcam", "grad_cam", "torchcam"),
        ("zennit", "guided_backprop", "zennit"),
        ("zennit", "grad_x_image", "zennit"),
    ],
)
def test_peers_agree_and_leave_the_model_as_it_was(package, method, library):
    pytest.importorskip(package)
    side = next(side for side in throughput.PEERS[method] if side.library == library)
    for name in ("test_resnet", "test_vit"):
        subject = throughput.build(name, "cpu", torch.float32, 0).with_images(3, 0)
        before = [type(module) for module in subject.model.modules()]
        row = throughput.same_row(subject, method, side, Options(quick=True))
        explained = name == "test_vit" and method == "guided_backprop"
        assert row["agrees"] is not explained and (row["why"] is not None) == explained
        assert before == [type(module) for module in subject.model.modules()]
        assert all(p.grad is None for p in subject.model.parameters()) and not subject.x.requires_grad
        assert not any(module._forward_hooks for module in subject.model.modules())


def test_peers_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "find_spec", lambda name: None)
    _, found = run(tmp_path, "throughput", "--models", "test_resnet", "--modes", "same")
    rows = [r for r in found["throughput"]["rows"] if r["status"] != "measured"]
    assert {(r["side"], r["why"]) for r in rows} == {
        ("pytorch-grad-cam", "pip install grad-cam"),
        ("torchcam", "pip install torchcam"),
        ("zennit", "pip install zennit"),
    }
    assert "median" not in rows[0]
    subject = throughput.build("test_resnet", "cpu", torch.float32, 0)
    alone = throughput.method_rows(subject, "grad_cam", Options(quick=True, peers=False, modes=("same",)), {})
    assert [r["side"] for r in alone] == ["captum", "forward pass"]


def test_panel(tmp_path):
    done, found = run(tmp_path, "panel", "--models", "test_resnet", "--batch-size", "1", "--modes", "same")
    assert done.exit_code == 0, done.output
    rows = found["panel"]["rows"]
    assert [(r["batch_size"], r["mode"], r["side"], r["agrees"]) for r in rows] == [(1, "same", "captum", True)] * 3
    assert [r["case"] for r in rows] == [
        "six methods, one class",
        "six methods, five classes",
        "grad_cam, five classes",
    ]


def test_panel_in_the_best_mode():
    subject = panel.build("test_vit", "cpu", torch.float32, 0)
    options, given = Options(quick=True), {"memory_format": "channels_last"}
    for side in ("captum, autocast", "captum, float32"):
        asked = comparison.Comparison("test_vit", 1, panel.FIVE_CAMS, "best", side, given)
        row = panel.row(subject, asked, options, lambda: {"agrees": False, "why": "w"})
        assert (row["side"], row["options"], row["why"], row["correlation"]) == (side, given, "w", None)
    assert panel.checked(subject, panel.FIVE_CAMS)["why"] == "the layer's layout is tokens"


def test_memory(tmp_path):
    done, found = run(tmp_path, "memory", "--modes", "same")
    assert done.exit_code == 0, done.output
    (row,) = found["memory"]["rows"]
    assert (row["case"], row["side"], row["goal"]) == ("grad_cam", "captum", 2.5)
    assert row["median"] == pytest.approx(row["theirs_median"] / row["ours_median"])


def test_memory_of_each_side(tmp_path, monkeypatch):
    asked = []

    def peak_alone(prepare, who, name, batch, method, chosen, options, device):
        asked.append((who, method, bool(chosen)))
        return {"ours": 0.0, "theirs": 3.0}[who]

    monkeypatch.setattr(memory, "peak_alone", peak_alone)
    _, found = run(tmp_path, "memory")
    assert asked == [(who, "grad_cam", best) for best in (False, True) for who in ("ours", "theirs")]
    assert found["memory"]["rows"][0]["median"] == pytest.approx(3.0 / memory.PAGE)
    for who in ("ours", "theirs"):
        call = memory.prepared(who, "test_resnet", 2, "grad_cam", {}, Options(quick=True))
        assert call().shape == (2, 1, 5, 5)


def test_drise_and_dissect(tmp_path):
    done, found = run(tmp_path, "drise", "dissect")
    assert done.exit_code == 0, done.output
    assert [r["case"] for r in found["drise"]["rows"]] == [
        "one target, against the bare passes",
        "five targets, against one",
    ]
    assert found["drise"]["environment"]["detector"] == "ssdlite320_mobilenet_v3_large"
    assert len(found["dissect"]["rows"]) == 7
    assert all(r["commit"] == found["dissect"]["environment"]["commit"] for r in found["dissect"]["rows"])


def test_a_difference_that_nothing_explains_stops_the_suite(tmp_path, monkeypatch):
    whole = throughput.captum

    def wrong(method):
        side = whole(method)

        def prepare(subject):
            call = side.prepare(subject)
            return lambda: -call()

        return Side("captum", prepare, side_captum.REACH) if method == "guided_backprop" else side

    monkeypatch.setattr(throughput, "captum", wrong)
    words = ("throughput", "--models", "test_resnet", "--modes", "same", "--no-peers")
    done, found = run(tmp_path, *words)
    assert isinstance(done.exception, DisagreementError)
    assert "captum on test_resnet: guided_backprop differs" in str(done.exception)
    assert [r["case"] for r in found["throughput"]["rows"]] == ["grad_cam"] * 2
    done, found = run(tmp_path, "throughput", "--models", "test_vit", *words[3:])
    assert isinstance(done.exception, DisagreementError) and "not the plain gradient" in str(done.exception)


def test_memory_that_does_not_suffice_is_a_row(tmp_path, monkeypatch):
    def no_memory(subject):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(throughput, "captum", lambda method: Side("captum", no_memory, side_captum.REACH))
    done, found = run(
        tmp_path, "throughput", "--models", "test_resnet", "--modes", "same", "--no-peers", "--batch-size", "3"
    )
    assert done.exit_code == 0, done.output
    status = [(r["side"], r["status"]) for r in found["throughput"]["rows"][:2]]
    assert status == [("captum", "out of memory"), ("forward pass", "measured")]
    assert {r["batch_size"] for r in found["throughput"]["rows"]} == {3}


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what it says where there is no GPU")
def test_a_gpu_that_is_not_there(tmp_path):
    done, found = run(tmp_path, "throughput", "--device", "cuda")
    assert done.exit_code == 2 and "no CUDA device is there" in unboxed(done)
    assert not found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--modes", "fastest"), "expected modes of same, captured, best"),
        (("--dtype", "int8"), "expected a dtype of"),
        (("--batch-size", "many"), "many"),
    ],
)
def test_errors_at_the_door(tmp_path, words, said):
    done, _ = run(tmp_path, "throughput", *words)
    assert done.exit_code == 2 and said in unboxed(done)


@pytest.mark.parametrize("suite", ["memory", "panel"])
def test_suites_without_captured_passes_say_so(tmp_path, suite):
    done, found = run(tmp_path, suite, "--modes", "captured")
    assert done.exit_code == 2 and f"{suite} has no mode captured" in unboxed(done)
    assert not found


def test_all_is_every_suite_and_options_arrive(monkeypatch, tmp_path):
    asked = []

    def run_suite(name, options, **more):
        asked.append((name, more))
        assert options == Options("cpu", "float64", ("a", "b"), (1, 8), 9, 5.0, True, tmp_path, False, ("best",))
        return name

    monkeypatch.setattr("benchmarks.__main__.run_suite", run_suite)
    given = ["--dtype", "float64", "--models", "a,b", "--batch-size", "1", "--batch-size", "8", "--pairs", "9"]
    done, _ = run(tmp_path, "all", "drise", *given, "--seconds", "5", "--no-peers", "--modes", "best")
    assert done.exit_code == 0, done.output
    assert [name for name, _ in asked] == list(suites.SUITES)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr("benchmarks.__main__.run_suite", lambda name, options, **more: name)
        done, _ = run(tmp_path, "all", "--device", "cuda")
        assert done.output.split() == [name for name in suites.SUITES if name != "dissect"]
        with pytest.raises(UnsuitableError, match="on the CPU"):
            dissection.run(Options(device="cuda"))
    assert dict(asked)["faithfulness"] == {"photos": None} and dict(asked)["growth"] == {}
