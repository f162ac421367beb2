"""What searches and corrections are judged by: all samples together, and the typical one."""

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgetl.quantize import graph
from edgetl.quantize.decibels import NO_NOISE_DB
from edgetl.quantize.fidelity import Fidelity, FloatOutput
from edgetl.runtime.onnxruntime import OnnxRuntimeRunner

sys.path.insert(0, str(Path(__file__).parent))
import graphs

POWERS = arrays.arrays(np.float64, 12, elements=st.floats(1e-6, 1e6))


def of(noise: np.ndarray, signal: np.ndarray | float = 1000.0) -> Fidelity:
    return Fidelity(signal=np.broadcast_to(np.asarray(signal, np.float64), noise.shape), noise=noise)


@given(POWERS, POWERS)
def test_both_are_in_decibels_and_no_order_of_samples_matters(signal: np.ndarray, noise: np.ndarray) -> None:
    found, turned = of(noise, signal), of(noise[::-1], signal[::-1])
    assert found.total_db == pytest.approx(10 * np.log10(signal.sum() / noise.sum()))
    least = 1e-6 * signal.mean()
    assert found.typical_db == pytest.approx(np.mean(10 * np.log10((signal + least) / (noise + least))))
    assert found.db == pytest.approx((found.total_db + found.typical_db) / 2)
    assert turned.db == pytest.approx(found.db)
    assert of(2 * noise, 2 * signal).db == pytest.approx(found.db)


@given(POWERS, POWERS)
def test_at_most_one_of_two_is_clearly_above_the_other(noise: np.ndarray, other: np.ndarray) -> None:
    assert not (of(noise).clearly_above(of(other)) and of(other).clearly_above(of(noise)))
    assert not of(noise).clearly_above(of(noise)), "nothing is gained"


def test_a_few_samples_do_not_decide_for_all() -> None:
    random = np.random.default_rng(0)
    before = random.lognormal(0, 0.3, 21)
    after = 2 * before  # twice the noise on the median sample
    before[0], after[0] = 200.0, 20.0  # and a sum that one sample takes far down
    assert of(after).total_db > of(before).total_db
    assert not of(after).clearly_above(of(before))
    assert of(before * random.uniform(0.5, 0.9, 21)).clearly_above(of(before))
    assert not of(before * 1.01).clearly_above(of(before))
    assert of(before[:2] * 0.99).clearly_above(of(before[:2])), "two are too few to test"


def test_ranges_that_a_few_far_samples_fill_lose_to_those_that_serve_all_others() -> None:
    """On photographs ranges without them gave 7 dB more to the typical sample, and 2.4 dB less in sum, which is what
    once decided; on test samples it was 1.5 dB more in sum, too."""
    random = np.random.default_rng(0)
    signal = random.lognormal(0, 0.3, 100)
    signal[:2] *= 50
    keep = 10**-1.8 * signal
    drop = 10**-2.5 * signal
    drop[:2] = 10**-1.3 * signal[:2]
    assert of(drop, signal).total_db < of(keep, signal).total_db
    assert of(drop, signal).clearly_above(of(keep, signal))


def test_far_samples_are_not_lost_for_a_little_more_on_all_others() -> None:
    """On digits 22 dB in sum stood against 8 dB for the typical sample."""
    random = np.random.default_rng(0)
    signal = random.lognormal(0, 0.3, 100)
    signal[:2] *= 1000
    keep = 10**-2.1 * signal
    drop = 10**-2.9 * signal
    drop[:2] = 10**-0.2 * signal[:2]
    assert of(drop, signal).typical_db > of(keep, signal).typical_db
    assert not of(drop, signal).clearly_above(of(keep, signal))


@pytest.mark.filterwarnings("error")
def test_samples_without_noise_without_signal_and_beyond_all_numbers() -> None:
    exact, loud, silent = np.zeros(21), np.ones(21), np.zeros(21)
    assert of(exact).total_db == NO_NOISE_DB and of(exact).typical_db == pytest.approx(60, abs=0.01)
    assert of(exact).clearly_above(of(loud)) and not of(loud).clearly_above(of(exact))
    assert np.isfinite(of(loud, silent).db) and of(exact, silent).db == NO_NOISE_DB
    beyond = np.array([np.inf, 1.0, 1.0])
    assert np.isnan(of(beyond).db)
    assert not of(beyond).clearly_above(of(np.ones(3))) and not of(np.ones(3)).clearly_above(of(beyond))


def test_a_sample_whose_output_is_nothing_does_not_outweigh_all_others() -> None:
    """As an empty mask's: a graph that answers exactly 0 there was taken for one of a tenth of the noise elsewhere."""
    signal, noise = np.full(16, 100.0), np.full(16, 0.1)
    signal[0], noise[0] = 0.0, 0.0
    better = noise / 10
    better[0] = 1e-12
    assert of(better, signal).clearly_above(of(noise, signal))


def test_the_float_graph_is_exact_and_batches_do_not_matter(tmp_path: Path) -> None:
    model = graph.prepare(graph.load(graphs.residual(tmp_path / "m.onnx")))
    images = np.random.default_rng(0).normal(size=(6, 3, 16, 16)).astype(np.float32)
    other = model.clone()
    name, value = next((name, v) for name, v in other.graph.initializers.items() if (v.shape or ())[1:])
    weights = graph.array_of(value)
    assert weights is not None
    other.graph.initializers[name].const_value = ir.tensor(weights * np.float32(1.01))
    found = []
    for size in (1, 2, 6):
        batches = [{"input": images[start : start + size]} for start in range(0, 6, size)]
        wanted = FloatOutput(model, batches, open_runner=OnnxRuntimeRunner)
        assert wanted.fidelity(model).total_db == NO_NOISE_DB
        found.append(wanted.fidelity(other))
    assert all(each.noise.shape == (6,) and 10 < each.db < 80 for each in found)
    assert found[1].db == pytest.approx(found[0].db, abs=0.1) and found[2].db == pytest.approx(found[0].db, abs=0.1)
