"""The ground truth of a prompt: its composition in the world of shapes."""

from nfsd3d.errors import InputError
from nfsd3d.shapes.world.grammar import Composition, parse_prompt
from nfsd3d.shapes.world.objects import OBJECTS


def composition_of(prompt: str) -> Composition:
    """The composition that a prompt or caption names (see ``grammar.parse_prompt``).

    Raises:
        InputError: it names none; the message lists the objects.
    """
    try:
        return parse_prompt(prompt)
    except ValueError as error:
        remedy = 'ground truth needs one like "a purple house" or "a DSLR photo of a red and white dotted mushroom"'
        objects = f"of one of the objects {', '.join(OBJECTS)}; runs of other prompts: --clip ID|FOLDER"
        raise InputError(f"prompt={prompt!r}: no composition of the world of shapes; {remedy}, {objects}") from error
