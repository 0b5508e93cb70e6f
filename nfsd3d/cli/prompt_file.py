"""``prompt=@FILE`` on the command line of a sweep or a search: a prompt on each line of the file."""

import re

from nfsd3d.config.overrides import TEXT_KEYS
from nfsd3d.errors import InputError
from nfsd3d.runs.files import read_bytes
from nfsd3d.settings.paths import user_path


def prompts_of_file(argument: str) -> str:
    """``prompt=@FILE`` with the lines of the file as values; other arguments as they are.

    Raises:
        InputError: the file cannot be read, or has no line.
    """
    key, _, name = argument.partition("=@")
    if key not in TEXT_KEYS or not name:
        return argument
    remedy = "give a text file with a prompt on each line"
    try:
        text = read_bytes(user_path(name)).decode("utf-8-sig")  # some editors begin a file with a mark of byte order
    except OSError as error:
        raise InputError(f"{argument}: cannot be read ({error.strerror}); {remedy}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{argument}: not a text in UTF-8; {remedy}") from error
    if "\0" in text:
        raise InputError(f"{argument}: not a text, it has a byte 0; {remedy}")
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise InputError(f"{argument}: has no prompt; {remedy}")
    escaped = (prompt.replace("\\", "\\\\").replace('"', '\\"') for prompt in prompts)
    return f"{key}=" + ",".join(f'"{prompt}"' for prompt in escaped)
