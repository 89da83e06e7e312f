"""Whether the sandbox runs on this machine; where it refuses, so must the evaluation, and its tests are skipped."""

import pytest

from radistill.errors import RadistillError
from radistill.evaluation.sandbox import layers

try:
    LAYERS, REFUSAL = layers(), ""
except RadistillError as error:
    LAYERS, REFUSAL = (), str(error)

needs_sandbox = pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)
