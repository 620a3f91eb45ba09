"""The configuration of a run: typed, validated, printable, saved with the run.

Commands, runs and what is done with runs read it; everything else takes plain arguments.
"""

from dynavit.config.files import changed_keys, is_saved_config, load_config, save_config
from dynavit.config.overrides import named_settings
from dynavit.config.schema import (
    Config,
    DataConfig,
    EvaluateConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)

__all__ = [
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "TrainConfig",
    "changed_keys",
    "is_saved_config",
    "load_config",
    "named_settings",
    "save_config",
]
