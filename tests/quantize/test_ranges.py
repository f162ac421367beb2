from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgetl.errors import UsageError
from edgetl.quantize.ranges import QuantParams, activation_params, limit_pair_sums, params_of, weight_scales
from edgetl.quantize.schemes import INT8, INT8_NARROW, INT8_SYMMETRIC, UINT8, IntegerType
from edgetl.quantize.sketch import Sketch
from edgetl.specs import Estimator

MINMAX, MSE = Estimator(method="minmax"), Estimator(method="mse")
types = st.sampled_from([UINT8, INT8, INT8_SYMMETRIC])
reals = st.floats(-1e4, 1e4, width=32)


def error(params: QuantParams, values: np.ndarray) -> float:
    return float(np.square(params.fake_quantize(values) - values).mean())


class TestParams:
    @given(reals, reals, types)
    def test_zero_is_exact_and_the_range_is_covered(self, a: float, b: float, type_: IntegerType) -> None:
        low, high = min(a, b), max(a, b)
        params = params_of(low, high, type_)
        assert type_.low <= params.zero_point <= type_.high
        assert params.fake_quantize(np.zeros(1))[0] == 0.0
        inside = np.linspace(min(low, 0), max(high, 0), 50)
        # Half a step of rounding, half a step of a rounded zero point, and what float32 rounds.
        assert np.abs(params.fake_quantize(inside) - inside).max() <= params.scale * 1.001 + 1e-4 * abs(inside).max()

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


class TestEstimators:
    def test_minmax_is_the_extremes(self) -> None:
        values = np.asarray([-1.0, 0.5, 3.0], dtype=np.float32)
        params = activation_params(Sketch.of(values), MINMAX, UINT8)
        assert params.low == pytest.approx(-1.0, abs=params.scale) and params.high == pytest.approx(
            3.0, abs=params.scale
        )

    @pytest.mark.parametrize("type_", [UINT8, INT8, INT8_SYMMETRIC], ids=lambda item: f"{item.name} {item.symmetric}")
    @pytest.mark.parametrize("seed", range(5))
    def test_mse_is_never_worse_than_minmax_or_percentile(self, type_: IntegerType, seed: int) -> None:
        generator = np.random.default_rng(seed)
        values = (generator.standard_t(3, size=20_000) * generator.uniform(0.1, 10)).astype(np.float32)
        if seed % 2:
            values = np.maximum(values, 0)
        sketch = Sketch.of(values)
        found = {
            method: error(activation_params(sketch, Estimator(method=method), type_), values.astype(np.float64))  # type: ignore[arg-type]
            for method in ("minmax", "percentile", "mse")
        }
        assert found["mse"] <= 1.01 * min(found.values())

    def test_mse_gives_up_an_outlier_that_costs_more_than_it_is_worth(self) -> None:
        values = np.concatenate([np.random.default_rng(0).normal(size=1_000_000), [100.0]]).astype(np.float32)
        sketch = Sketch.of(values)
        exact = values.astype(np.float64)
        assert error(activation_params(sketch, MSE, UINT8), exact) < 0.9 * error(
            activation_params(sketch, MINMAX, UINT8), exact
        )

    def test_percentile_covers_its_share(self) -> None:
        values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
        params = activation_params(Sketch.of(values), Estimator(method="percentile", percentile=99.0), UINT8)
        inside = ((values >= params.low - params.scale) & (values <= params.high + params.scale)).mean()
        assert 0.985 <= inside <= 0.997

    def test_one_outlier_does_not_set_the_range_of_percentile(self) -> None:
        values = np.concatenate([np.random.default_rng(0).uniform(0, 1, 100_000), [1000.0]]).astype(np.float32)
        assert activation_params(Sketch.of(values), Estimator(method="percentile"), UINT8).high < 2.0
        assert activation_params(Sketch.of(values), MINMAX, UINT8).high > 900.0

    def test_no_sample_is_an_error(self) -> None:
        with pytest.raises(UsageError, match="at least one calibration sample"):
            activation_params(Sketch.empty(), MSE, UINT8)


weights = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=6), elements=reals)


class TestWeights:
    @given(weights, st.sampled_from(["minmax", "mse", "percentile"]))
    def test_scales_are_positive_per_channel(self, values: np.ndarray, method: str) -> None:
        scales = weight_scales(values, 0, Estimator(method=method), INT8_NARROW)  # type: ignore[arg-type]
        assert scales.shape == (len(values),) and scales.dtype == np.float32 and (scales > 0).all()
        assert weight_scales(values, None, MINMAX, INT8_NARROW).shape == ()

    @given(weights)
    def test_minmax_holds_every_weight_within_half_a_step(self, values: np.ndarray) -> None:
        scales = weight_scales(values, 0, MINMAX, INT8_NARROW).reshape((-1,) + (1,) * (values.ndim - 1))
        steps = np.clip(np.rint(values / scales), -127, 127)
        assert (np.abs(steps * scales - values) <= scales * 0.5001).all()

    def test_mse_is_not_worse_per_channel(self) -> None:
        values = np.random.default_rng(0).normal(size=(16, 4000)).astype(np.float32)

        def errors(estimator: Estimator) -> np.ndarray:
            scales = weight_scales(values, 0, estimator, INT8_NARROW)[:, None]
            return np.square(np.clip(np.rint(values / scales), -127, 127) * scales - values).sum(axis=1)

        assert (errors(MSE) <= errors(MINMAX) * 1.0001).all()
        assert errors(MSE).sum() < 0.99 * errors(MINMAX).sum()

    @given(weights)
    def test_no_pair_of_weights_saturates_sixteen_bits(self, values: np.ndarray) -> None:
        scales = limit_pair_sums(weight_scales(values, 0, MINMAX, INT8_NARROW), values, 0, 128)
        rows = np.rint(values.reshape(len(values), -1) / scales[:, None])
        for row in np.sort(np.clip(rows, -127, 127), axis=1):
            for pair in (row[-2:], row[:2]):
                if len(pair) == 2 and (pair > 0).all() | (pair < 0).all():
                    assert abs(255 * pair.sum()) <= 32767
