import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fedsim.models.probe import fit_path, fit_probe, fit_probes, predict_each


def rows(
    n,
    dim,
    classes,
    seed=0,
):
    """Return noisy rows of ``classes`` classes, each of which occurs."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centres = rng.normal(size=(classes, dim))
    x = centres[y] + rng.normal(size=(n, dim))
    return x.astype(np.float32), y.astype(np.int64)


@pytest.mark.parametrize("classes", [2, 3])
def test_few_rows_of_many_features_minimise_the_objective(classes):
    x, y = rows(40, 80, classes)
    x[classes : 2 * classes] = x[:classes]
    probe = fit_probe(x, y, 0.1, balanced=True)
    features = (x - probe.mean) / probe.scale
    converged = LogisticRegression(
        C=0.1,
        class_weight="balanced",
        tol=1e-10,
        max_iter=10_000,
    )
    converged.fit(features, y)
    np.testing.assert_allclose(
        probe.weight,
        converged.coef_.T,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        probe.bias,
        converged.intercept_,
        atol=1e-5,
    )
    assert probe.weight.dtype == np.float32
    assert probe.bias.dtype == np.float32


@pytest.mark.parametrize("n", [9, 60])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_probes_of_several_strengths_equal_single_ones(n, classes):
    x, y = rows(n, 80, classes)
    other, _ = rows(50, 80, 3, seed=1)
    strengths = (0.01, 1.0)
    together = list(fit_probes(x, y, strengths))
    predictions = predict_each(together, other)
    for probe, strength, predicted in zip(
        together,
        strengths,
        predictions,
        strict=True,
    ):
        alone = fit_probe(x, y, strength)
        for name, value in vars(alone).items():
            np.testing.assert_array_equal(
                vars(probe)[name],
                value,
            )
        np.testing.assert_array_equal(
            predicted,
            alone.predict(other),
        )


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 3, 10])
@pytest.mark.parametrize("n", [60, 400])
def test_probes_along_the_path_nearly_equal_exact_probes(n, classes, balanced):
    x, y = rows(n, 80, classes)
    other, _ = rows(1000, 80, classes)  # of the same classes
    strengths = (0.001, 0.01, 0.1, 1.0)
    path = fit_path(
        x,
        y,
        strengths,
        balanced=balanced,
    )
    exact_probes = fit_probes(
        x,
        y,
        strengths,
        balanced=balanced,
    )
    for near, exact in zip(path, exact_probes, strict=True):
        assert np.mean(near.predict(other) == exact.predict(other)) > 0.985
        probabilities = near.probabilities(other, classes)
        expected = exact.probabilities(other, classes)
        assert np.abs(probabilities - expected).max() < 0.05


def test_rows_of_a_diverged_generator_are_named():
    x, y = rows(10, 4, 2)
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 10 training rows of the probe hold NaN or infinite"):
        fit_probe(x, y, 1.0)
