"""The commands: each reads its own flags, then calls one function."""

import difflib
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

from absl import app, flags
from ml_collections import ConfigDict

import score_sde
from score_sde.run import devices, guide, pipeline, plan, training
from score_sde.run.checkpoints import exists
from score_sde.run.cli import helps
from score_sde.run.cli.arguments import (
  CONFIG,
  MODE,
  STORED,
  TARGET,
  TYPED,
  WORKDIR,
  check_effects,
  config_file,
  flags_of,
  overridden,
  overrides,
  parse,
  values_of,
)  # fmt: skip
from score_sde.run.cli.calls import call, run_tool
from score_sde.run.cli.endings import fail
from score_sde.run.config import BadInput, resolve
from score_sde.run.devices import programs, targets
from score_sde.run.storage import path_of
from score_sde.run.workdir import copy_stderr, make_file, make_workdir, note_command, recalled

_HELP_FLAGS = {"-h", "--help", "--helpfull"}


def _shows_version(arguments: Sequence[str]) -> bool:
  """Prints the version if `arguments` ask for it. Returns whether they do."""
  asked = "--version" in arguments
  if asked:
    print(f"score_sde {score_sde.__version__}")
  return asked


def run() -> None:
  """Runs run.py and the commands train, sample and eval."""
  if set(sys.argv[1:]) & _HELP_FLAGS:
    helps.show(f"{helps.of_program(COMMANDS)}\n\n{helps.of_flags()}")
    return
  if _shows_version(sys.argv[1:]):
    return

  def action() -> None:
    workdir = os.path.expanduser(WORKDIR.value or "")
    if MODE.value == "plan":
      targets.leave_accelerators(TARGET.value)
    config = resolve(recalled(CONFIG.value, workdir))
    check_effects(config, overridden(sys.argv))
    if MODE.value == "plan":
      file, _, argument = config_file(sys.argv).partition(":")
      name = pathlib.Path(argument).parent.name if file == STORED else pathlib.Path(file).stem
      plan.main(config, TARGET.value, workdir or None, name)
      return
    if devices.is_first_host() and (MODE.value == "train" or exists(workdir)):
      note_command(make_workdir(workdir), TYPED)
    programs.cache_programs(os.path.join(workdir, "compiled"))
    if devices.host_count() > 1:
      copy_stderr(make_workdir(workdir))
    if MODE.value == "train":
      training.train(config, workdir)
    elif MODE.value == "sample":
      guide.sample(config, workdir)
    else:
      guide.evaluate(config, workdir)

  app.run(lambda _: call(action), flags_parser=parse)


def _import() -> None:
  """Runs `import`. Without a config, that of the diffusers folder or pipeline SOURCE is taken."""
  from score_sde.run.checkpoints.transfer import import_weights

  value_of_flag = lambda before: before.startswith("-") and "=" not in before
  words = [a for before, a in pairwise(["", *sys.argv[1:]]) if not a.startswith("-") and not value_of_flag(before)]
  if not values_of(sys.argv, "config") and words:
    sys.argv.insert(1, f"--config={os.path.abspath(pipeline.__file__)}:{os.path.expanduser(words[0])}")
  run_tool(import_weights, ("SOURCE",))


def _export() -> None:
  from score_sde.run.checkpoints.transfer import export_weights

  flags.DEFINE_bool("ema_only", False, "Write only the averaged (EMA) parameters. Sampling needs no others.")
  run_tool(lambda *a: export_weights(*a, ema_only=flags.FLAGS.ema_only), ("OUTPUT.safetensors",))


def _stats() -> None:
  from score_sde.run.features import stats

  run_tool(stats, ("OUTPUT.npz",), needs_workdir=False)


def _data() -> None:
  from score_sde.run.report.preview import show

  flags.DEFINE_string("output", "data.png", "The picture.")

  def action(config: ConfigDict, command: str) -> None:
    if command != "show":
      raise BadInput(f"data {command!r} is no command: use python -m score_sde data show --config=FILE.")
    show(config, os.path.expanduser(str(flags.FLAGS.output)))

  run_tool(action, ("show",), needs_workdir=False)


def _suggest_sigmas() -> None:
  from score_sde.run.noise_scales import suggest_sigmas

  run_tool(suggest_sigmas, needs_workdir=False)


def _fid() -> None:
  from score_sde.run.evaluate.folders import fid

  flags.DEFINE_string("features", "inception", "The network: inception, or the workdir of a classifier.")
  flags.DEFINE_string("inception_path", "", "Weights of inception; unset: downloaded once.")
  flags.DEFINE_integer("image_size", None, "Resize the central squares of images to this many pixels.", lower_bound=1)

  def action(arguments: Sequence[str]) -> None:
    if len(arguments) != 3:
      fail("Give two sets of images, A and B: folders, .zip or .npz files.")
    a, b, network, weights = map(os.path.expanduser, [*arguments[1:], flags.FLAGS.features, flags.FLAGS.inception_path])
    call(lambda: fid(a, b, network, weights, flags.FLAGS.image_size))

  app.run(action, flags_parser=flags_of)


def _ema() -> None:
  from score_sde.run.averages import reconstruct

  flags.DEFINE_list("std", ["0.05", "0.1", "0.15"], "Widths of the averages, in units of the run's length.")

  def action(config: ConfigDict, workdir: str) -> None:
    reconstruct(config, workdir, flags.FLAGS.std)

  run_tool(action)


def _sweep() -> None:
  from score_sde.run.sweep import sweep

  flags.DEFINE_multi_string("set", [], "KEY=VALUE,VALUE,...: values to combine. Repeat it for more keys.")
  flags.DEFINE_bool("run", False, "Run the commands one after the other instead of printing them.")
  flags.DEFINE_string("slurm", "", "Write a SLURM array script to this file.")

  def main(arguments: Sequence[str]) -> None:
    passed = overrides(sys.argv)
    check = lambda config, keys: check_effects(config, [*overridden(["", *passed]), *keys])
    given = flags.FLAGS
    call(
      lambda: sweep(
        CONFIG.value, config_file(sys.argv), os.path.expanduser(str(WORKDIR.value)), given.set, passed,
        run=given.run, slurm=os.path.expanduser(str(given.slurm)), check=check,
      )
    )  # fmt: skip

  app.run(main, flags_parser=parse)


def _compare() -> None:
  from score_sde.run.evaluate.compare import compare, with_reports
  from score_sde.run.report.page import write_comparison

  flags.DEFINE_string("html", "", "Write a page with curves, pictures and settings of the runs to this file.")

  def action(arguments: Sequence[str]) -> None:
    if len(arguments) < 2:
      fail("Give one RUN or several: workdirs, or reports in them.")
    runs, page = list(map(os.path.expanduser, arguments[1:])), os.path.expanduser(str(flags.FLAGS.html))

    def show() -> None:
      kept = with_reports(*runs)
      print(compare(*kept))
      if page:
        write_comparison(list(kept), path_of(make_file(page)))
        print(f"\nWrote {page}.")

    call(show)

  app.run(action, flags_parser=flags_of)


def _mode(name: str) -> Callable[[], None]:
  def command() -> None:
    sys.argv.insert(1, f"--mode={name}")
    run()

  return command


# {name: (arguments, help, command)}.
COMMANDS: dict[str, tuple[str, str, Callable[[], None]]] = {
  "train": ("--config=FILE --workdir=FOLDER", "train, or resume where the newest checkpoint stands", _mode("train")),
  "sample": ("--config=FILE --workdir=FOLDER", "draw samples of a checkpoint, conditioned or not", _mode("sample")),
  "eval": ("--config=FILE --workdir=FOLDER", "measure loss, bits/dim and samples of checkpoints", _mode("eval")),
  "plan": (
    "--config=FILE [--target=local|tpu:v5e:2x4|cuda:h100:8] [--workdir=FOLDER]",
    "print what a run costs on a machine, without it",
    _mode("plan"),
  ),
  "sweep": (
    "--config=FILE --workdir=FOLDER --set KEY=VALUE,VALUE,... [--set ...] [--run | --slurm=FILE.sh]",
    "print or run one training per combination of settings",
    _sweep,
  ),
  "compare": ("RUN... [--html=FILE.html]", "print evaluations side by side, and what differs", _compare),
  "import": (
    "SOURCE [--config=FILE] --workdir=FOLDER",
    "make published weights a run; diffusers pipelines need no config",
    _import,
  ),
  "export": (
    "OUTPUT.safetensors --config=FILE --workdir=FOLDER [--ema_only]",
    "write a run's weights to a file",
    _export,
  ),
  "ema": (
    "--config=FILE --workdir=FOLDER [--std=0.05,0.1,0.15]",
    "average a run's parameters over other widths",
    _ema,
  ),
  "data": ("show --config=FILE [--output=data.png]", "draw the data as the network will see them", _data),
  "stats": ("OUTPUT.npz --config=FILE", "write the statistics that FIDs compare with", _stats),
  "fid": (
    "A B [--features=inception|WORKDIR] [--inception_path=FILE] [--image_size=N]",
    "FID of two folders of images",
    _fid,
  ),
  "suggest-sigmas": ("--config=FILE", "suggest noise levels for a data set (NCSNv2)", _suggest_sigmas),
}


def main() -> None:
  """Runs `python -m score_sde`."""
  arguments = sys.argv[1:]
  if not arguments or arguments[0] in ("-h", "--help", "--helpfull", "help"):
    helps.show(helps.of_program(COMMANDS))
    return
  if _shows_version(arguments[:1]):
    return
  name = sys.argv.pop(1)
  if name not in COMMANDS:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    fail(f"{name!r} is no command; choose one of {', '.join(COMMANDS)}.{hint} --help lists them.")
  if _shows_version(sys.argv[1:]):
    return
  if set(sys.argv[1:]) & _HELP_FLAGS:
    helps.show(helps.of_command(name, *COMMANDS[name][:2]))
    return
  sys.argv[0] = f"python -m score_sde {name}"
  COMMANDS[name][2]()
