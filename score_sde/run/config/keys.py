"""Keys of a config and their defaults, derived from the objects that read them, see `readers`."""

from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from score_sde.run.config.readers import keys, type_of
from score_sde.run.config.resolve import FOLLOWS


def default_config() -> ConfigDict:
  """Returns the base of every config: all keys with their defaults, locked.

  Keys whose defaults depend on other keys are placeholders. `resolve` fills those that are not set.
  """
  config = ConfigDict()
  config.seed = 42
  for key, readers in keys().items():
    section, name = key.split(".")
    if section not in config:
      config[section] = ConfigDict()
    reader, field, _ = readers[0]
    unset = field.default is None or key in FOLLOWS
    # Values of several types, such as data.image_size, are of type Any.
    mixed = type_of(reader, field) is Any
    set_to = FieldReference(field.default, field_type=object) if mixed else field.default
    config[section][name] = placeholder(object if mixed else type_of(reader, field)) if unset else set_to
  return config.lock()


def as_dict(config: ConfigDict) -> dict[str, Any]:
  """Returns a config as a plain nested dict, for JSON."""
  return {k: as_dict(v) if isinstance(v, ConfigDict) else v for k, v in config.items()}
