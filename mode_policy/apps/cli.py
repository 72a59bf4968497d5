"""What the Hydra programs share: early, helpful errors, and exit codes.

Exit codes: 0 success, 2 bad input (the message says what to change), 130 interrupted.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from mode_policy.apps.usage import usage
from mode_policy.errors import ConfigError, ModePolicyError, did_you_mean

#: Where each program's configuration lives.
CONF = {
    "train": "mode_policy.conf",
    "evaluate": "mode_policy.conf.evaluate",
    "export": "mode_policy.conf.export",
    "serve": "mode_policy.conf.serve",
    "control": "mode_policy.conf.control",
}

#: Exit code of bad input, and the variable that names a file which a launched process makes to say that it
#: ended for it: to start it anew would not help.
BAD_INPUT, REFUSED = 2, "MODE_REFUSED"

console = Console(highlight=False, soft_wrap=True, markup=False)

#: Settings whose values are paths; whatever these hold is one string.
PATHS = (
    "certificate",
    "checkpoint",
    "dataset.folder",
    "dataset.path",
    "init_from",
    "log",
    "out",
    "output",
    "policy.vision.weights",
    "private_key",
    "resume",
    "robot.path",
    "run_dir",
    "token_file",
)


def program(config_name: str) -> Callable[[Callable[[dict[str, Any]], Any]], Callable[[], None]]:
    """Turn a function of plain configuration data into a console program with Hydra's command line.

    Overrides are checked before Hydra runs, so that a misspelt name is answered with the closest known one.
    What the function returns is what a sweep minimises.
    """

    def decorate(run: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
        @functools.wraps(run)
        def main() -> None:
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")
            with exit_codes():
                sys.argv[1:] = [quote_path(a) for a in sys.argv[1:]]
                arguments, _ = get_args_parser().parse_known_args()
                if arguments.help:
                    print(usage(CONF[config_name], config_name, _purpose(run), choices(config_name)))
                    return
                lines = single_runs(arguments.overrides) if arguments.multirun else [arguments.overrides]
                for overrides in lines:
                    compose(config_name, overrides)
                try:
                    decorate_task(Task(run))()
                except HydraException as error:
                    raise ConfigError(_message(error)) from None

        return main

    decorate_task = hydra.main(
        version_base=None, config_path=f"pkg://{CONF[config_name]}", config_name=config_name
    )
    return decorate


class Task:
    """What Hydra calls. It holds the name of a program's function, so that launchers can send it elsewhere.

    Args:
        run: function of plain configuration data, decorated with `program`.
    """

    def __init__(self, run: Callable[[dict[str, Any]], Any]) -> None:
        self.module, self.name = run.__module__, run.__qualname__

    def __call__(self, cfg: DictConfig) -> Any:
        """Run the program with exit codes."""
        main = getattr(importlib.import_module(self.module), self.name)
        with exit_codes():
            return inspect.unwrap(main)(to_plain(cfg))


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
            rank = os.environ.get("RANK", "0")  # of a process that torchrun or accelerate launch started
            what = "error" if rank == "0" else f"error in process {rank}"
            Console(stderr=True, highlight=False, soft_wrap=True).print(
                f"{what}: {error}", style="red", markup=False
            )
            if refused := os.environ.get(REFUSED):
                Path(refused).touch()
            raise SystemExit(BAD_INPUT) from None
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(130) from None


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose a configuration as the command line would.

    Raises:
        ConfigError: naming an unknown group choice, key or malformed override.
    """
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module(CONF[config_name], version_base=None):
        groups = _groups()
        for override in map(parse, overrides):
            _check_choice(override, groups)
        try:
            return hydra.compose(config_name, overrides)
        except (HydraException, ValueError) as error:  # the latter for a folder of the configuration
            known = {*_all_keys(OmegaConf.to_container(hydra.compose(config_name), resolve=False)), *groups}
            for override in map(parse, overrides):
                key = override.key_or_group
                changes = not override.is_add() and not override.is_delete()
                if changes and key not in known and not key.startswith("hydra"):
                    raise ConfigError(f"unknown override {key!r}.{did_you_mean(key, known)}") from None
            raise ConfigError(_message(error)) from None


def choices(config_name: str) -> dict[str, list[str]]:
    """Return a program's groups of configuration, each with its choices."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module(CONF[config_name], version_base=None):
        return _groups()


def _groups() -> dict[str, list[str]]:
    loader = GlobalHydra.instance().config_loader()
    names = set(loader.list_groups("")) - {"hydra", *CONF}  # the folders of other programs are no groups
    return {name: loader.get_group_options(name) for name in names}


def _purpose(run: Callable[..., Any]) -> str:
    return (inspect.getdoc(inspect.getmodule(run)) or "").split("\n\n")[0].replace("``", "")


def single_runs(overrides: list[str]) -> Iterator[list[str]]:
    """Yield command lines of single runs that together name every key and choice of a multirun's."""
    choices = [values for text in overrides if (values := _values(parse(text)))]
    first = [values[0] for values in choices]
    yield first
    for i, values in enumerate(choices):
        for value in values[1:]:
            yield [*first[:i], value, *first[i + 1 :]]


def parse(text: str) -> Override:
    """Parse an override.

    Raises:
        ConfigError: if it is malformed.
    """
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        raise ConfigError(
            f"cannot read {text!r}; overrides look like trainer.minutes=5 or task=pusht"
        ) from None


#: Sweeps that say themselves which values they run through.
_LISTED = (ValueType.CHOICE_SWEEP, ValueType.SIMPLE_CHOICE_SWEEP, ValueType.RANGE_SWEEP)


def _values(override: Override) -> list[str]:
    """The single overrides that a sweep stands for, or one of them where they differ by a number only.

    None where only Hydra's sweeper knows them (patterns, intervals).
    """
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if override.value_type not in _LISTED:
        return []
    values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    return values[:1] if "." in override.key_or_group else values


def _check_choice(override: Override, groups: Mapping[str, Collection[str]]) -> None:
    """Hold the choice of a group to what there is.

    Raises:
        ConfigError: if it is unknown, none, or more than one.
    """
    key, value = override.key_or_group, override.value()
    if key not in groups or override.is_delete():
        return
    if override.is_sweep_override() or isinstance(value, list):
        names = str(override.input_line).split("=", 1)[1].strip("[]")
        raise ConfigError(f"{key} takes one choice, not several; to run with each of them: -m {key}={names}")
    if not isinstance(value, str):
        raise ConfigError(f"{key} needs a choice; one of {', '.join(groups[key])}")
    if value not in groups[key]:
        raise ConfigError(f"unknown {key} {value!r}.{did_you_mean(value, groups[key])}")


def _message(error: Exception) -> str:
    return str(error).split("\nSee ")[0]


def _all_keys(data: Any, prefix: str = "") -> set[str]:
    keys: set[str] = set()
    if isinstance(data, dict):
        for k, v in data.items():
            keys |= {f"{prefix}{k}"} | _all_keys(v, f"{prefix}{k}.")
    return keys
