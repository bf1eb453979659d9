"""LaTeX as MathML, so that equations need no script and no font from elsewhere."""

import re
from functools import cache
from html import unescape
from xml.etree.ElementTree import tostring

from latex2mathml.converter import convert_to_element

BRACKETS = ((r"{", r"}"), (r"\\left\b", r"\\right\b"))
SIMILAR = "\N{TILDE OPERATOR}"  # unlike the tilde of the keyboard, browsers put space around it


def equations(latex: str) -> list[str]:
    """The formulas of a line of LaTeX as MathML, one for each part that a wide space sets off."""
    parts = re.split(r"\\q?quad", latex)
    whole = all(
        len(re.findall(left, part)) == len(re.findall(right, part)) for part in parts for left, right in BRACKETS
    )
    return [mathml(part.strip()) for part in (parts if whole else [latex])]


@cache
def mathml(latex: str) -> str:
    """LaTeX as MathML, displayed as a block; the library's own text output does not escape what stands in \\text."""
    math = convert_to_element(latex, display="block")
    for node in math.iter():
        node.text = unescape(node.text).replace("~", SIMILAR) if node.text else None
    return tostring(math, encoding="unicode", short_empty_elements=False)
