"""Arguments that the functions which create dense models refuse."""

import re
from typing import Any

Case = tuple[dict[str, Any], str]
"""An argument, and a pattern of the message."""


def bad_arguments(*heads: str) -> list[Case]:
    """Lists the cases of `create_segmenter` and `create_detector`, whose heads these are."""
    count = "must be an integer from 1 to 2147483647"
    return [
        *(({"head": head}, f"head=.*: must be one of {', '.join(heads)}") for head in ("fcn", None, [heads[0]], 3)),
        *(
            ({"num_classes": value}, rf"num_classes={re.escape(repr(value))}: {count}")
            for value in (0, -1, 2.0, "2", True, None, 10**12)
        ),
        ({"window_padding": "wrap"}, "window_padding='wrap': must be one of zero, mask"),
        ({"clases": 3}, r"clases=3: must be left out, .*"),
        ({"num_clases": 3}, r"num_clases=3: must be left out, .*; did you mean num_classes\?"),
        ({"rngs": 0}, r"rngs=0: must be nnx.Rngs with the stream 'params', .*"),
        ({"in_channels": 0}, "in_channels=0: must be an integer from 1 to 1048576"),
    ]
