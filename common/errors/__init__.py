"""All errors of shardmerge as one tree: a class per fault, its facts as fields, an exit code per branch.

`exit_codes` holds the root and the branches, each other module the faults of one subject. All are imported from here.
"""

from .config import SAID_TWICE, ConfigContradictionError, ConfigMismatchError
from .exit_codes import (
    SHOWN,
    ConflictError,
    IncompleteError,
    OutputError,
    ShardmergeError,
    UnsupportedError,
    UsageError,
)
from .files import CorruptFileError, CorruptIndexError
from .findings import Findings
from .model import (
    ExpertIdsError,
    NotInitializedError,
    StaleParametersError,
    UnclaimedParameterError,
    UnsupportedArchitectureError,
    UnsupportedParameterError,
)
from .output import (
    LockLostError,
    MissingPartsError,
    MissingRecordError,
    OutputExistsError,
    OutputLockedError,
    ShardsChangedError,
    WorkerDiedError,
    WriterDiedError,
)
from .quantization import (
    BadScaleError,
    CutInsideBlockError,
    DeclarationMismatchError,
    MissingScaleError,
    QuantizationMismatchError,
    ScalarMismatchError,
    StoredOtherwiseError,
    UncalibratedError,
    UndeclaredScaleError,
    UnsupportedQuantizationError,
)
from .ranks import (
    CorruptManifestError,
    DuplicateRankError,
    MissingFactsError,
    MissingRankError,
    MissingRanksError,
    MixedGenerationsError,
    MixedSettingsError,
)
from .several import ProblemsFoundError, raise_problems
from .tensors import (
    MismatchError,
    MissingTensorError,
    MtpMismatchError,
    NonFiniteError,
    OverlapError,
    ReplicaMismatchError,
    UncoveredTensorError,
    UnexpectedTensorError,
)
from .usage import BadInputError, HostMemoryError, MissingConfigError, StillDumpingError

__all__ = [
    "SAID_TWICE",
    "SHOWN",
    "BadInputError",
    "BadScaleError",
    "ConfigContradictionError",
    "ConfigMismatchError",
    "ConflictError",
    "CorruptFileError",
    "CorruptIndexError",
    "CorruptManifestError",
    "CutInsideBlockError",
    "DeclarationMismatchError",
    "DuplicateRankError",
    "ExpertIdsError",
    "Findings",
    "HostMemoryError",
    "IncompleteError",
    "LockLostError",
    "MismatchError",
    "MissingConfigError",
    "MissingFactsError",
    "MissingPartsError",
    "MissingRankError",
    "MissingRanksError",
    "MissingRecordError",
    "MissingScaleError",
    "MissingTensorError",
    "MixedGenerationsError",
    "MixedSettingsError",
    "MtpMismatchError",
    "NonFiniteError",
    "NotInitializedError",
    "OutputError",
    "OutputExistsError",
    "OutputLockedError",
    "OverlapError",
    "ProblemsFoundError",
    "QuantizationMismatchError",
    "ReplicaMismatchError",
    "ScalarMismatchError",
    "ShardmergeError",
    "ShardsChangedError",
    "StaleParametersError",
    "StillDumpingError",
    "StoredOtherwiseError",
    "UncalibratedError",
    "UnclaimedParameterError",
    "UncoveredTensorError",
    "UndeclaredScaleError",
    "UnexpectedTensorError",
    "UnsupportedArchitectureError",
    "UnsupportedError",
    "UnsupportedParameterError",
    "UnsupportedQuantizationError",
    "UsageError",
    "WorkerDiedError",
    "WriterDiedError",
    "raise_problems",
]
