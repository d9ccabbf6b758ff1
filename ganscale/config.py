"""What a run is, as validated data.

A ``RunConfig`` is frozen and knows nothing about tensors, processes or directories. Amounts of progress are in kimg
(thousands of real images shown to the critic), batches are global (summed over all workers). Unknown keys are refused
with the nearest known ones, and combinations that cannot train are refused here, before anything starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ganscale.errors import ConfigError, nearest

LossName = Literal["minimax", "non-saturating", "least-squares", "hinge", "wasserstein", "relativistic"]
AutoencodingName = Literal["reconstruction", "elbo"]
PenaltyName = Literal["none", "wgan-gp", "wgan-gp-one-sided", "r1", "r2", "r1-r2"]
ModelName = Literal["mlp", "dcgan", "autoencoder", "linear-autoencoder"]
ScoreName = Literal["fd", "kd", "precision", "recall", "density", "coverage", "modes-hit", "within-4-sigma"]
MetricName = Literal["fd", "kd", "prdc"]
ExtractorName = Literal["in-domain-cnn"]
ExplainerName = Literal[
    "integrated-gradients",
    "kernel-shap",
    "exact-shapley",
    "lime",
    "occlusion",
    "saliency",
    "smoothgrad",
    "input-x-gradient",
    "expected-gradients",
    "grad-cam",
    "layer-conductance",
    "mprt",
    "roar",
    "directions",
    "latent-counterfactual",
    "dissect",
    "feature-vis",
    "feature-maps",
    "probe-classifier",
    "class-generation",
    "style-mixing",
    "layer-swap",
    "layer-noise",
    "layer-ablation",
    "layer-shapley",
    "attfind",
    "attack-input",
    "attack-latent",
    "explanation-robustness",
    "autoencoder",
    "disentanglement",
    "retrieval",
    "membership",
    "conv-interaction",
]
Impl = Literal["auto", "reference", "fused"]

LOSS_NAMES: tuple[str, ...] = get_args(LossName)
AUTOENCODING_NAMES: tuple[str, ...] = get_args(AutoencodingName)
PENALTY_NAMES: tuple[str, ...] = get_args(PenaltyName)
MODEL_NAMES: tuple[str, ...] = get_args(ModelName)
METRIC_NAMES: tuple[str, ...] = get_args(MetricName)
EXTRACTOR_NAMES: tuple[str, ...] = get_args(ExtractorName)
EXPLAINER_NAMES: tuple[str, ...] = get_args(ExplainerName)


def _split_commas(value: object) -> object:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _read_resolution(value: object) -> object:
    """Accept ``28``, ``"28"``, ``"28x32"`` (height x width) or a pair."""
    if isinstance(value, str):
        value = tuple(value.lower().split("x"))
    if isinstance(value, int):
        value = (value,)
    if isinstance(value, (tuple, list)) and len(value) == 1:
        value = (value[0], value[0])
    return value


def _read_seconds(value: object) -> object:
    """Accept ``"30s"`` for 30."""
    return value.strip().removesuffix("s").strip() if isinstance(value, str) else value


def _read_number(value: object) -> object:
    """A literal number may come as text, as the command line gives it."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


Side = Annotated[int, Field(ge=1, le=4096)]
Channels = Annotated[Literal[1, 2, 3, 4], BeforeValidator(_read_number)]  # 2 is for points of the plane (gaussians-25)
Resolution = Annotated[tuple[Side, Side], BeforeValidator(_read_resolution)]
Betas = Annotated[
    tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], BeforeValidator(_split_commas)
]
Metrics = Annotated[tuple[MetricName, ...], BeforeValidator(_split_commas)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Explainers = Annotated[tuple[ExplainerName, ...], BeforeValidator(_split_commas), Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_read_seconds)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DataConfig(_Part):
    """Where the real images come from and how they are brought to one size."""

    path: str = "fashion-mnist-10k"
    resolution: Resolution = (28, 28)  # height, width
    channels: Channels = 1
    fit: Literal["crop", "pad", "stretch"] = "crop"
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    seed: int = 0
    download: bool = False


class ModelConfig(_Part):
    """Which networks, and how wide."""

    generator: ModelName = "dcgan"
    critic: ModelName = "dcgan"
    width: Annotated[int, Field(ge=1)] = 64
    latent: Annotated[int, Field(ge=1)] = 64


class LossConfig(_Part):
    """The adversarial loss, or that of an autoencoder; ``beta`` weighs the divergence of a variational one's codes."""

    name: Literal[LossName, AutoencodingName] = "non-saturating"
    beta: NonNegative = 1.0


class PenaltyConfig(_Part):
    """The critic's gradient penalty; ``every`` > 1 makes it a lazy phase of its own with its gain."""

    name: PenaltyName = "none"
    weight: NonNegative = 10.0
    every: Annotated[int, Field(ge=1)] = 1
    center: NonNegative = 1.0


class AdamConfig(_Part):
    """Adam of one network (Kingma and Ba 2015, arXiv:1412.6980)."""

    lr: Positive = 2e-4
    betas: Betas = (0.0, 0.9)


class CriticAdamConfig(AdamConfig):
    """Adam of the critic, and how many critic batches come before each generator update."""

    repeats: Annotated[int, Field(ge=1)] = 1


class OptimConfig(_Part):
    """Both optimisers and their common learning-rate decay, which reaches zero at ``decay_kimg``."""

    generator: AdamConfig = AdamConfig()
    critic: CriticAdamConfig = CriticAdamConfig()
    decay: Literal["constant", "linear", "cosine"] = "constant"
    decay_kimg: Positive | None = None


class TrainConfig(_Part):
    """How long, how many at once, in which precision."""

    batch: Annotated[int, Field(ge=1)] = 64
    micro_batch: Annotated[int, Field(ge=2)] | None = None  # 1 would leave a smaller share without an image in a pass
    kimg: Positive = 200.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    cuda_graphs: bool = False
    tick_kimg: Positive = 2.0


class EmaConfig(_Part):
    """Exponential moving average of the generator: its weights of ``half_life_kimg`` ago count half."""

    half_life_kimg: NonNegative = 5.0


class SampleConfig(_Part):
    """The grid of EMA samples from fixed latents that is written while training."""

    every_kimg: Positive = 20.0
    num: Annotated[int, Field(ge=1, le=1024)] = 64


class CheckpointConfig(_Part):
    """How often the full state is saved; the newest ``keep`` saves stay, and the best by an evaluated score."""

    every_kimg: Positive = 20.0
    keep: Annotated[int, Field(ge=1)] = 3
    keep_best: ScoreName | None = "fd"


class EvaluateConfig(_Part):
    """What ``ganscale evaluate`` measures, and whether checkpoints are measured beside training.

    ``cpus`` cores are kept free for it; with 0 it uses what training leaves. The end of a run waits up to ``wait_s``
    for the last one.
    """

    every_kimg: Positive | None = None
    num: Annotated[int, Field(ge=100)] = 1000
    metrics: Metrics = ("fd", "kd", "prdc")
    extractor: ExtractorName = "in-domain-cnn"
    cpus: Annotated[int, Field(ge=0, le=1)] = 0
    wait_s: Seconds = 300.0


class ExplainConfig(_Part):
    """Which explanations are made of checkpoints beside training; ``budget`` is in seconds of one core, for all."""

    every_kimg: Positive | None = None
    methods: Explainers = ("integrated-gradients",)
    num_samples: Annotated[int, Field(ge=1, le=1024)] = 4
    budget: Seconds = 30.0


class OpsConfig(_Part):
    """Which implementation of the compiled operators is used."""

    impl: Impl = "auto"


class RuntimeConfig(_Part):
    """How long to wait for workers, and which Ray cluster to join (none: a local one is started and stopped)."""

    max_wait_s: Positive = 300.0
    hang_timeout_s: Positive = 300.0
    resize_s: Positive = 30.0
    address: str | None = None


class RunConfig(_Part):
    """Everything that decides a run's result, plus how it is watched. Immutable; build variants with ``override``."""

    preset: str = "custom"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    penalty: PenaltyConfig = PenaltyConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    ema: EmaConfig = EmaConfig()
    sample: SampleConfig = SampleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    explain: ExplainConfig = ExplainConfig()
    ops: OpsConfig = OpsConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _refuse_what_cannot_train(self) -> RunConfig:
        loss, penalty, optim = self.loss.name, self.penalty.name, self.optim
        autoencoding = loss in AUTOENCODING_NAMES
        for part, model in (("generator", self.model.generator), ("critic", self.model.critic)):
            if model.endswith("autoencoder") != autoencoding:
                rule = f"be {'an' if autoencoding else 'no'} autoencoder where loss.name is {loss}"
                raise ConfigError(
                    f"model.{part}", rule, model, "start from the preset autoencoder-fashion, or dcgan-fashion"
                )
        if autoencoding and (penalty != "none" or self.model.generator != self.model.critic):
            got = f"{penalty}, {self.model.critic}"
            rule = f"be none and {self.model.generator}: an autoencoder has no critic"
            raise ConfigError("penalty.name and model.critic", rule, got, "leave them as the preset has them")
        if loss == "wasserstein" and penalty == "none":
            raise ConfigError(
                "penalty.name",
                "bound the critic's slope when loss.name is wasserstein",
                penalty,
                "use --set penalty.name=wgan-gp",
            )
        if (optim.decay == "constant") != (optim.decay_kimg is None):
            raise ConfigError(
                "optim.decay_kimg",
                "be given exactly when optim.decay is linear or cosine",
                optim.decay_kimg,
                "set both, or neither",
            )
        if penalty in ("r1", "r2", "r1-r2") and self.penalty.center != 0:
            raise ConfigError(
                "penalty.center", f"be 0 for {penalty}", self.penalty.center, "use --set penalty.center=0"
            )
        if penalty == "wgan-gp-one-sided" and self.penalty.center == 0:
            raise ConfigError("penalty.center", "be above 0 for wgan-gp-one-sided", 0, "use --set penalty.center=1")
        for part, every_kimg in (("evaluate", self.evaluate.every_kimg), ("explain", self.explain.every_kimg)):
            if every_kimg is not None and every_kimg < self.checkpoint.every_kimg:
                rule = f"be at least checkpoint.every_kimg ({self.checkpoint.every_kimg:g}), as it looks at checkpoints"
                raise ConfigError(f"{part}.every_kimg", rule, every_kimg, "raise it, or lower checkpoint.every_kimg")
        return self

    def to_json(self) -> str:
        """Return the whole config as indented JSON with stable key order."""
        return json.dumps(self.model_dump(mode="json"), indent=2)


def from_mapping(values: Mapping[str, Any]) -> RunConfig:
    """Validate nested plain data (as of ``config.json``) into a ``RunConfig``; raises ``ConfigError``."""
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise _explain_validation(error) from None


def override(config: RunConfig, assignments: Mapping[str, Any] | Iterable[str]) -> RunConfig:
    """Return ``config`` with dotted keys replaced.

    ``assignments`` is a mapping ``{"train.batch": 32}`` or an iterable of ``"train.batch=32"`` strings as the command
    line gives them. Raises ``ConfigError`` that names the nearest keys where one is unknown.
    """
    pairs = (
        assignments.items() if isinstance(assignments, Mapping) else [_split_assignment(text) for text in assignments]
    )
    values = config.model_dump(mode="json")
    known = flat(config)
    for key, value in pairs:
        if key not in known:
            raise ConfigError("configuration key", "be a known key", key, nearest(key, known))
        *parents, leaf = key.split(".")
        part = values
        for parent in parents:
            part = part[parent]
        part[leaf] = None if isinstance(value, str) and value.lower() == "none" and _may_be_none(key) else value
    return from_mapping(values)


def flat(config: RunConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Return every dotted key of ``config``, or of what ``config.json`` keeps of one, with its value as plain data."""
    values = config.model_dump(mode="json") if isinstance(config, RunConfig) else config
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= {f"{name}.{key}": leaf for key, leaf in flat(value).items()}
        else:
            found[name] = value
    return found


def settings_of(config: RunConfig | Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (key, value) for every dotted key of ``config``, in order, each as ``--set`` would take it."""
    return [(key, _as_typed(key, value)) for key, value in flat(config).items()]


def _as_typed(key: str, value: Any) -> str:
    if isinstance(value, list):
        return ("x" if key == "data.resolution" else ",").join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def matches(key: str, table: Iterable[str]) -> bool:
    """Whether ``table`` names ``key``, or by a name that ends in a dot (``"checkpoint."``) the part it belongs to."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in table)


def _may_be_none(key: str) -> bool:
    """Whether the known ``key`` is annotated ``... | None``."""
    annotation: Any = RunConfig
    for name in key.split("."):
        annotation = annotation.model_fields[name].annotation
    return type(None) in get_args(annotation)


def _split_assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError("--set", "be written key=value", text, "for example --set train.batch=32")
    return key.strip(), value.strip()


def _explain_validation(error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return cause
    key = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    if first["type"] == "extra_forbidden":
        return ConfigError("configuration key", "be a known key", key, nearest(key, flat(RunConfig())))
    if first["type"] == "literal_error":
        choices = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return ConfigError(
            key, f"be one of {', '.join(choices)}", first["input"], nearest(str(first["input"]), choices)
        )
    rule = first["msg"][0].lower() + first["msg"][1:]
    rule = rule.removeprefix("input should ").removeprefix("value error, ").partition(", unable to ")[0]
    return ConfigError(key, rule, first["input"], f"change it with --set {key}=...")
