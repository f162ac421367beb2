from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgetl.errors import UsageError
from edgetl.quantize import ranges
from edgetl.quantize.ranges import (
    QuantParams,
    activation_params,
    noise_power,
    params_of,
    signed_params,
    weight_scales,
    without_outliers,
)
from edgetl.quantize.schemes import (
    INT8,
    INT8_HALF,
    INT8_NARROW,
    INT8_NARROW_HALF,
    INT8_SYMMETRIC,
    UINT8,
    UINT8_OR_SIGNED,
    IntegerType,
)
from edgetl.quantize.sketch import Sketch
from edgetl.specs import Estimator

MINMAX, MSE, ENTROPY = Estimator(method="minmax"), Estimator(method="mse"), Estimator(method="entropy")
PERCENTILE = Estimator(method="percentile")
ESTIMATORS = {estimator.method: estimator for estimator in (MINMAX, PERCENTILE, ENTROPY, MSE)}
TYPES = {
    "u8": UINT8,
    "s8": INT8,
    "s8-symmetric": INT8_SYMMETRIC,
    "s8-narrow": INT8_NARROW,
    "s8-half": INT8_HALF,
    "s8-narrow-half": INT8_NARROW_HALF,
}
types = st.sampled_from(list(TYPES.values()))
reals = st.floats(-1e4, 1e4, width=32)
tiny_and_huge = st.floats(width=32, allow_nan=False, allow_infinity=False)


def error(params: QuantParams, values: np.ndarray) -> float:
    exact = values.astype(np.float64)
    return float(np.square(params.fake_quantize(exact) - exact).mean())


def sqnr(params: QuantParams, values: np.ndarray) -> float:
    return float(10 * np.log10(np.square(values, dtype=np.float64).mean() / error(params, values)))


def sketch_of(values: np.ndarray) -> Sketch:
    return Sketch.of(values.astype(np.float32).reshape(1, -1), channel_axis=None)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


COUNT = 50_000
DISTRIBUTIONS: dict[str, Callable[[], np.ndarray]] = {
    "normal": lambda: generator().normal(size=COUNT),
    "relu": lambda: np.maximum(generator().normal(size=COUNT), 0),
    "relu6": lambda: np.clip(generator().normal(1, 3, size=COUNT), 0, 6),
    "relu6 mostly at six": lambda: np.clip(generator().normal(5, 3, size=COUNT), 0, 6),
    "uniform": lambda: generator().uniform(-2, 1, size=COUNT),
    "laplace": lambda: generator().laplace(size=COUNT),
    "hardswish": lambda: (lambda x: x * np.clip(x + 3, 0, 6) / 6)(generator().normal(0, 3, size=COUNT)),
    "all negative": lambda: -1 - np.abs(generator().normal(size=COUNT)),
}
ODD: dict[str, np.ndarray] = {
    "zeros": np.zeros(100),
    "constant": np.full(100, 3.0),
    "negative constant": np.full(100, -0.01),
    "one value": np.asarray([2.5]),
    "two values": np.asarray([-1.0, 5.0]),
    "denormals": np.linspace(-1e-40, 1e-39, 50),
    "one denormal": np.asarray([1e-45]),
    "huge": np.asarray([-3.4e38, 3.4e38, 1.0]),
    "outlier": np.append(np.linspace(-1, 1, 999), 1e30),
    "all negative": np.linspace(-5, -4, 100),
}


class TestParams:
    @given(reals, reals, types)
    def test_zero_is_exact_and_the_range_is_covered(self, a: float, b: float, type_: IntegerType) -> None:
        low, high = min(a, b), max(a, b)
        params = params_of(low, high, type_)
        assert type_.low <= params.zero_point <= type_.high
        assert params.fake_quantize(np.zeros(1))[0] == 0.0
        inside = np.linspace(min(low, 0), max(high, 0), 50)
        # Half a step of rounding, half a step of a rounded zero point, and what the type of the scale rounds.
        rounding = 1e-4 if type_.scale_type == "float32" else 2e-3
        assert (
            np.abs(params.fake_quantize(inside) - inside).max() <= params.scale * 1.001 + rounding * abs(inside).max()
        )

    @given(tiny_and_huge, tiny_and_huge, types)
    def test_any_two_floats_give_a_usable_scale(self, a: float, b: float, type_: IntegerType) -> None:
        params = params_of(min(a, b), max(a, b), type_)
        assert params.scale > 0 and np.isfinite(params.scale) and type_.low <= params.zero_point <= type_.high
        kind = np.float16 if type_.scale_type == "float16" else np.float32
        assert float(kind(params.scale)) == params.scale
        assert np.float32(params.scale) >= np.finfo(np.float32).tiny, "no engine flushes it to zero"

    @given(st.floats(1e-4, 1e4), types)
    def test_scales_of_activations_are_rounded_down(self, reach: float, type_: IntegerType) -> None:
        """Or an engine could not drop the ReLU6 before a quantizer."""
        params = params_of(0.0, reach, type_)
        steps = type_.high if type_.symmetric else type_.high - type_.low
        assert params.scale * steps <= reach * (1 + 1e-15) or params.scale < 1e-5
        if params.scale > 1e-4:
            assert params.scale * steps >= reach * (1 - (1e-6 if type_.scale_type == "float32" else 2e-3))

    @given(reals, reals)
    def test_symmetric_has_no_zero_point(self, a: float, b: float) -> None:
        assert params_of(min(a, b), max(a, b), INT8_SYMMETRIC).zero_point == 0

    def test_a_relu6_behind_its_quantizer_is_redundant(self) -> None:
        params = params_of(0.0, 6.0, UINT8)
        assert params.zero_point == 0 and np.float32(params.scale) * np.float32(255) <= np.float32(6.0)

    def test_a_constant_tensor_has_a_usable_scale(self) -> None:
        for value in (0.0, 3.0, -3.0, 1e-30):
            params = params_of(value, value, UINT8)
            assert params.scale > 0 and np.isfinite(params.scale)


class TestNoisePower:
    @pytest.mark.parametrize("name", DISTRIBUTIONS)
    @pytest.mark.parametrize("type_", [UINT8, INT8_SYMMETRIC], ids=["u8", "s8"])
    @pytest.mark.parametrize("share", [1.0, 0.7, 0.3, 3.0])
    def test_it_is_the_error_of_fake_quantization(self, name: str, type_: IntegerType, share: float) -> None:
        values = DISTRIBUTIONS[name]().astype(np.float32)
        params = params_of(share * values.min(), share * values.max(), type_)
        assert noise_power(sketch_of(values), params) == pytest.approx(error(params, values), rel=0.04)

    @given(hnp.arrays(np.float32, st.integers(1, 50), elements=reals), types, st.floats(0.1, 2))
    def test_of_few_values_it_is_within_what_a_bucket_hides(
        self, values: np.ndarray, type_: IntegerType, share: float
    ) -> None:
        params = params_of(share * float(values.min()), share * float(values.max()), type_)
        hidden = float(np.abs(values).max()) / 128 + params.scale / 2
        found = noise_power(sketch_of(values), params)
        assert found >= 0 and abs(np.sqrt(found) - np.sqrt(error(params, values))) <= hidden + 1e-12


class TestEstimators:
    @pytest.mark.parametrize("type_", TYPES.values(), ids=TYPES)
    @pytest.mark.parametrize("method", ESTIMATORS)
    @pytest.mark.parametrize("name", ODD)
    def test_odd_tensors_get_a_usable_quantization(self, name: str, method: str, type_: IntegerType) -> None:
        values = ODD[name].astype(np.float32)
        params = activation_params(sketch_of(values), ESTIMATORS[method], type_)
        assert params.scale > 0 and np.isfinite(params.scale) and type_.low <= params.zero_point <= type_.high
        assert params.fake_quantize(np.zeros(1))[0] == 0.0
        assert np.isfinite(params.fake_quantize(values.astype(np.float64))).all()
        if type_.scale_type == "float32" and name not in ("outlier", "huge"):
            kept = params.fake_quantize(values.astype(np.float64))
            assert np.abs(kept - values).max() <= np.abs(values).max() / 25 + 1e-37

    @pytest.mark.parametrize("type_", TYPES.values(), ids=TYPES)
    @pytest.mark.parametrize("method", ESTIMATORS)
    @pytest.mark.parametrize("name", DISTRIBUTIONS)
    def test_no_estimator_loses_much_against_minmax(self, name: str, method: str, type_: IntegerType) -> None:
        values = DISTRIBUTIONS[name]().astype(np.float32)
        found, minmax = (activation_params(sketch_of(values), e, type_) for e in (ESTIMATORS[method], MINMAX))
        assert sqnr(found, values) >= sqnr(minmax, values) - {"mse": 0.05, "percentile": 3.0}.get(method, 1.5)
        inside = (values >= found.low - found.scale / 2) & (values <= found.high + found.scale / 2)
        assert inside.mean() >= 0.995

    def test_minmax_is_the_extremes(self) -> None:
        params = activation_params(sketch_of(np.asarray([-1.0, 0.5, 3.0])), MINMAX, UINT8)
        assert params.low == pytest.approx(-1.0, abs=params.scale)
        assert params.high == pytest.approx(3.0, abs=params.scale)

    def test_no_sample_is_an_error(self) -> None:
        for estimator in ESTIMATORS.values():
            with pytest.raises(UsageError, match="at least one calibration sample"):
                activation_params(sketch_of(np.zeros(0)), estimator, UINT8)


class TestSigned:
    """A tensor of both signs goes without a zero point where that adds little noise."""

    @given(values=hnp.arrays(np.float32, st.integers(1, 200), elements=reals), method=st.sampled_from(list(ESTIMATORS)))
    def test_it_adds_half_a_decibel_at_most(self, values: np.ndarray, method: str) -> None:
        sketch, estimator = sketch_of(values), ESTIMATORS[method]
        found = signed_params(sketch, estimator, UINT8_OR_SIGNED)
        plain = activation_params(sketch, estimator, UINT8)
        assert found.type in (UINT8_OR_SIGNED, INT8_SYMMETRIC)
        assert noise_power(sketch, found) <= 1.12 * noise_power(sketch, plain)
        if found.type is INT8_SYMMETRIC:
            assert found.zero_point == 0 and values.min() < 0 < values.max()
        else:
            assert (found.scale, found.zero_point) == (plain.scale, plain.zero_point)

    @pytest.mark.parametrize("method", ESTIMATORS)
    @pytest.mark.parametrize(
        ("of", "signed"),
        [
            (lambda x: x, True),
            (lambda x: x + 0.02, True),
            (np.tanh, True),
            (np.abs, False),
            (lambda x: -np.abs(x), False),
            (lambda x: np.maximum(x, 0), False),
            (lambda x: x * np.clip(x + 3, 0, 6) / 6, False),  # HardSwish
        ],
    )
    def test_what_it_is_for(self, of: Callable[[np.ndarray], np.ndarray], signed: bool, method: str) -> None:
        values = of(generator().normal(size=50_000))
        found = signed_params(sketch_of(values), ESTIMATORS[method], UINT8_OR_SIGNED)
        assert (found.type is INT8_SYMMETRIC) is signed

    def test_a_single_value_has_no_other_sign(self) -> None:
        assert signed_params(sketch_of(np.asarray([-3.0])), MSE, UINT8_OR_SIGNED).type is UINT8_OR_SIGNED


class TestMse:
    @pytest.mark.parametrize("type_", TYPES.values(), ids=TYPES)
    @pytest.mark.parametrize("seed", range(5))
    def test_it_is_never_worse_than_minmax_or_percentile(self, type_: IntegerType, seed: int) -> None:
        random = np.random.default_rng(seed)
        values = (random.standard_t(3, size=20_000) * random.uniform(0.1, 10)).astype(np.float32)
        if seed % 2:
            values = np.maximum(values, 0)
        found = {
            method: error(activation_params(sketch_of(values), estimator, type_), values)
            for method, estimator in ESTIMATORS.items()
        }
        assert found["mse"] <= 1.01 * min(found.values())

    @pytest.mark.parametrize("type_", [INT8_SYMMETRIC, INT8_NARROW, INT8_HALF], ids=["s8", "narrow", "half"])
    @pytest.mark.parametrize("name", [*DISTRIBUTIONS, "student"])
    def test_symmetric_it_is_the_best_of_a_brute_force_search(self, name: str, type_: IntegerType) -> None:
        values = DISTRIBUTIONS.get(name, lambda: generator().standard_t(3, size=20_000))()[:10_000].astype(np.float32)
        reach = float(np.abs(values).max())
        best = min(error(params_of(-share * reach, share * reach, type_), values) for share in np.linspace(0.1, 1, 150))
        assert error(activation_params(sketch_of(values), MSE, type_), values) <= 1.02 * best

    @pytest.mark.parametrize("name", [*DISTRIBUTIONS, "student"])
    def test_asymmetric_too(self, name: str) -> None:
        values = DISTRIBUTIONS.get(name, lambda: generator().standard_t(3, size=20_000))()[:5_000].astype(np.float32)
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        shares = np.geomspace(0.3, 1, 24)
        best = min(error(params_of(a * low, b * high, UINT8), values) for a in shares for b in shares)
        assert error(activation_params(sketch_of(values), MSE, UINT8), values) <= 1.02 * best

    def test_an_outlier_that_costs_more_than_it_is_worth_is_given_up(self) -> None:
        values = np.concatenate([generator().normal(size=1_000_000), [100.0]]).astype(np.float32)
        sketch = sketch_of(values)
        kept, all_of_it = (activation_params(sketch, estimator, UINT8) for estimator in (MSE, MINMAX))
        assert error(kept, values) < 0.9 * error(all_of_it, values)


class TestPercentile:
    def test_it_covers_its_share(self) -> None:
        values = generator().normal(size=100_000).astype(np.float32)
        params = activation_params(sketch_of(values), Estimator(method="percentile", percentile=99.0), UINT8)
        inside = ((values >= params.low - params.scale) & (values <= params.high + params.scale)).mean()
        assert 0.985 <= inside <= 0.997

    @pytest.mark.parametrize("outlier", [1e3, 1e30])
    def test_one_outlier_does_not_set_the_range(self, outlier: float) -> None:
        values = np.append(generator().uniform(0, 1, 100_000), outlier)
        assert activation_params(sketch_of(values), PERCENTILE, UINT8).high < 2.0
        assert activation_params(sketch_of(values), MINMAX, UINT8).high > 0.9 * outlier

    def test_mostly_zeros_still_have_a_range(self) -> None:
        values = np.append(np.zeros(1_000_000), [1.0, 2.0])
        assert activation_params(sketch_of(values), PERCENTILE, UINT8).high == pytest.approx(2.0, rel=1e-3)


class TestEntropy:
    """Sane ranges: Migacz 2017 clips outliers, and keeps what a distribution consists of."""

    @pytest.mark.parametrize("type_", [UINT8, INT8_SYMMETRIC, INT8_HALF], ids=["u8", "s8", "half"])
    @pytest.mark.parametrize("half", [False, True], ids=["normal", "relu"])
    def test_an_outlier_is_clipped_and_the_rest_is_not(self, half: bool, type_: IntegerType) -> None:
        inner = generator().normal(size=100_000)
        inner = np.maximum(inner, 0) if half else inner
        params = activation_params(sketch_of(np.append(inner, 1000.0)), ENTROPY, type_)
        minmax = activation_params(sketch_of(np.append(inner, 1000.0)), MINMAX, type_)
        assert params.high < 100
        assert sqnr(params, inner) > sqnr(minmax, inner) + 15
        assert params.high >= inner.max() and (half or params.low - params.scale <= inner.min())

    @pytest.mark.parametrize("outlier", [-1000.0, 1000.0])
    def test_the_side_without_an_outlier_is_left_alone(self, outlier: float) -> None:
        params = activation_params(sketch_of(np.append(generator().normal(size=100_000), outlier)), ENTROPY, UINT8)
        assert params.low < -4 and params.high > 4

    @pytest.mark.parametrize("kind", ["lognormal", "exponential", "outliers", "uniform"])
    def test_it_is_the_least_divergence_of_a_brute_force_search(self, kind: str) -> None:
        """Over 4,096 bins of the values themselves, bin by bin as Migacz 2017 says it."""
        random = generator()
        values = {
            "lognormal": lambda: random.lognormal(0, 0.7, 400_000),
            "exponential": lambda: random.exponential(1, 400_000),
            "outliers": lambda: np.append(random.gamma(3, 1, 400_000), random.uniform(50, 200, 40)),
            "uniform": lambda: random.uniform(0, 3, 400_000),
        }[kind]()
        counts, edges = np.histogram(values, 4096, (0, values.max()))
        middles = (edges[1:] + edges[:-1]) / 2

        def divergence(reach: float) -> float:
            steps = np.rint(middles / (reach / 255)).astype(int)
            inside = steps <= 255
            reference = counts[inside].astype(float)
            reference[-1] += counts[~inside].sum()
            quantized = np.zeros(inside.sum())
            for step in range(256):
                bins = (steps[inside] == step) & (counts[inside] > 0)
                if bins.any():
                    quantized[bins] = counts[inside][bins].sum() / bins.sum()
            reference, quantized = reference / reference.sum(), quantized / quantized.sum()
            seen = reference > 0
            return float((reference[seen] * np.log(reference[seen] / np.maximum(quantized[seen], 1e-12))).sum())

        best = min(divergence(share * values.max()) for share in np.geomspace(0.02, 1, 80))
        found = activation_params(sketch_of(values), ENTROPY, UINT8)
        assert divergence(found.high) <= 1.1 * best + 1e-5
        assert divergence(0.5 * found.high) > divergence(found.high)
        assert ranges._ENTROPY_BINS >= 2048

    @pytest.mark.parametrize("type_", [UINT8, INT8_SYMMETRIC], ids=["u8", "s8"])
    @pytest.mark.parametrize("mean", [-3.0, 1.0, 5.0])
    def test_a_relu6_keeps_its_six(self, mean: float, type_: IntegerType) -> None:
        values = np.clip(generator().normal(mean, 3, size=COUNT), 0, 6)
        assert activation_params(sketch_of(values), ENTROPY, type_).high > 5.5


small = st.floats(-8, 8, width=16)
weights = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=6), elements=reals)


def weight_errors(values: np.ndarray, scales: np.ndarray, type_: IntegerType) -> np.ndarray:
    rows = values.reshape(len(values), -1).astype(np.float64)
    steps = np.clip(np.rint(rows / scales.astype(np.float64)[:, None]), type_.low, type_.high)
    return np.square(steps * scales[:, None] - rows).sum(axis=1)


class TestWeights:
    @given(weights, st.sampled_from(["minmax", "mse", "percentile", "entropy"]), types)
    def test_scales_are_positive_per_channel(self, values: np.ndarray, method: str, type_: IntegerType) -> None:
        scales = weight_scales(values, 0, ESTIMATORS[method], type_)
        assert scales.shape == (len(values),) and scales.dtype == np.float32 and (scales > 0).all()
        assert weight_scales(values, None, MINMAX, INT8_NARROW).shape == ()

    @given(weights, st.sampled_from([INT8_NARROW, INT8_NARROW_HALF]))
    def test_minmax_holds_every_weight_within_half_a_step(self, values: np.ndarray, type_: IntegerType) -> None:
        scales = weight_scales(values, 0, MINMAX, type_).reshape((-1,) + (1,) * (values.ndim - 1))
        steps = np.clip(np.rint(values / scales), -127, 127)
        assert (np.abs(steps * scales - values) <= scales * 0.5001).all()

    @given(weights)
    def test_scales_of_float16_are_float16_rounded_up(self, values: np.ndarray) -> None:
        scales = weight_scales(values, 0, MINMAX, INT8_NARROW_HALF)
        assert np.array_equal(scales.astype(np.float16).astype(np.float32), scales)
        assert (scales * 127 >= np.abs(values).reshape(len(values), -1).max(axis=1) * (1 - 1e-6)).all()

    @settings(max_examples=50)
    @given(
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=small),
        st.sampled_from([INT8_NARROW, INT8_NARROW_HALF]),
    )  # fmt: skip
    def test_mse_is_never_worse_than_minmax_in_any_channel(self, values: np.ndarray, type_: IntegerType) -> None:
        mse, minmax = (weight_errors(values, weight_scales(values, 0, e, type_), type_) for e in (MSE, MINMAX))
        assert (mse <= minmax * 1.0001 + 1e-12).all()

    def test_mse_gains_where_there_is_something_to_gain(self) -> None:
        values = generator().normal(size=(16, 4000)).astype(np.float32)
        mse, minmax = (
            weight_errors(values, weight_scales(values, 0, e, INT8_NARROW), INT8_NARROW) for e in (MSE, MINMAX)
        )
        assert (mse <= minmax).all() and mse.sum() < 0.99 * minmax.sum()

    @pytest.mark.parametrize("method", ESTIMATORS)
    @pytest.mark.parametrize("type_", [INT8_NARROW, INT8_NARROW_HALF], ids=["single", "half"])
    def test_channels_of_zeros_denormals_and_huge_weights(self, method: str, type_: IntegerType) -> None:
        values = np.asarray([[0, 0], [1e-42, -1e-43], [3e38, -1e38], [0, 1]], np.float32)
        if type_.scale_type == "float16":
            values[2] = [6e4, -1e4]
        scales = weight_scales(values, 0, ESTIMATORS[method], type_)
        assert np.isfinite(scales).all() and scales[0] == 1.0 and (scales > np.finfo(np.float32).tiny).all()
        kept = np.clip(np.rint(values / scales[:, None]), -127, 127) * scales[:, None]
        np.testing.assert_allclose(kept[2:], values[2:], rtol=0.1, atol=0.01)


class TestOutliers:
    def samples(self, reaches: list[float], seed: int = 0) -> Sketch:
        random = np.random.default_rng(seed)
        rows = random.uniform(-1, 1, size=(len(reaches), 500)) * np.asarray(reaches)[:, None]
        return Sketch.of(rows.astype(np.float32), channel_axis=None)

    @pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
    def test_a_few_samples_far_out_do_not_count(self, method: str) -> None:
        sketch = self.samples([1.0] * 60 + [50.0, 80.0])
        dropped = activation_params(sketch, Estimator(method=method, outliers="drop"), INT8_SYMMETRIC)  # type: ignore[arg-type]
        kept = activation_params(sketch, Estimator(method=method), INT8_SYMMETRIC)  # type: ignore[arg-type]
        assert dropped.high <= 1.02
        assert dropped.high <= 1.01 * kept.high
        assert method == "entropy" or dropped.high < kept.high

    def test_samples_that_differ_by_chance_all_count(self) -> None:
        random = np.random.default_rng(1)
        sketch = self.samples(np.exp(random.uniform(-0.5, 0.5, size=100)).tolist())
        assert without_outliers(sketch) is sketch

    def test_one_side_may_have_outliers_and_the_other_none(self) -> None:
        rows = np.random.default_rng(2).uniform(0.5, 1, size=(50, 100)).astype(np.float32)
        rows[:, 0] = -1.0
        rows[7, 3] = 90.0
        cut = without_outliers(Sketch.of(rows, channel_axis=None))
        assert (cut.low, cut.total) == (-1.0, 50 * 100 - 1)
        assert cut.high <= 1.0

    def test_of_few_samples_nothing_is_said(self) -> None:
        sketch = self.samples([1.0] * 18 + [90.0])
        assert without_outliers(sketch) is sketch

    @pytest.mark.parametrize("value", [0.0, -2.0, 5.0, 1e-40])
    def test_constant_tensors(self, value: float) -> None:
        rows = np.full((40, 30), value, dtype=np.float32)
        sketch = Sketch.of(rows, channel_axis=None)
        for method in ("minmax", "percentile", "mse", "entropy"):
            wanted = activation_params(sketch, Estimator(method=method), UINT8)  # type: ignore[arg-type]
            assert activation_params(sketch, Estimator(method=method, outliers="drop"), UINT8) == wanted  # type: ignore[arg-type]

    def test_a_tensor_that_most_samples_leave_at_zero(self) -> None:
        rows = np.zeros((60, 20), dtype=np.float32)
        rows[:4, 0] = (1.0, 1.1, 1.2, 40.0)
        params = activation_params(
            Sketch.of(rows, channel_axis=None), Estimator(method="minmax", outliers="drop"), UINT8
        )
        assert 1.0 <= params.high <= 40.2


class TestBothEndsAreHeld:
    @given(st.floats(-1e3, -1e-3), st.floats(1e-3, 1e3))
    def test_whatever_the_zero_point_was_rounded_to(self, low: float, high: float) -> None:
        params = params_of(low, high, UINT8)
        # An end nearer to zero than half a step is zero.
        assert params.low <= low * (1 - 1e-5) or -low <= 0.51 * params.scale
        assert params.high >= high * (1 - 1e-5) or high <= 0.51 * params.scale
        assert params.scale <= (high - low) / 255 * max(1.01, 0.51 * max(-low, high) / min(-low, high))

    def test_pixels_from_minus_one_to_one_lie_on_no_tie(self) -> None:
        pixels = np.arange(256) / 127.5 - 1
        params = params_of(-1.0, 1.0, UINT8)
        assert np.abs(params.fake_quantize(pixels) - pixels).max() < 0.55 * params.scale
        # The mean error is what a tie gives away: every pixel would be rounded to the same side.
        assert abs((params.fake_quantize(pixels) - pixels).mean()) < 0.01 * params.scale
