"""The references of bpclient's commands and of the settings cannot lag behind them."""

from __future__ import annotations

from bpbroker.client.cli.click_tree import bpclient
from bpbroker.client.cli.command_table import COMMANDS
from bpbroker.client.cli.shared_options import EVERYWHERE
from bpbroker.config import schema
from tests.support.reference import PAGE, SETTINGS, allowed, leaves, options, reference, settings


def test_the_page_has_the_reference_as_the_commands_are() -> None:
    assert reference() in PAGE.read_text(), "python -m tests.support.reference writes it anew"


def test_the_page_has_the_settings_as_the_schema_has_them() -> None:
    assert settings() in SETTINGS.read_text(), "python -m tests.support.reference writes them anew"
    for keys in (*schema.KNOWN.values(), schema.EXTENSION):
        for name, key in keys.items():
            assert allowed(key), name
            assert "|" not in allowed(key) + key.help, name  # it would end a cell of the table


def test_the_reference_has_every_command_and_option() -> None:
    found = dict(leaves(bpclient()))
    assert set(found) == set(COMMANDS)
    for path, command in COMMANDS.items():
        names = {name for option in command.options for name in option.names}
        assert {name for option in options(found[path]) for name in option.opts} == names
    text = reference()
    for option in EVERYWHERE:
        assert f"`{', '.join(option.names)}" in text


def test_the_text_above_it_speaks_of_every_command() -> None:
    written = PAGE.read_text().partition("<!--")[0]
    assert not [
        path for path in COMMANDS if f"`{' '.join(path)}" not in written and f"bpclient {' '.join(path)}" not in written
    ]
