import os
from pathlib import Path

import pytest

GR1 = Path(os.environ.get("GROOT_COOKBOOK_GR1", Path(__file__).parent.parent.parent / "shared" / "data" / "gr1_pick_n_place"))


@pytest.fixture(scope="session")
def gr1() -> Path:
    "The GR-1 sample (five simulated humanoid episodes); tests that need it skip where it is absent."
    if not GR1.is_dir(): pytest.skip("the GR-1 sample is not here: set GROOT_COOKBOOK_GR1 to a copy of demo_data/robot_sim.PickNPlace of NVIDIA/GR00T-Dreams")
    return GR1
