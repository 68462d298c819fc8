"""Consistency models as runs: training from a teacher, resuming, samples, guidance, import, and what is refused."""

import json

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from runs import changed, tiny

import score_sde as ss
from configs import quickstart
from configs.consistency import cifar10_cd, cifar10_ct, cifar10_ect, digits, fashion_mnist
from score_sde.run import checkpoints, evaluate, guide, plan, train_step, training
from score_sde.run.checkpoints import transfer
from score_sde.run.cli.arguments import check_effects
from score_sde.run.config import BadInput, resolve, signature
from score_sde.run.experiment import build

SMALL = {
  "training__batch_size": 16, "training__n_jitted_steps": 2, "training__log_freq": 2, "training__eval_freq": 4,
  "training__snapshot_freq": 8, "training__snapshot_freq_for_preemption": 4, "training__final_report": False,
  "training__snapshot_sampling": False, "sampling__num_steps": 4, "sampling__num_samples": 8, "eval__batch_size": 16,
  "eval__num_examples": 16, "optim__warmup": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """The workdir of a score model after a few steps."""
  folder = str(tmp_path_factory.mktemp("teacher") / "run")
  training.train(tiny(**SMALL, training__n_iters=8, eval__enable_bpd=False), folder)
  return folder


def student(teacher, **values):
  config = changed(digits.get_config(), model__nf=32, model__num_res_blocks=1, **SMALL)
  given = {"training__teacher": teacher, "training__n_iters": 8, "sampling__num_steps": 2}
  return changed(config, **given | values)


OBJECTIVES = {
  "cd": {"training__target_rate": 0.5}, "ct": {}, "ict": {}, "ect": {"sampling__start_sigma": 40.0}, "scm": {},
  "progressive": {
    "training__first_scales": 2, "training__last_scales": 8, "sampling__method": "ddim", "sampling__grid": "karras",
    "sampling__noise_removal": False,
  },
}  # fmt: skip


PROGRESSIVE = {"training__objective": "progressive", **OBJECTIVES["progressive"]}


def arrays_of(folder, config):
  experiment = build(config)
  with checkpoints.manager(folder) as opened:
    return train_step.restore_state(opened, experiment, folder)


SLOW, LONGEST = pytest.mark.slow, (pytest.mark.slow, pytest.mark.longest)


@pytest.mark.thorough
@pytest.mark.parametrize("objective", [
  "ect", pytest.param("cd", marks=SLOW), pytest.param("scm", marks=LONGEST), pytest.param("progressive", marks=LONGEST),
  pytest.param("ct", marks=LONGEST), pytest.param("ict", marks=LONGEST),
])  # fmt: skip
def test_every_objective_trains_samples_and_is_measured(tmp_path, teacher, objective):
  config = student(teacher, training__objective=objective, **OBJECTIVES[objective])
  folder = str(tmp_path / "run")
  training.train(config, folder)
  evaluate.sample(config, folder)
  evaluate.evaluate(config, folder)
  assert (tmp_path / "run" / "samples.png").exists()
  row = json.loads((tmp_path / "run" / "report.json").read_text())["checkpoints"][-1]
  assert np.isfinite(row["loss"]) if objective != "progressive" else "loss" not in row
  rows = np.genfromtxt(tmp_path / "run" / "metrics.csv", delimiter=",", names=True)
  assert np.isfinite(rows["eval_loss"]).any()
  model = ss.load(folder)
  if objective == "progressive":  # the only noise levels that the student knows
    assert (model.solver, model.steps, model.grid) == (ss.DDIM(noise_removal=False), 2, "karras")
    for call in (model.encode, model.decode, lambda x: model.log_likelihood(jax.random.key(0), x)):
      with pytest.raises(ss.InvalidArgument, match="student of progressive distillation"):
        call(jnp.zeros((2, 8, 8, 1)))
    known = ss.guidance.inpaint(jnp.eye(8)[None, :, :, None], jnp.zeros((1, 8, 8, 1)))
    assert np.isfinite(model.sample(jax.random.key(0), 2, measurement=known)).all()  # by replacement
  else:
    assert model.solver == ss.Consistency(start_sigma=config.sampling.start_sigma)
  assert np.isfinite(model.sample(jax.random.key(0), 4)).all()


@pytest.mark.parametrize("objective", [
  pytest.param("cd", marks=LONGEST), pytest.param("progressive", marks=SLOW),
])  # fmt: skip
def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path, teacher, objective):
  """Including the parameters of the targets. Stages of "progressive" end at steps 4 and 8."""
  config = student(teacher, training__objective=objective, **OBJECTIVES[objective])
  config.training.final_report = objective == "cd"  # its loss needs the teacher after training, too
  whole, halves = str(tmp_path / "whole"), str(tmp_path / "halves")
  training.train(config, whole)
  # The schedules follow n_iters, so the first half is a run to the same end that is cut short.
  training.train(config, halves)
  with checkpoints.manager(halves) as opened:
    checkpoints.remove_newer(opened, 4)
  training.train(config, halves)
  one, two = (arrays_of(folder, config) for folder in (whole, halves))
  assert int(one.step) == 8
  assert one.target is not None
  same = jax.tree.map(lambda a, b: bool((a == b).all()), (one.params, one.target), (two.params, two.target))
  assert all(jax.tree.leaves(same))
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), one.params, one.target)
  assert any(jax.tree.leaves(moved))


def test_training_starts_from_the_teachers_parameters_unless_told_otherwise(teacher):
  config = student(teacher)
  experiment = build(config)
  trained = experiment.teacher.params
  state = train_step.start_state(experiment)
  assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), state.params, trained)))
  anew = train_step.start_state(build(student(teacher, training__finetune=False)))
  alone = build(student("", training__objective="ect", training__finetune=False))  # from a new network, without one
  assert alone.teacher is None
  with pytest.raises(BadInput, match=r"ect with --config.training.finetune=False"):
    build(student("", training__objective="ect"))
  assert not all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), anew.params, trained)))
  kept = train_step.start_state(build(student(teacher, training__objective="cd")))
  assert kept.teacher is not None
  assert "teacher" not in train_step.saved_form(kept)


def test_the_teachers_gradient_is_not_needed_and_its_parameters_stay(tmp_path, teacher):
  config = student(teacher, training__objective="cd")
  experiment = build(config)
  state = train_step.start_state(experiment)
  before = jax.tree.map(np.asarray, state.teacher)
  batch = {"image": np.zeros((2, 16, 8, 8, 1), np.uint8), "label": np.zeros((2, 16), np.int32)}
  state, _ = train_step.make_train_steps(experiment)(
    state, batch | {"index": np.tile(np.arange(16, dtype=np.int32), (2, 1))}
  )
  assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), before, state.teacher)))


@pytest.mark.thorough
def test_samples_do_not_need_the_teacher_anymore(tmp_path, teacher):
  import shutil

  moved = str(tmp_path / "moved")
  shutil.copytree(teacher, moved)
  config = student(moved, training__objective="cd")
  folder = str(tmp_path / "run")
  training.train(config, folder)
  shutil.rmtree(moved)
  evaluate.sample(config, folder)
  assert ss.load(folder).sample(jax.random.key(0), 2).shape == (2, 8, 8, 1)
  with pytest.raises(BadInput, match="does not exist"):
    training.train(config, str(tmp_path / "other"))
  with pytest.raises(BadInput, match=r"needs its teacher.*enable_loss"):
    evaluate.evaluate(config, folder)


@pytest.mark.thorough
def test_zero_shot_inpainting_by_the_command_for_guidance(tmp_path, teacher):
  config, folder = student(teacher), str(tmp_path / "run")
  training.train(config, folder)
  guided = changed(
    student(teacher, sampling__num_steps=6), guidance__task="inpaint", guidance__method="replacement",
    guidance__num_inputs=2, guidance__samples_per_input=2,
  )  # fmt: skip
  guide.sample(guided, folder)
  with np.load(tmp_path / "run" / "guided.npz") as found:
    known = found["inputs"][:, None, :, :4] - found["samples"][:, :, :, :4].astype(int)
    assert np.abs(known).max() <= 8  # rounding of 17 gray levels
  with pytest.raises(BadInput, match="needs a score"):
    resolve(changed(guided, guidance__method="pigdm"))


def test_a_plan_counts_target_and_teacher(teacher):
  config = student(teacher, training__objective="cd", training__target_rate=0.9)
  known = plan.plan(config, programs=("train_step",))
  assert known["memory"]["teacher"] == known["memory"]["target"] == known["memory"]["parameters"] > 0


@pytest.mark.parametrize(("values", "message"), [
  ({"training__teacher": "/nowhere"}, "does not exist"),
  ({"training__teacher": "", "training__objective": "cd"}, "give its workdir"),
  ({"sampling__method": "unipc"}, "'consistency' is the sampler"),
  ({"eval__enable_bpd": True}, "no likelihood"),
  ({"training__continuous": False}, "continuous=True"),
  ({"guidance__task": "interpolate"}, "cannot encode"),
  ({"guidance__task": "edit", "sampling__start_sigma": 40.0}, "start_sigma unset"),
  ({"guidance__task": "class", "guidance__label": 3}, "guidance.label and sampling.condition alone choose"),
  (PROGRESSIVE | {"eval__enable_bpd": True}, "has no likelihood"),
  (PROGRESSIVE | {"guidance__task": "interpolate"}, "cannot encode"),
  (PROGRESSIVE | {"guidance__task": "inpaint"}, "needs a score"),
  ({"model__parameterization": "noise"}, "needs 'edm'"),
  ({"training__sde": "subvpsde"}, "does not fit this config: .*the SDE"),
  ({"model__num_res_blocks": 2}, "does not fit this config: .*model.num_res_blocks"),
])  # fmt: skip
def test_what_does_not_fit_is_named_before_any_work(tmp_path, teacher, values, message):
  with pytest.raises(BadInput, match=message):
    training.train(student(teacher, **values), str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_consistency_models_teach_no_one_and_are_no_score_models(tmp_path, teacher):
  config, folder = student(teacher), str(tmp_path / "run")
  training.train(config, folder)
  with pytest.raises(BadInput, match="is no score model"):
    build(student(folder))
  with pytest.raises(BadInput, match="'consistency' is the sampler"):
    resolve(changed(quickstart.get_config(), sampling__method="consistency"))
  assert signature(resolve(config))["training.task"] == "consistency"


@pytest.mark.thorough
def test_checkpoints_of_the_official_code_are_imported(tmp_path):
  """Its state has params, params_ema and target_params; its Fourier features see log(sigma) / 4."""
  config = cifar10_cd.get_config()
  config.model.nf, config.model.num_res_blocks, config.data.image_size = 16, 1, 16
  config.model.ch_mult = (1, 2)
  config.training.teacher = ""
  config.training.objective = "ict"
  experiment = build(config)
  shapes = experiment.abstract_params()
  draw = lambda seed: jax.tree.map(lambda s: np.asarray(jax.random.normal(jax.random.key(seed), s.shape)) / 9, shapes)
  first, ema = draw(0), draw(1)
  moments = {"0": {"count": np.int32(7), "mu": first, "nu": ema}, "1": {}, "2": {}}
  state = {"step": 7, "lr": 4e-4, "ema_rate": 0.9999, "params": first, "params_ema": ema, "target_params": first,
           "model_state": {}, "opt_state": moments, "rng_state": np.zeros(2, np.uint32)}  # fmt: skip
  source = tmp_path / "checkpoint_80"
  source.write_bytes(flax.serialization.msgpack_serialize(state))
  transfer.import_weights(config, str(tmp_path / "run"), str(source))
  model = ss.load(str(tmp_path / "run"))
  # The official function, with features of log(sigma) / 4: here W log(sigma), where W is a quarter of theirs.
  np.testing.assert_allclose(
    model.params["GaussianFourierProjection_0"]["W"], ema["GaussianFourierProjection_0"]["W"] / 4, rtol=1e-6
  )
  flat, expected = flatten_dict(model.params), flatten_dict(ema)
  assert all(np.array_equal(flat[k], expected[k]) for k in flat if "GaussianFourier" not in k[0])
  sigma, smallest, width = 3.0, 0.002, 0.5
  x = sigma * jax.random.normal(jax.random.key(2), (2, 16, 16, 3))
  raw = experiment.network.apply({"params": model.params}, x / np.sqrt(sigma**2 + width**2), jnp.full(2, sigma))
  gap = sigma - smallest
  by_hand = width**2 / (gap**2 + width**2) * x + gap * width / np.sqrt(sigma**2 + width**2) * raw
  t = experiment.sde.time_of_log_snr(jnp.full(2, -2 * np.log(sigma)))
  np.testing.assert_allclose(model.model.data(model.params, x, t), by_hand, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("flag", "value"), [("noise_removal", False), ("tau", 0.5)])
def test_options_that_a_consistency_sampler_does_not_have_are_refused(teacher, flag, value):
  config = resolve(student(teacher, **{f"sampling__{flag}": value}))
  with pytest.raises(BadInput, match=f"sampling.{flag}"):
    check_effects(config, [f"sampling.{flag}"])


def test_the_command_line_and_python_take_the_same_levels():
  """By default they are even in the logarithm, also for the networks of EDM."""
  for module in (cifar10_cd, cifar10_ct):
    config = module.get_config()
    config.training.teacher, config.sampling.num_steps, config.sampling.sigmas = "", 2, ()
    config.training.objective = "ict"
    grid, sde = build(config).sampler.grid, build(config).sde
    own = ss.make_grid(ss.Consistency.default_grid, sde, 2, config.sampling.eps or sde.eps)
    np.testing.assert_allclose(grid.stop, own.stop, rtol=1e-5)


def test_configs_have_the_official_settings():
  """Of openai/consistency_models_cifar10: configs/cifar10_ve_cd.py and cifar10_ve_ct_adaptive.py."""
  official = {
    "nf": 128, "ch_mult": (2, 2, 2), "num_res_blocks": 4, "attn_resolutions": (16,), "resamp_with_conv": True,
    "fir": True, "skip_rescale": True, "resblock_type": "biggan", "progressive": "none", "dropout": 0.0,
    "progressive_input": "residual", "progressive_combine": "sum", "init_scale": 0.0, "sigma_min": 0.002,
    "sigma_max": 80.0, "sigma_data": 0.5, "ema_rate": 0.9999, "fourier_scale": 4.0,
  }  # fmt: skip
  config = resolve(cifar10_cd.get_config())
  assert {k: config.model[k] for k in official} == official
  assert (config.training.batch_size, config.optim.lr, config.optim.optimizer) == (512, 4e-4, "RAdam")
  assert (config.training.last_scales, config.training.ode_step) == (18, "heun")
  ct = resolve(changed(cifar10_ct.get_config(), training__objective="ct"))
  assert (ct.training.first_scales, ct.training.last_scales, ct.training.target_rate) == (2, 150, 0.9)
  for file in (cifar10_ct, cifar10_ect, fashion_mnist):
    assert resolve(file.get_config()).training.task == "consistency"
