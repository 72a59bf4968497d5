"""What a policy needs of its environments is looked for before anything long begins."""

import numpy as np
import pytest

from mode_envs import env_task, features, rendering_available
from mode_policy.apps.config import EvaluationConfig
from mode_policy.apps.fit import check_fit, check_places, observation_options
from mode_policy.config import PolicyConfig, build
from mode_policy.errors import DataError, SimulatorError
from mode_policy.normalization import compute_statistics
from mode_policy.policy import MoDEPolicy
from mode_policy.types import ACTION, IMAGE_PREFIX, Feature

BUTTER, REACH = env_task("pick_up_the_butter_and_place_it_in_the_basket"), env_task("reach-v3")
needs_opengl = pytest.mark.skipif(not rendering_available()[0], reason=rendering_available()[1])


def images(**sizes):
    return {IMAGE_PREFIX + name: Feature(shape=(px, px, 3), dtype="uint8") for name, px in sizes.items()}


def seeing(**sizes):
    """A policy for LIBERO that has learnt nothing, with cameras of these sizes."""
    described = {**images(**sizes), ACTION: features(BUTTER.env_id)[ACTION]}
    config = {
        "denoiser": {"dim": 16, "num_layers": 1, "num_heads": 2},
        "language": None,
        "cameras": tuple(sizes),
        "vision": {"width": 4, "size": 32},
    }
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 7)).astype(np.float32)
    return MoDEPolicy(build(PolicyConfig, config), described, compute_statistics({ACTION: actions}))


@needs_opengl
def test_a_policy_that_fits_passes(monkeypatch):
    pytest.importorskip("libero")
    check_fit(seeing(agentview=48, eye_in_hand=48), [BUTTER], EvaluationConfig(), ())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"agent_view": 48}, r"camera 'agent_view', which mode/libero-object-.*Did you mean 'agentview'"),
        ({"front": 48}, r"dataset.adapt.rename=\{observation.images.front: observation.images.static\}"),
        ({"agentview": 48, "eye_in_hand": 32}, r"cameras have different sizes"),
    ],
)
def test_cameras_that_an_environment_lacks_are_named(sizes, message):
    with pytest.raises(DataError, match=message):
        check_fit(seeing(**sizes), [BUTTER], EvaluationConfig(), ())


def test_cameras_are_looked_for_before_demonstrations_are():
    with pytest.raises(DataError, match="camera 'front', which mode/metaworld-reach-v3 does not have"):
        check_places([REACH], ["front"])
    with pytest.raises(DataError, match="shows one camera at a time; choose one"):
        check_places([REACH], ["corner2", "gripperPOV"])


def test_assets_are_looked_for_before_demonstrations_are(tmp_path, monkeypatch):
    pytest.importorskip("libero")
    monkeypatch.setenv("MODE_LIBERO_ASSETS", str(tmp_path / "absent"))
    with pytest.raises(SimulatorError, match="absent', where there is no folder"):
        check_places([BUTTER], ["agentview"])


def test_environments_are_asked_for_what_is_seen():
    both = images(agentview=48, eye_in_hand=48)
    assert observation_options(BUTTER.env_id, both) == {
        "obs_mode": "pixels",
        "image_size": (48, 48),
        "cameras": ("agentview", "eye_in_hand"),
    }
    assert observation_options(REACH.env_id, images(corner=32))["camera"] == "corner"
