"""Every setting: frozen pydantic models, one a command, and the strict YAML loader.

A YAML file holds what differs from the defaults here; `KEY=VALUE` on the command line comes on top.
Library code never sees these classes: the commands hand it plain values.
"""

from sscl.config.audit import AuditConfig
from sscl.config.augmentation import AugmentConfig, FinetuneAugmentConfig
from sscl.config.cache import CacheConfig
from sscl.config.compare import CompareConfig, CompareEntry
from sscl.config.compatibility import Change, changed_keys
from sscl.config.data import DataConfig, SourceConfig, SynthConfig
from sscl.config.demo import ConfigsConfig, DemoConfig
from sscl.config.doctor import CompletionConfig, DoctorConfig
from sscl.config.download import DownloadConfig
from sscl.config.encoders import EncoderConfig, EncodersConfig, ModelConfig, ProjectionConfig
from sscl.config.export import EmbedConfig, ExportConfig
from sscl.config.help import help_text
from sscl.config.loader import load_config, read_yaml, validate
from sscl.config.maps import MapConfig
from sscl.config.messages import shown
from sscl.config.predict import PredictConfig
from sscl.config.probe import ProbeConfig, ProbeEncoder, ProbeSet
from sscl.config.project import InitConfig, TrainConfig
from sscl.config.report import ReportConfig
from sscl.config.results import EvalConfig, GradcamConfig
from sscl.config.sections import Changes, Section, keys, plain
from sscl.config.slides import InspectSlidesConfig, SynthSlidesConfig, TileSlidesConfig, ViewSlidesConfig
from sscl.config.training import (
    FinetuneConfig,
    FinetuneTrainConfig,
    HealthConfig,
    InspectConfig,
    LogConfig,
    PretrainConfig,
    PretrainTrainConfig,
    sources_of,
)
