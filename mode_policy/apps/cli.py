"""What the Hydra programs share: early, helpful errors, and exit codes.

Exit codes: 0 success, 2 bad input (the message says what to change), 130 interrupted.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from mode_policy.errors import ConfigError, ModePolicyError, did_you_mean

#: Where each program's configuration lives.
CONF = {"train": "mode_policy.conf", "evaluate": "mode_policy.conf.evaluate"}

console = Console(highlight=False, soft_wrap=True, markup=False)

#: Settings whose values are paths; whatever these hold is one string.
PATHS = ("checkpoint", "resume", "output", "run_dir", "dataset.path")

OmegaConf.register_new_resolver("either", lambda a, b: a or b, replace=True)


def program(config_name: str) -> Callable[[Callable[[dict[str, Any]], None]], Callable[[], None]]:
    """Turn a function of plain configuration data into a console program with Hydra's command line.

    Overrides are checked before Hydra runs, so that a misspelt name is answered with the closest known one.
    """

    def decorate(run: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        @functools.wraps(run)
        def main() -> None:
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")
            with exit_codes():
                sys.argv[1:] = [quote_path(a) for a in sys.argv[1:]]
                arguments, _ = get_args_parser().parse_known_args()
                if not arguments.multirun:  # there, a value may be a list of values
                    compose(config_name, arguments.overrides)
                decorated()

        @hydra.main(version_base=None, config_path=f"pkg://{CONF[config_name]}", config_name=config_name)
        def decorated(cfg: DictConfig) -> None:
            with exit_codes():
                run(to_plain(cfg))

        return main

    return decorate


def quote_path(argument: str) -> str:
    """Quote the value of a path setting, so that Hydra's grammar leaves its ``=``, commas, brackets alone."""
    key, equals, value = argument.partition("=")
    plain = not value or value == "null" or value[0] in "\"'" or "${" in value
    if not equals or key not in PATHS or plain:
        return argument
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolve a composed configuration into plain data.

    Raises:
        ConfigError: if a mandatory value is missing.
    """
    try:
        data = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{key} has no value; give {key}=…" if key else str(error)) from None
    assert isinstance(data, dict)
    return {str(k): v for k, v in data.items() if k != "hydra"}


class exit_codes:  # noqa: N801 - used as a function
    """Context that prints errors a user can act on without a traceback, and exits with the right code."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ModePolicyError):
            Console(stderr=True, highlight=False, soft_wrap=True).print(
                f"error: {error}", style="red", markup=False
            )
            raise SystemExit(2) from None
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(130) from None


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose a configuration as the command line would.

    Raises:
        ConfigError: naming an unknown group choice, key or malformed override.
    """
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_module(CONF[config_name], version_base=None):
            return hydra.compose(config_name, overrides)
    except HydraException as error:
        raise ConfigError(_explain(config_name, overrides, error)) from None


def _explain(config_name: str, overrides: list[str], error: HydraException) -> str:
    """Find the override that Hydra stumbled over and suggest the closest name."""
    with hydra.initialize_config_module(CONF[config_name], version_base=None):
        loader = GlobalHydra.instance().config_loader()
        base = OmegaConf.to_container(hydra.compose(config_name), resolve=False)
    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            return f"cannot read {text!r}; overrides look like trainer.minutes=5 or task=pusht"
        key = override.key_or_group
        groups = loader.list_groups("")
        if "." not in key and key in groups:
            options = loader.get_group_options(key)
            if isinstance(override.value(), str) and override.value() not in options:
                return f"unknown {key} {override.value()!r}.{did_you_mean(str(override.value()), options)}"
        elif not text.startswith(("+", "~")) and key not in _all_keys(base):
            return f"unknown override {key!r}.{did_you_mean(key, {*_all_keys(base), *groups})}"
    return str(error).split("\nSee ")[0]


def _all_keys(data: Any, prefix: str = "") -> set[str]:
    keys: set[str] = set()
    if isinstance(data, dict):
        for k, v in data.items():
            keys |= {f"{prefix}{k}"} | _all_keys(v, f"{prefix}{k}.")
    return keys
