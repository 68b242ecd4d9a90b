"""Answers questions about pictures, describes them, or talks: in a chat, pictures may be given and asked for.

python chat.py --image cat.png --prompt "How many cats are there?"
python chat.py --image cat.png --task caption
python chat.py
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from rebus.model.command_line import CommandParser

if TYPE_CHECKING:
    from rebus.model.conversation import Conversation

HELP = """Say anything, such as: Draw two frogs on a pink background.
/image PATH  give a picture along with what you say next
/save PATH   write the chat to a .json file, or the newest drawn picture to a .png file
/reset       forget everything said so far
/help        print this
/quit        leave, as does the end of the input"""


def main(argv: list[str] | None = None) -> None:
    """Gives the one answer that the command line asks for, or opens a chat."""
    parser = _parser()
    options = parser.parse(argv)
    with parser.refusing():
        _check(options)
        # Not before: a wrong command line is told of at once, while these take a second or two to import.
        from rebus.model.conversation import Conversation
        from rebus.model.rebus import Rebus

        rebus = Rebus.load(options.model, device=options.device, dtype=options.dtype)
        conversation = Conversation(rebus, options.output, options.seed)
        if options.task is not None:
            is_caption = options.task == "caption"
            print(rebus.caption(options.image) if is_caption else rebus.answer(options.image, options.prompt))
        elif options.prompt is not None:
            if options.image is not None:
                conversation.show(options.image)
            _say(conversation, options.prompt)
        else:
            _talk(conversation)


def _parser() -> CommandParser:
    parser = CommandParser(__doc__)
    once = parser.add_argument_group("for one answer", "Without these, a chat opens.")
    once.add_argument("--image", type=Path, help="picture to speak of")
    once.add_argument("--prompt", help="what to say or ask")
    once.add_argument(
        "--task", choices=("caption", "vqa"), help="answer in words alone: describe the picture, or answer the prompt"
    )
    drawn = parser.add_argument_group("for what is drawn")
    drawn.add_argument("--output", type=Path, default=Path("outputs/chat"), help="folder (default: outputs/chat)")
    drawn.add_argument("--seed", type=int, default=0, help="of the first answer; the next ones count on (default: 0)")
    parser.add_model_flags()
    return parser


def _check(options: Namespace) -> None:
    """Refuses flags that do not go together."""
    if options.task is not None and options.image is None:
        raise ValueError(f"--task {options.task} must come with --image, got none")
    if options.task == "caption" and options.prompt is not None:
        raise ValueError("--task caption must come without --prompt, got one")
    if options.image is not None and options.prompt is None and options.task != "caption":
        raise ValueError("--image must come with --prompt or with --task caption, got neither")
    if options.prompt is not None and not options.prompt.strip():
        raise ValueError("--prompt must hold text, got an empty one")


def _say(conversation: "Conversation", text: str) -> None:
    """Prints an answer as it comes, the names of files on lines of their own."""
    in_line = False
    for part in conversation.say(text):
        if isinstance(part, Path):
            print(f"\n{part}" if in_line else part, flush=True)
        else:
            print(part if in_line else part.lstrip(), end="", flush=True)
        in_line = not isinstance(part, Path)
    print(end="\n" if in_line else "", flush=True)


def _talk(conversation: "Conversation") -> None:
    """Reads lines until there are no more; what cannot be done is said, and the chat goes on."""
    watched = sys.stdin.isatty()
    if watched:
        print(HELP)
    while True:
        try:
            line = input("> " if watched else "").strip()
            command, _, rest = line.partition(" ")
            if command == "/quit":
                return
            if line:
                _obey(conversation, command, rest.strip()) if line.startswith("/") else _say(conversation, line)
        except (EOFError, KeyboardInterrupt):
            return
        except (ValueError, OSError) as error:
            print(error, flush=True)


def _obey(conversation: "Conversation", command: str, rest: str) -> None:
    """Does what a line with a slash says."""
    if command == "/image":
        conversation.show(Path(rest))
    elif command == "/save":
        conversation.save(Path(rest))
    elif command == "/reset":
        conversation.reset()
    elif command == "/help":
        print(HELP)
    else:
        raise ValueError(f"unknown command {command}; /help lists them all")


if __name__ == "__main__":
    main()
