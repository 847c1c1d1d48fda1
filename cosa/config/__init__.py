"""Typed configuration: the defaults of the paper, YAML over them, ``key=value`` over both."""

from cosa.config.loading import from_dict, load_config, load_saved, to_dict, to_yaml, upgraded
from cosa.config.schedule import settled
from cosa.config.sections import (
    AugmentConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    LossConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    TeacherConfig,
    ThresholdConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig", "Config", "DataConfig", "EvaluateConfig", "LossConfig", "MethodConfig",
    "ModelConfig", "OptimizerConfig", "TeacherConfig", "ThresholdConfig", "TrainConfig",
    "from_dict", "load_config", "load_saved", "settled", "to_dict", "to_yaml", "upgraded",
]
