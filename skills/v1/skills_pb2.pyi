from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ImageEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_ENCODING_UNSPECIFIED: _ClassVar[ImageEncoding]
    IMAGE_ENCODING_RAW: _ClassVar[ImageEncoding]
    IMAGE_ENCODING_PNG: _ClassVar[ImageEncoding]
    IMAGE_ENCODING_JPEG: _ClassVar[ImageEncoding]

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    STATUS_SUCCEEDED: _ClassVar[Status]
    STATUS_FAILED: _ClassVar[Status]
    STATUS_CANCELED: _ClassVar[Status]
    STATUS_ABORTED: _ClassVar[Status]

class ActionKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_KIND_UNSPECIFIED: _ClassVar[ActionKind]
    ACTION_KIND_DELTA: _ClassVar[ActionKind]
    ACTION_KIND_ABSOLUTE: _ClassVar[ActionKind]
    ACTION_KIND_FRACTION: _ClassVar[ActionKind]
    ACTION_KIND_TERMINATE: _ClassVar[ActionKind]

class WhenBusy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WHEN_BUSY_UNSPECIFIED: _ClassVar[WhenBusy]
    WHEN_BUSY_PREEMPT: _ClassVar[WhenBusy]
    WHEN_BUSY_QUEUE: _ClassVar[WhenBusy]
IMAGE_ENCODING_UNSPECIFIED: ImageEncoding
IMAGE_ENCODING_RAW: ImageEncoding
IMAGE_ENCODING_PNG: ImageEncoding
IMAGE_ENCODING_JPEG: ImageEncoding
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_FLOAT32: DataType
STATUS_UNSPECIFIED: Status
STATUS_SUCCEEDED: Status
STATUS_FAILED: Status
STATUS_CANCELED: Status
STATUS_ABORTED: Status
ACTION_KIND_UNSPECIFIED: ActionKind
ACTION_KIND_DELTA: ActionKind
ACTION_KIND_ABSOLUTE: ActionKind
ACTION_KIND_FRACTION: ActionKind
ACTION_KIND_TERMINATE: ActionKind
WHEN_BUSY_UNSPECIFIED: WhenBusy
WHEN_BUSY_PREEMPT: WhenBusy
WHEN_BUSY_QUEUE: WhenBusy

class Image(_message.Message):
    __slots__ = ("encoding", "width", "height", "data")
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    encoding: ImageEncoding
    width: int
    height: int
    data: bytes
    def __init__(self, encoding: _Optional[_Union[ImageEncoding, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Observation(_message.Message):
    __slots__ = ("image", "state", "place", "held", "objects", "camera", "images", "states")
    class ObjectsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class ImagesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Image
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...
    class StatesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    CAMERA_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    image: Image
    state: Tensor
    place: str
    held: str
    objects: _containers.ScalarMap[str, str]
    camera: str
    images: _containers.MessageMap[str, Image]
    states: _containers.ScalarMap[str, str]
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., state: _Optional[_Union[Tensor, _Mapping]] = ..., place: _Optional[str] = ..., held: _Optional[str] = ..., objects: _Optional[_Mapping[str, str]] = ..., camera: _Optional[str] = ..., images: _Optional[_Mapping[str, Image]] = ..., states: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Camera(_message.Message):
    __slots__ = ("name", "height", "width")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    height: int
    width: int
    def __init__(self, name: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class StateNumber(_message.Message):
    __slots__ = ("name", "unit")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    unit: str
    def __init__(self, name: _Optional[str] = ..., unit: _Optional[str] = ...) -> None: ...

class ActionDimension(_message.Message):
    __slots__ = ("name", "low", "high", "unit", "kind")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    name: str
    low: float
    high: float
    unit: str
    kind: ActionKind
    def __init__(self, name: _Optional[str] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., unit: _Optional[str] = ..., kind: _Optional[_Union[ActionKind, str]] = ...) -> None: ...

class Embodiment(_message.Message):
    __slots__ = ("name", "cameras", "state", "action", "control_hz", "max_seconds", "history")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CAMERAS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    CONTROL_HZ_FIELD_NUMBER: _ClassVar[int]
    MAX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    name: str
    cameras: _containers.RepeatedCompositeFieldContainer[Camera]
    state: _containers.RepeatedCompositeFieldContainer[StateNumber]
    action: _containers.RepeatedCompositeFieldContainer[ActionDimension]
    control_hz: float
    max_seconds: float
    history: int
    def __init__(self, name: _Optional[str] = ..., cameras: _Optional[_Iterable[_Union[Camera, _Mapping]]] = ..., state: _Optional[_Iterable[_Union[StateNumber, _Mapping]]] = ..., action: _Optional[_Iterable[_Union[ActionDimension, _Mapping]]] = ..., control_hz: _Optional[float] = ..., max_seconds: _Optional[float] = ..., history: _Optional[int] = ...) -> None: ...

class Skill(_message.Message):
    __slots__ = ("name", "family", "text", "arguments", "learned")
    class ArgumentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    LEARNED_FIELD_NUMBER: _ClassVar[int]
    name: str
    family: str
    text: str
    arguments: _containers.ScalarMap[str, str]
    learned: bool
    def __init__(self, name: _Optional[str] = ..., family: _Optional[str] = ..., text: _Optional[str] = ..., arguments: _Optional[_Mapping[str, str]] = ..., learned: bool = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("status", "message", "steps", "seconds")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    status: Status
    message: str
    steps: int
    seconds: float
    def __init__(self, status: _Optional[_Union[Status, str]] = ..., message: _Optional[str] = ..., steps: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class ListSkillsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSkillsResponse(_message.Message):
    __slots__ = ("skills",)
    SKILLS_FIELD_NUMBER: _ClassVar[int]
    skills: _containers.RepeatedCompositeFieldContainer[Skill]
    def __init__(self, skills: _Optional[_Iterable[_Union[Skill, _Mapping]]] = ...) -> None: ...

class ScoreSkillsRequest(_message.Message):
    __slots__ = ("history", "names", "model")
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    history: _containers.RepeatedCompositeFieldContainer[Observation]
    names: _containers.RepeatedScalarFieldContainer[str]
    model: str
    def __init__(self, history: _Optional[_Iterable[_Union[Observation, _Mapping]]] = ..., names: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ...) -> None: ...

class ScoreSkillsResponse(_message.Message):
    __slots__ = ("scores",)
    SCORES_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedCompositeFieldContainer[SkillScore]
    def __init__(self, scores: _Optional[_Iterable[_Union[SkillScore, _Mapping]]] = ...) -> None: ...

class SkillScore(_message.Message):
    __slots__ = ("skill", "affordance", "raw", "model_id", "seconds")
    SKILL_FIELD_NUMBER: _ClassVar[int]
    AFFORDANCE_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    skill: str
    affordance: float
    raw: float
    model_id: str
    seconds: float
    def __init__(self, skill: _Optional[str] = ..., affordance: _Optional[float] = ..., raw: _Optional[float] = ..., model_id: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class ControlRequest(_message.Message):
    __slots__ = ("sequence", "instruction", "observation", "model", "goal_id", "outcome", "chunks", "committed")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GOAL_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    instruction: str
    observation: Observation
    model: str
    goal_id: str
    outcome: Outcome
    chunks: bool
    committed: Tensor
    def __init__(self, sequence: _Optional[int] = ..., instruction: _Optional[str] = ..., observation: _Optional[_Union[Observation, _Mapping]] = ..., model: _Optional[str] = ..., goal_id: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., chunks: bool = ..., committed: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class ControlResponse(_message.Message):
    __slots__ = ("sequence", "action", "seconds", "chunk")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    action: Tensor
    seconds: float
    chunk: Chunk
    def __init__(self, sequence: _Optional[int] = ..., action: _Optional[_Union[Tensor, _Mapping]] = ..., seconds: _Optional[float] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("actions", "period")
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    actions: Tensor
    period: float
    def __init__(self, actions: _Optional[_Union[Tensor, _Mapping]] = ..., period: _Optional[float] = ...) -> None: ...

class PreviewSkillRequest(_message.Message):
    __slots__ = ("skill", "history", "model")
    SKILL_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    skill: str
    history: _containers.RepeatedCompositeFieldContainer[Observation]
    model: str
    def __init__(self, skill: _Optional[str] = ..., history: _Optional[_Iterable[_Union[Observation, _Mapping]]] = ..., model: _Optional[str] = ...) -> None: ...

class PreviewSkillResponse(_message.Message):
    __slots__ = ("preview",)
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    preview: Preview
    def __init__(self, preview: _Optional[_Union[Preview, _Mapping]] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("score", "expected_seconds", "action", "value_maps")
    class ValueMapsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Image
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...
    SCORE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    VALUE_MAPS_FIELD_NUMBER: _ClassVar[int]
    score: SkillScore
    expected_seconds: float
    action: Tensor
    value_maps: _containers.MessageMap[str, Image]
    def __init__(self, score: _Optional[_Union[SkillScore, _Mapping]] = ..., expected_seconds: _Optional[float] = ..., action: _Optional[_Union[Tensor, _Mapping]] = ..., value_maps: _Optional[_Mapping[str, Image]] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("schema_version", "actor_id", "critic_id", "skills", "action", "state", "control_hz", "max_history", "calibrated", "models", "embodiment", "ping_interval_ms")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    CRITIC_ID_FIELD_NUMBER: _ClassVar[int]
    SKILLS_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CONTROL_HZ_FIELD_NUMBER: _ClassVar[int]
    MAX_HISTORY_FIELD_NUMBER: _ClassVar[int]
    CALIBRATED_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    EMBODIMENT_FIELD_NUMBER: _ClassVar[int]
    PING_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    actor_id: str
    critic_id: str
    skills: int
    action: _containers.RepeatedCompositeFieldContainer[ActionDimension]
    state: _containers.RepeatedScalarFieldContainer[str]
    control_hz: float
    max_history: int
    calibrated: bool
    models: _containers.RepeatedCompositeFieldContainer[Model]
    embodiment: Embodiment
    ping_interval_ms: int
    def __init__(self, schema_version: _Optional[int] = ..., actor_id: _Optional[str] = ..., critic_id: _Optional[str] = ..., skills: _Optional[int] = ..., action: _Optional[_Iterable[_Union[ActionDimension, _Mapping]]] = ..., state: _Optional[_Iterable[str]] = ..., control_hz: _Optional[float] = ..., max_history: _Optional[int] = ..., calibrated: bool = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., embodiment: _Optional[_Union[Embodiment, _Mapping]] = ..., ping_interval_ms: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "actor_id", "critic_id", "calibrated", "embodiment", "chunk")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    CRITIC_ID_FIELD_NUMBER: _ClassVar[int]
    CALIBRATED_FIELD_NUMBER: _ClassVar[int]
    EMBODIMENT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    name: str
    actor_id: str
    critic_id: str
    calibrated: bool
    embodiment: Embodiment
    chunk: int
    def __init__(self, name: _Optional[str] = ..., actor_id: _Optional[str] = ..., critic_id: _Optional[str] = ..., calibrated: bool = ..., embodiment: _Optional[_Union[Embodiment, _Mapping]] = ..., chunk: _Optional[int] = ...) -> None: ...

class ReloadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ReloadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class ObserveRequest(_message.Message):
    __slots__ = ("views",)
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    views: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, views: _Optional[_Iterable[str]] = ...) -> None: ...

class ObserveResponse(_message.Message):
    __slots__ = ("observation", "views", "age")
    class ViewsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Image
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    observation: Observation
    views: _containers.MessageMap[str, Image]
    age: float
    def __init__(self, observation: _Optional[_Union[Observation, _Mapping]] = ..., views: _Optional[_Mapping[str, Image]] = ..., age: _Optional[float] = ...) -> None: ...

class ExecuteSkillRequest(_message.Message):
    __slots__ = ("goal_id", "skill", "views", "when_busy", "lease_id")
    GOAL_ID_FIELD_NUMBER: _ClassVar[int]
    SKILL_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    WHEN_BUSY_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    goal_id: str
    skill: str
    views: _containers.RepeatedScalarFieldContainer[str]
    when_busy: WhenBusy
    lease_id: str
    def __init__(self, goal_id: _Optional[str] = ..., skill: _Optional[str] = ..., views: _Optional[_Iterable[str]] = ..., when_busy: _Optional[_Union[WhenBusy, str]] = ..., lease_id: _Optional[str] = ...) -> None: ...

class ExecuteSkillResponse(_message.Message):
    __slots__ = ("accepted", "feedback", "result", "queued")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    feedback: Feedback
    result: Outcome
    queued: Queued
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., feedback: _Optional[_Union[Feedback, _Mapping]] = ..., result: _Optional[_Union[Outcome, _Mapping]] = ..., queued: _Optional[_Union[Queued, _Mapping]] = ...) -> None: ...

class Queued(_message.Message):
    __slots__ = ("ahead",)
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    ahead: int
    def __init__(self, ahead: _Optional[int] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("goal_id",)
    GOAL_ID_FIELD_NUMBER: _ClassVar[int]
    goal_id: str
    def __init__(self, goal_id: _Optional[str] = ...) -> None: ...

class Feedback(_message.Message):
    __slots__ = ("step", "action", "views", "state")
    class ViewsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Image
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    step: int
    action: Tensor
    views: _containers.MessageMap[str, Image]
    state: Tensor
    def __init__(self, step: _Optional[int] = ..., action: _Optional[_Union[Tensor, _Mapping]] = ..., views: _Optional[_Mapping[str, Image]] = ..., state: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class PreviewGoalRequest(_message.Message):
    __slots__ = ("skill",)
    SKILL_FIELD_NUMBER: _ClassVar[int]
    skill: str
    def __init__(self, skill: _Optional[str] = ...) -> None: ...

class PreviewGoalResponse(_message.Message):
    __slots__ = ("preview",)
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    preview: Preview
    def __init__(self, preview: _Optional[_Union[Preview, _Mapping]] = ...) -> None: ...

class CancelSkillRequest(_message.Message):
    __slots__ = ("goal_id", "lease_id")
    GOAL_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    goal_id: str
    lease_id: str
    def __init__(self, goal_id: _Optional[str] = ..., lease_id: _Optional[str] = ...) -> None: ...

class CancelSkillResponse(_message.Message):
    __slots__ = ("canceling",)
    CANCELING_FIELD_NUMBER: _ClassVar[int]
    canceling: bool
    def __init__(self, canceling: bool = ...) -> None: ...

class GetGoalRequest(_message.Message):
    __slots__ = ("goal_id",)
    GOAL_ID_FIELD_NUMBER: _ClassVar[int]
    goal_id: str
    def __init__(self, goal_id: _Optional[str] = ...) -> None: ...

class GetGoalResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: Outcome
    def __init__(self, result: _Optional[_Union[Outcome, _Mapping]] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResetRequest(_message.Message):
    __slots__ = ("lease_id",)
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    def __init__(self, lease_id: _Optional[str] = ...) -> None: ...

class ResetResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AcquireLeaseRequest(_message.Message):
    __slots__ = ("owner", "seconds")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    owner: str
    seconds: float
    def __init__(self, owner: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class AcquireLeaseResponse(_message.Message):
    __slots__ = ("lease_id", "seconds")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    seconds: float
    def __init__(self, lease_id: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class KeepLeaseRequest(_message.Message):
    __slots__ = ("lease_id",)
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    def __init__(self, lease_id: _Optional[str] = ...) -> None: ...

class KeepLeaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReleaseLeaseRequest(_message.Message):
    __slots__ = ("lease_id",)
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    def __init__(self, lease_id: _Optional[str] = ...) -> None: ...

class ReleaseLeaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class JudgeInstructionRequest(_message.Message):
    __slots__ = ("instruction",)
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    instruction: str
    def __init__(self, instruction: _Optional[str] = ...) -> None: ...

class JudgeInstructionResponse(_message.Message):
    __slots__ = ("known", "satisfied")
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    SATISFIED_FIELD_NUMBER: _ClassVar[int]
    known: bool
    satisfied: bool
    def __init__(self, known: bool = ..., satisfied: bool = ...) -> None: ...

class GetRobotInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetRobotInfoResponse(_message.Message):
    __slots__ = ("schema_version", "name", "skills", "skill_server", "control_hz", "max_steps", "stopped", "executing", "embodiment", "views", "stop_address", "stop_tls", "ping_interval_ms", "leased_to", "queued")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SKILLS_FIELD_NUMBER: _ClassVar[int]
    SKILL_SERVER_FIELD_NUMBER: _ClassVar[int]
    CONTROL_HZ_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    EXECUTING_FIELD_NUMBER: _ClassVar[int]
    EMBODIMENT_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    STOP_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STOP_TLS_FIELD_NUMBER: _ClassVar[int]
    PING_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    LEASED_TO_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    name: str
    skills: int
    skill_server: str
    control_hz: float
    max_steps: int
    stopped: bool
    executing: str
    embodiment: Embodiment
    views: _containers.RepeatedScalarFieldContainer[str]
    stop_address: str
    stop_tls: bool
    ping_interval_ms: int
    leased_to: str
    queued: int
    def __init__(self, schema_version: _Optional[int] = ..., name: _Optional[str] = ..., skills: _Optional[int] = ..., skill_server: _Optional[str] = ..., control_hz: _Optional[float] = ..., max_steps: _Optional[int] = ..., stopped: bool = ..., executing: _Optional[str] = ..., embodiment: _Optional[_Union[Embodiment, _Mapping]] = ..., views: _Optional[_Iterable[str]] = ..., stop_address: _Optional[str] = ..., stop_tls: bool = ..., ping_interval_ms: _Optional[int] = ..., leased_to: _Optional[str] = ..., queued: _Optional[int] = ...) -> None: ...
