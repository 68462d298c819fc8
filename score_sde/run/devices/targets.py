"""Targets: machines that a run can be planned for, and JAX devices that stand for them.

XLA compiles for a TPU or a GPU on any machine, if the compiler is installed. The figures of a chip are those of its
maker for dense products; `memory` is what the compiler may use.
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from score_sde.errors import InvalidArgument, ScoreSDEError, unknown

GIB = 2**30


class NoCompiler(ScoreSDEError):
  """Error: the compiler for a target is not installed, or does not work here."""


@dataclasses.dataclass(frozen=True)
class Chip:
  """Chip of an accelerator.

  Attributes:
    platform: "tpu", "cuda" or "cpu".
    name: name in words.
    memory: bytes.
    bandwidth: bytes per second between memory and chip; None if unknown.
    flops: operations per second of matrix products, by the dtype of the config; empty if unknown. XLA computes float32
      products in bfloat16 passes on a TPU, and in TF32 on a GPU.
    source: where the figures are from.
    description: fields of XLA's description of a GPU.
  """

  platform: str
  name: str
  memory: float
  bandwidth: float | None = None
  flops: dict[str, float] = dataclasses.field(default_factory=dict)
  source: str = ""
  description: dict[str, Any] = dataclasses.field(default_factory=dict)


def _tpu(name: str, memory: float, bandwidth: float, flops: float, page: str) -> Chip:
  source = f"cloud.google.com/tpu/docs/{page}"
  return Chip("tpu", name, memory, bandwidth, {"float32": flops, "bfloat16": flops}, source)


_HOPPER = {
  "shared_memory_per_core": 233472, "shared_memory_per_block_optin": 232448, "core_count": 132, "fpus_per_core": 128,
  "l2_cache_size": 52428800, "clock_rate_ghz": 1.98, "capability": (9, 0),
}  # fmt: skip
_AMPERE = {
  "shared_memory_per_core": 167936, "shared_memory_per_block_optin": 166912, "core_count": 108, "fpus_per_core": 64,
  "l2_cache_size": 41943040, "clock_rate_ghz": 1.41, "capability": (8, 0),
}  # fmt: skip

CHIPS = {
  "v5e": _tpu("TPU v5e", 15.75 * GIB, 819e9, 197e12, "v5e"),
  "v5p": _tpu("TPU v5p", 95 * GIB, 2765e9, 459e12, "v5p"),
  "v6e": _tpu("TPU v6e", 31.25 * GIB, 1640e9, 918e12, "v6e"),
  "a100": Chip(
    "cuda", "NVIDIA A100-SXM4-80GB", 85100068864, 2039e9, {"float32": 156e12, "bfloat16": 312e12},
    "NVIDIA A100 Tensor Core GPU data sheet", _AMPERE,
  ),
  "h100": Chip(
    "cuda", "NVIDIA H100 80GB HBM3", 84942979072, 3352e9, {"float32": 494.7e12, "bfloat16": 989.4e12},
    "NVIDIA H100 Tensor Core GPU data sheet (SXM)", _HOPPER,
  ),
  "h200": Chip(
    "cuda", "NVIDIA H200 141GB HBM3e", 151397597184, 4800e9, {"float32": 494.7e12, "bfloat16": 989.4e12},
    "NVIDIA H200 Tensor Core GPU data sheet (SXM)", _HOPPER,
  ),
}  # fmt: skip

# What JAX calls the chips whose names it shortens.
_KINDS = {"nvidia h200": "h200", "tpu v5 lite": "v5e", "tpu v5": "v5p", "tpu v5p": "v5p", "tpu v6 lite": "v6e"}


def chip_of(device: Any) -> Chip | None:
  """Returns the chip of a JAX device; None if it is in no table."""
  kind = device.device_kind.lower()
  if kind in _KINDS:
    return CHIPS[_KINDS[kind]]
  return next((chip for chip in CHIPS.values() if chip.name.lower() == kind), None)


# Chips per host in each direction, where a slice is smaller than a host.
_SINGLE = {"1x1": (1, 1, 1), "1x1x1": (1, 1, 1)}


@dataclasses.dataclass(frozen=True)
class Target:
  """Machine that a run is planned for: `devices` of one kind of `chip`.

  Attributes:
    chip: the chip.
    devices: JAX devices that stand for its devices.
    usable: bytes of memory per device that a program can have.
  """

  chip: Chip
  devices: Sequence[Any]
  usable: float


def find_target(text: str) -> Target:
  """Returns the target "local", "tpu:v5e:2x4" (chip and topology) or "cuda:h100:8" (chip and number of GPUs).

  Raises:
    InvalidArgument: if the name is wrong.
    NoCompiler: if the compiler for it is not installed.
  """
  if text == "local":
    return _local()
  leave_accelerators(text)
  kind, _, rest = text.partition(":")
  name, _, shape = rest.partition(":")
  known = {n: c for n, c in CHIPS.items() if c.platform == kind}
  if not known:
    raise InvalidArgument(f"target={text!r} is unknown: give local, tpu:v5e:2x4 or cuda:h100:8.", "target")
  if name not in known:
    raise unknown("target", text, [f"{kind}:{n}:{'8' if kind == 'cuda' else '2x4'}" for n in known])
  chip = known[name]
  if kind == "cuda":
    if not re.fullmatch(r"[1-9]\d*", shape):
      raise InvalidArgument(f"target={text!r} must end with a number of GPUs, such as cuda:{name}:8.", "target")
    # JAX takes three quarters of a GPU's memory, unless this says otherwise.
    share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75))
    return Target(chip, _gpus(text, chip, int(shape)), share * chip.memory)
  if not re.fullmatch(r"\d+(x\d+){1,2}", shape):
    raise InvalidArgument(f"target={text!r} must end with a topology, such as tpu:{name}:2x4.", "target")
  return Target(chip, _tpus(text, name, shape), chip.memory)


def leave_accelerators(text: str) -> None:
  """Leaves the accelerators of this machine alone when the target `text` is another one: a run may be using them.

  JAX looks for accelerators once, when it is first asked for a device: call this before.
  """
  if text != "local" and not os.environ.get("JAX_PLATFORMS"):
    jax.config.update("jax_platforms", "cpu")


def _local() -> Target:
  devices = jax.devices()
  kind, platform = devices[0].device_kind, devices[0].platform
  if platform == "cpu":
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    chip = Chip("cpu", f"{kind} device of this machine", total / len(devices))
    return Target(chip, devices, chip.memory)
  stats = devices[0].memory_stats() or {}
  chip = chip_of(devices[0]) or Chip("cuda" if platform == "gpu" else platform, kind, 0.0)
  usable = float(stats.get("bytes_limit", chip.memory))
  return Target(dataclasses.replace(chip, memory=max(chip.memory, usable)), devices, usable)


def _topology(platform: str, name: str, extra: str, **options: Any) -> Sequence[Any]:
  from jax.experimental import topologies

  try:
    return topologies.get_topology_desc(platform=platform, **options).devices
  except Exception as error:  # the error's type depends on what is missing
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    missing = re.search(r"not installed|not implemented|not found|No such file|[Uu]nknown", text)
    if missing or isinstance(error, ImportError | FileNotFoundError):
      raise NoCompiler(
        f"--target={name} needs a compiler that is not installed: pip install -e '.[{extra}]'."
      ) from error
    raise InvalidArgument(f"target={name!r} has no such topology: {text}", "target") from error


def _tpus(text: str, name: str, shape: str) -> Sequence[Any]:
  # Without a TPU, libtpu must not ask the cloud what this machine is, nor lock it, nor say that it does not know.
  quiet = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
  }
  for variable, value in {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", **quiet}.items():
    os.environ.setdefault(variable, value)
  single = {"chips_per_host_bounds": _SINGLE[shape]} if shape in _SINGLE else {}
  return _topology("tpu", text, "plan-tpu", topology_name=f"{name}:{shape}", **single)


def _gpus(text: str, chip: Chip, count: int) -> Sequence[Any]:
  return _topology("cuda", text, "plan-gpu", topology=f"1x1x{count}", target_config=describe_gpu(chip))


def describe_gpu(chip: Chip) -> str:
  """Returns XLA's description of a GPU as text: the protocol buffer GpuTargetConfigProto."""
  own = dict(chip.description)
  major, minor = own.pop("capability")
  fields = {
    "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49152,
    "threads_per_core_limit": 2048, "block_dim_limit_x": 2147483647, "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535, "registers_per_core_limit": 65536, "registers_per_block_limit": 65536,
    "memory_bandwidth": int(chip.bandwidth or 0), "device_memory_size": int(chip.memory), **own,
  }  # fmt: skip
  lines = "\n".join(f"  {name}: {value}" for name, value in fields.items())
  capability = f"  cuda_compute_capability {{ major: {major}" + (f" minor: {minor} }}" if minor else " }")
  return (
    f'gpu_device_info {{\n{lines}\n{capability}\n}}\nplatform_name: "CUDA"\n'
    f'dnn_version_info {{ major: 9 minor: 10 patch: 0 }}\ndevice_description_str: "{chip.name}"\n'
  )


# Options of XLA that make a plan quick and change neither the memory nor the work of a program: no search for the
# fastest machine code of each convolution.
QUICK: dict[str, dict[str, Any]] = {
  "tpu": {"xla_jf_convolution_performance_target": 0.5},
  "cuda": {"xla_gpu_autotune_level": 0},
  "cpu": {},
}
# Without that search, XLA may choose tiles for a product on a GPU that do not divide it. Then cuBLAS computes it.
WITHOUT_TILES = {"xla_gpu_enable_triton_gemm": False}


# --- reading a compiled program ---------------------------------------------------------------------------------------

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}
_COLLECTIVE = re.compile(
  r"= (\(.*?\)|\S+) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(\S+) = (\([^=]*?\)|\S+) ([a-z][\w-]*)\((.*)$", re.MULTILINE)


def size_of(shapes: str) -> int:
  """Returns the bytes of the arrays in a text of XLA, such as "(f32[2,3]{1,0}, s32[])"."""
  found = re.findall(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]", shapes)
  return sum(_BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in found)


def _bodies(hlo: str) -> tuple[dict[str, str], str]:
  """Returns {name: instructions} of the computations of a program, and the name of the one that is run."""
  hlo = re.sub(r"/\*index=\d+\*/", "", hlo)  # XLA counts the arrays of long tuples
  bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n(.*?)^\}", hlo, re.MULTILINE | re.DOTALL))
  entry = re.search(r"^ENTRY %?([\w.-]+)", hlo, re.MULTILINE)
  return bodies, entry[1] if entry else ""


def _repeats(instruction: str) -> int:
  """Returns how often a loop runs its body; 1 if that is not known, and for other instructions."""
  times = re.search(r'known_trip_count":\{"n":"(\d+)"', instruction)
  return int(times[1]) if times else 1


def collectives(hlo: str) -> dict[str, dict[str, int]]:
  """Returns {kind: {"count", "bytes"}} of a compiled program: its collectives and the bytes they leave on a device.

  Those in a loop count as often as the loop runs them.
  """
  bodies, entry = _bodies(hlo)
  found: dict[str, dict[str, int]] = {}

  def add(name: str, times: int) -> None:
    for line in bodies.get(name, "").splitlines():
      if collective := _COLLECTIVE.search(line):
        shapes, kind, start = collective.groups()
        arrays = re.findall(r"\w+\[\d[\d,]*\]", shapes)
        if start and kind != "all-reduce":  # operands, then results
          shapes = " ".join(arrays[len(arrays) // 2 :])
        total = found.setdefault(kind, {"count": 0, "bytes": 0})
        total["count"] += times
        total["bytes"] += times * size_of(shapes)
      elif not re.search(r" [\w-]+-(done|update)\(", line):  # they name what their start has called
        for called in re.findall(r"\b(?:body|calls|to_apply)=%?([\w.-]+)", line):
          add(called, times * _repeats(line))
        for branches in re.findall(r"\bbranch_computations=\{(.*?)\}", line):
          for called in re.findall(r"[\w.-]+", branches):
            add(called, times)

  add(entry, 1)
  return found


_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota"}


def bytes_accessed(hlo: str) -> int:
  """Returns the bytes that the instructions of a compiled program read and write: an estimate from its text.

  Each instruction reads its operands and writes its result once; those within a fusion cost nothing. Used where XLA's
  own count is missing: it has none for a GPU that is not there, and none for the calls of libraries such as cuDNN.
  """
  return _bytes_of_body(*_bodies(hlo))


def _bytes_of_body(bodies: dict[str, str], name: str) -> int:
  shapes: dict[str, str] = {}
  total = 0
  for result, shape, kind, rest in _INSTRUCTION.findall(bodies.get(name, "")):
    shapes[result] = shape
    if kind in _FREE or kind.endswith("-done"):
      continue
    if kind in ("while", "call"):
      body = re.search(r"(?:body|to_apply)=%?([\w.-]+)", rest)
      total += _repeats(rest) * (_bytes_of_body(bodies, body[1]) if body else 0)
      continue
    if kind == "custom-call":  # the scratch space of a library is no result
      shape = re.sub(r"[su]8\[\d+\]", "", shape)
    operands = re.findall(r"%([\w.-]+)", rest.split("), ")[0])
    total += size_of(shape) + sum(size_of(shapes.get(o, "")) for o in operands)
  return total


def measured_peak(dtype: str = "float32") -> tuple[float, float]:
  """Returns (operations per second of a matrix product in `dtype`, bytes per second of a copy) of this machine."""

  def seconds(fn: Any, x: Any) -> float:
    x = fn(x).block_until_ready()
    runs = []
    for _ in range(5):
      start = time.perf_counter()
      x = fn(x).block_until_ready()
      runs.append(time.perf_counter() - start)
    return min(runs)

  n, m = 1536, 2**25
  product = seconds(jax.jit(lambda x: x @ x), jax.numpy.full((n, n), 1 / n, dtype))
  copy = seconds(jax.jit(lambda x: x + 1, donate_argnums=0), jax.numpy.ones(m))  # in place: no new pages of memory
  return 2 * n**3 / product, 8 * m / copy
