"""The runner, one program built on the core: it reads configs, feeds data, places work on devices, saves, reports."""

import warnings

# Libraries that are imported below announce what concerns their makers alone, on each start of a program.
warnings.filterwarnings("ignore", "Protobuf gencode version", UserWarning)
warnings.filterwarnings("ignore", "You are using a Python version", FutureWarning)
