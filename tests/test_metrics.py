"""Metrics of features against torch-fidelity's numbers, and closed forms."""

import io
import json
import pathlib
import urllib.error

import golden_cases
import jax
import numpy as np
import pytest

from score_sde import metrics
from score_sde.models.inception import FEATURES, Inception, from_pytorch
from score_sde.run import features
from score_sde.run.config import BadInput

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "metrics.npz")
SETTINGS = json.loads(str(GOLDEN["manifest"]))
A, B = GOLDEN["features_a"], GOLDEN["features_b"]


def test_metrics_are_torch_fidelity_s():
  assert metrics.fid(A, B) == pytest.approx(float(GOLDEN["fid"]), rel=1e-6)
  mean, std = metrics.kid(A, B, subsets=SETTINGS["kid"]["subsets"], subset_size=SETTINGS["kid"]["subset_size"])
  assert mean == pytest.approx(float(GOLDEN["kid_mean"]), rel=1e-6)
  assert std == pytest.approx(float(GOLDEN["kid_std"]), rel=1e-4)
  mean, std = metrics.inception_score(GOLDEN["logits"])
  assert mean == pytest.approx(float(GOLDEN["isc_mean"]), rel=1e-6)
  assert std == pytest.approx(float(GOLDEN["isc_std"]), rel=1e-4)
  precision, recall = metrics.precision_recall(A, B)
  assert precision == pytest.approx(float(GOLDEN["precision"]), rel=1e-6)
  assert recall == pytest.approx(float(GOLDEN["recall"]), rel=1e-6)


def test_the_frechet_distance_of_gaussians_whose_covariances_commute():
  """|m|² + sum of (sqrt(a) - sqrt(b))² for diagonal covariances a and b; also where one is singular."""
  a, b, gap = np.array([1.0, 4.0, 0.0]), np.array([9.0, 1.0, 2.0]), np.array([0.5, 0.0, -1.0])
  value = metrics.frechet_distance(gap, np.diag(a), 0 * gap, np.diag(b))
  assert value == pytest.approx(gap @ gap + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-9)


def test_moments_of_a_stream_are_those_of_the_whole_however_far_from_zero():
  x = np.random.default_rng(0).standard_normal((1000, 4)) * 1e-3 + 1e4
  streamed = sum((metrics.Moments.of(part) for part in np.split(x, [7, 500, 650])[1:]), metrics.Moments.of(x[:7]))
  np.testing.assert_allclose(streamed.mean, x.mean(0), rtol=1e-12)
  np.testing.assert_allclose(streamed.covariance, np.cov(x.T), rtol=1e-5, atol=1e-12)


def test_kid_needs_as_many_features_as_a_subset_has():
  with pytest.raises(ValueError, match=r"subsets of 1000, and there are 1000 and 900"):
    metrics.kid(A, B)


@pytest.fixture(scope="module")
def inception():
  """Golden inputs, features, and the weights they belong to, by PyTorch's names."""
  case = golden_cases.load("inception")
  settings = golden_cases.manifest(case)
  weights = {}
  for name, shape in zip(settings["names"], settings["shapes"], strict=True):
    weights[name] = golden_cases.weight(name, tuple(shape))
    if name.endswith("running_var"):
      weights[name] = np.abs(weights[name]) * 4 + 0.5
  return case, weights


@pytest.mark.slow
def test_inception_s_features_are_torch_fidelity_s(inception):
  case, weights = inception
  out = jax.jit(Inception().apply)(from_pytorch(weights), case["images"])
  assert set(out) == set(FEATURES)
  for name, value in out.items():
    expected = case[f"feature_{name}"]
    error = np.linalg.norm(value - expected) / np.linalg.norm(expected)
    assert error < 1e-4, (name, error)


def test_weights_of_another_network_are_refused(inception):
  _, weights = inception
  with pytest.raises(ValueError, match=r"1 of 472 arrays are missing.*Mixed_7c\.branch_pool\.bn\.bias"):
    from_pytorch({k: v for k, v in weights.items() if k != "Mixed_7c.branch_pool.bn.bias"})
  with pytest.raises(ValueError, match=r"'layer1.0.weight' is no weight of InceptionV3"):
    from_pytorch(weights | {"layer1.0.weight": np.zeros(3)})


def test_inception_without_its_weights_says_where_they_are(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

  def offline(*_, **__):
    raise urllib.error.URLError("no network")

  monkeypatch.setattr("urllib.request.urlopen", offline)
  with pytest.raises(BadInput, match=r"cannot be downloaded here .*no network.*--config.eval.inception_path"):
    features.inception()
  monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(b"something else"))
  with pytest.raises(BadInput, match=r"has the SHA-256 \w+, not 6726825d"):
    features.inception()
  assert not list(tmp_path.rglob("*.pth"))
  with pytest.raises(BadInput, match="is no file"):
    features.inception(str(tmp_path / "nothing.pth"))


def test_statistics_of_other_programs_are_read_and_those_of_other_networks_refused(tmp_path):
  inception = features.Extractor("inception-2015-12-05", lambda variables, images: (images, images), None)
  x = np.random.default_rng(0).standard_normal((2100, 2048)).astype(np.float32)
  np.savez(tmp_path / "official.npz", pool_3=x)
  np.savez(tmp_path / "pytorch_fid.npz", mu=x.mean(0), sigma=np.cov(x.T))
  for name in ("official", "pytorch_fid"):
    found = features.read(str(tmp_path / f"{name}.npz"), inception).moments
    np.testing.assert_allclose(found.mean, x.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(x.T), atol=1e-6)
  ours = features.Reference("classifier-0", metrics.Moments.of(A), A[:5], (8, 8, 1))
  features.write(tmp_path / "ours.npz", ours)
  other = features.Extractor("classifier-0", inception.run, None)
  np.testing.assert_allclose(
    features.read(str(tmp_path / "ours.npz"), other).moments.covariance, np.cov(A.T), rtol=1e-6
  )
  for name, extractor in (("ours", inception), ("official", other), ("pytorch_fid", other)):
    with pytest.raises(BadInput, match="features of two networks cannot be compared"):
      features.read(str(tmp_path / f"{name}.npz"), extractor)
  with pytest.raises(BadInput, match=r"is of images \(8, 8, 1\), and these are \(16, 16, 1\)"):
    features.read(str(tmp_path / "ours.npz"), other, (16, 16, 1))
  np.savez(tmp_path / "few.npz", pool_3=x[:2048])
  with pytest.raises(BadInput, match="gives 2048 images, too few for the covariance of 2048 features: at least 2049"):
    features.read(str(tmp_path / "few.npz"), inception)
  np.savez(tmp_path / "broken.npz", mu=np.full(2048, np.nan), sigma=np.eye(2048))
  with pytest.raises(BadInput, match="numbers that are not finite"):
    features.read(str(tmp_path / "broken.npz"), inception)
  np.savez(tmp_path / "shapes.npz", mu=np.zeros((2048, 1)), sigma=np.eye(2048))
  with pytest.raises(BadInput, match=r"a mean \(2048, 1\)"):
    features.read(str(tmp_path / "shapes.npz"), inception)
  (tmp_path / "cut.npz").write_bytes((tmp_path / "ours.npz").read_bytes()[:500])
  (tmp_path / "text.npz").write_text("nothing of the kind")
  for name in ("cut", "text", "missing"):
    with pytest.raises(BadInput, match="cannot be read"):
      features.read(str(tmp_path / f"{name}.npz"), inception)
  np.savez(tmp_path / "wrong.npz", images=x)
  with pytest.raises(BadInput, match="holds images; expected mu and sigma, or pool_3"):
    features.read(str(tmp_path / "wrong.npz"), inception)
